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
KEPT = 4  # nets in RAM: of the last revisions, and of revisions that memories are frozen at


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names and contents."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()


class NetCache:
    """The nets of one memory, caught up with what is remembered. Safe to share between threads.

    A net that was never full is the remembered samples themselves and is not written.
    """

    def __init__(self, file: Path | None, capacity: int = CAPACITY):
        self.file = file
        self.capacity = capacity
        self._lock = threading.Lock()
        self._nets: list[NoveltyNet] = []  # the last used first
        self._saved = (0, 0)  # samples ever learnt, and held, when the file was written
        self._tried = False  # to read the file

    def net(self, remembered: Remembered) -> NoveltyNet:
        """The net that holds exactly these samples."""
        with self._lock, torch.inference_mode(False):
            net = next((net for net in self._nets if net.holds(remembered)), None)
            if net is None:
                net = self._start(remembered)
                net.follow(remembered)
            self._nets = [net, *(one for one in self._nets if one is not net)][:KEPT]
            if self._is_due(net):
                self._write(net)
            return net

    def _start(self, remembered: Remembered) -> NoveltyNet:
        """A net of its own that can follow, the further the better."""
        for net in sorted(self._nets, key=lambda net: -net.ever):
            if net.can_follow(remembered):
                return net.copy()  # a hires pass comes back to what it was before the first
        if not self._tried:
            self._tried = True
            net = self._read()
            if net is not None and net.can_follow(remembered):
                return net
        return NoveltyNet(remembered.dim, self.capacity)

    def stored(self) -> NoveltyNet | None:
        """The net as it was last written, if it was and can be read."""
        with self._lock, torch.inference_mode(False):
            return self._read()

    def _is_due(self, net: NoveltyNet) -> bool:
        """Whether to write it: now and then, and at once where samples were forgotten, because
        their contents may be gone when it is learnt again."""
        ever, held = self._saved
        forgot = ever - held < net.ever - len(net.learnt) and net.ever >= ever
        return net.was_full and (forgot or net.ever >= ever + SAVE_EVERY)

    def _read(self) -> NoveltyNet | None:
        if self.file is None or not self.file.exists():
            return None
        try:
            with safe_open(self.file, "pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                intact = (stored.metadata() or {}).get(HASH) == digest(tensors)
            net = NoveltyNet.from_state(tensors) if intact else None
        except (SafetensorError, OSError, KeyError):  # KeyError: written by an earlier version
            return None
        if net is None or net.capacity != self.capacity:
            return None
        self._saved = (net.ever, len(net.learnt))
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
        self._saved = (net.ever, len(net.learnt))
