"""Novelty nets beside the log: derived from it, so a lost or damaged one is only learnt again."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..novelty_net import CAPACITY, NoveltyNet
from .bank import Remembered

HASH = "sha256"
SAVE_EVERY = 256  # samples learnt since the file was written


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names and contents."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()


class NetCache:
    """The net of one memory, caught up with what is remembered. Safe to share between threads.

    A net that is not full yet is the remembered samples themselves and is never written.
    """

    def __init__(self, file: Path | None, capacity: int = CAPACITY):
        self.file = file
        self.capacity = capacity
        self._lock = threading.Lock()
        self._net: NoveltyNet | None = None
        self._saved = 0

    def net(self, remembered: Remembered) -> NoveltyNet:
        """The net that has learnt exactly these samples, in this order."""
        with self._lock, torch.inference_mode(False):
            net = self._net or self._read()
            if net is None or not self._is_prefix(net, remembered):
                net = NoveltyNet(remembered.embedding.shape[1], self.capacity)
                self._saved = 0
            net.learn(remembered, first=len(net.learnt))
            self._net = net
            if len(net.learnt) > self.capacity and len(net.learnt) >= self._saved + SAVE_EVERY:
                self._write(net)
            return net

    def _is_prefix(self, net: NoveltyNet, remembered: Remembered) -> bool:
        learnt = len(net.learnt)
        return learnt <= len(remembered) and torch.equal(
            net.learnt, remembered.revisions[:learnt])

    def _read(self) -> NoveltyNet | None:
        if self.file is None or not self.file.exists():
            return None
        try:
            with safe_open(self.file, "pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                intact = (stored.metadata() or {}).get(HASH) == digest(tensors)
        except (SafetensorError, OSError):
            return None
        if not intact:
            return None
        net = NoveltyNet.from_state(tensors)
        if net.capacity != self.capacity:
            return None
        self._saved = len(net.learnt)
        return net

    def _write(self, net: NoveltyNet) -> None:
        if self.file is None:
            return
        tensors = net.state()
        self.file.parent.mkdir(exist_ok=True)
        partial = self.file.with_suffix(f".{os.getpid()}.partial")
        save_file(tensors, partial, {HASH: digest(tensors)})
        os.replace(partial, self.file)
        self._saved = len(net.learnt)
