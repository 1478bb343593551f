"""Novelty nets beside the log: derived from it, so a lost or damaged one is only learnt again."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..novelty_net import CAPACITY, PAGE, NoveltyNet
from .bank import Remembered

HASH = "sha256"
log = logging.getLogger("uncommon")
SAVE_EVERY = 256  # samples learnt since the file was written
KEPT = 4  # nets in RAM: of the last revisions, and of revisions that memories are frozen at

Tick = Callable[[int, int], None]
"""Called with (samples learnt, samples to hold) where there are many to learn; what it raises ends
the learning for now."""


def silent(done: int, total: int) -> None:
    """A Tick that tells nobody."""


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names and contents."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()


class NetCache:
    """The nets of one memory, caught up with what is remembered. Safe to share between threads.

    A net that was never full is the remembered samples themselves and is not written. The file has
    the net that has learnt most. One of an earlier revision, if it took long to learn, has a file
    of its own beside it.
    """

    def __init__(self, file: Path | None, capacity: int = CAPACITY):
        self.file = file
        self.capacity = capacity
        self._lock = threading.Lock()
        self._nets: list[NoveltyNet] = []  # the last used first
        self._saved = (0, 0)  # samples ever learnt, and held, when the file was written
        self._tried = False  # to read the file

    def net(self, remembered: Remembered, tick: Tick = silent) -> NoveltyNet:
        """The net that holds exactly these samples. Where a tick ends the learning, the next call
        goes on from there."""
        with self._lock, torch.inference_mode(False):
            net = next((net for net in self._nets if net.holds(remembered)), None)
            if net is not None:
                self._keep(net)
                return net
            net = self._start(remembered)
            before = net.ever
            while not net.follow(remembered, PAGE):
                self._keep(net)
                tick(len(net.learnt), len(remembered))
            self._keep(net)
            if net.was_full and before + PAGE < net.ever < self._saved[0]:
                self._pin(net, remembered)
            return net

    def _keep(self, net: NoveltyNet) -> None:
        self._nets = [net, *(one for one in self._nets if one is not net)][:KEPT]
        if self._is_due(net) and self._write(net, self.file):
            self._saved = (net.ever, len(net.learnt))

    def _start(self, remembered: Remembered) -> NoveltyNet:
        """A net of its own that can follow, the further the better."""
        if not self._tried:
            self._tried = True
            self._nets += filter(None, [self._read_saved()])
        pinned = filter(None, [self._read(self._pinned(remembered))])
        for net in sorted([*self._nets, *pinned], key=lambda net: -net.ever):
            if net.can_follow(remembered):
                return net.copy()  # a hires pass comes back to what it was before the first
        return NoveltyNet(remembered.dim, self.capacity)

    def stored(self) -> NoveltyNet | None:
        """The net as it was last written, if it was and can be read."""
        with self._lock, torch.inference_mode(False):
            return self._read_saved()

    def _is_due(self, net: NoveltyNet) -> bool:
        """Whether to write it: now and then, and at once where samples were forgotten, because
        their contents may be gone when it is learnt again."""
        ever, held = self._saved
        forgot = ever - held < net.ever - len(net.learnt) and net.ever >= ever
        return net.was_full and (forgot or net.ever >= ever + SAVE_EVERY)

    def _read_saved(self) -> NoveltyNet | None:
        net = self._read(self.file)
        if net is not None:
            self._saved = (net.ever, len(net.learnt))
        return net

    def _read(self, file: Path | None) -> NoveltyNet | None:
        if file is None or not file.exists():
            return None
        try:
            with safe_open(file, "pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                intact = (stored.metadata() or {}).get(HASH) == digest(tensors)
            net = NoveltyNet.from_state(tensors) if intact else None
        except (SafetensorError, OSError, KeyError):  # KeyError: written by an earlier version
            return None
        return net if net is not None and net.capacity == self.capacity else None

    def _write(self, net: NoveltyNet, file: Path | None) -> bool:
        """Whether it could be kept."""
        if file is None:
            return False
        tensors = net.state()
        partial = file.with_suffix(f".{os.getpid()}.partial")
        try:
            file.parent.mkdir(exist_ok=True)
            save_file(tensors, partial, {HASH: digest(tensors)})
            os.replace(partial, file)
            return True
        except (SafetensorError, OSError) as error:  # the samples are safe in the log
            log.warning("The novelty net could not be kept in %s and will be learnt again after a "
                        "restart: %s", file, error)
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            return False

    def _pinned(self, remembered: Remembered) -> Path | None:
        return self.file and self.file.with_stem(f"{self.file.stem}@{remembered.revision}")

    def _pin(self, net: NoveltyNet, remembered: Remembered) -> None:
        """Writes the net of an earlier revision, and leaves no more than KEPT such files."""
        file = self._pinned(remembered)
        if file is not None:
            self._write(net, file)
            pinned = file.parent.glob(f"{self.file.stem}@*{file.suffix}")
            for one in sorted(pinned, key=lambda one: -one.stat().st_mtime)[KEPT:]:
                one.unlink(missing_ok=True)
