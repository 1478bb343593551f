"""Novelty nets beside the log: derived from it, so a lost or damaged one is only learnt again."""

from __future__ import annotations

import hashlib
import logging
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
log = logging.getLogger("uncommon")
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
            if net is None or not net.has_learnt_from(remembered):
                net = NoveltyNet(remembered.embedding.shape[1], self.capacity)
                self._saved = 0
            net.learn(remembered, first=len(net.learnt))
            self._net = net
            if len(net.learnt) > self.capacity and len(net.learnt) >= self._saved + SAVE_EVERY:
                self._write(net)
            return net

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
        partial = self.file.with_suffix(f".{os.getpid()}.partial")
        try:
            self.file.parent.mkdir(exist_ok=True)
            save_file(tensors, partial, {HASH: digest(tensors)})
            os.replace(partial, self.file)
        except (SafetensorError, OSError) as error:  # the samples are safe in the log
            log.warning("The novelty net could not be kept in %s and will be learnt again after a "
                        "restart: %s", self.file, error)
        self._saved = len(net.learnt)
