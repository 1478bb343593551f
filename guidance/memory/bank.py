"""A memory's samples in RAM, as tensors that follow the log."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..prompt import PROMPT_DIM
from .entry import Entry
from .log import Memory

NEAREST = "nearest"  # in a sample's settings: distance to the nearest sample before it


@dataclass(frozen=True)
class Remembered:
    """The samples alive at one revision, in the order they came.

    revisions: `[n]`; embedding: `[n, dim]`; prompt: `[n, PROMPT_DIM]`, zeros where a sample
    has none; nearest: `[n]`, each sample's distance to the nearest that was there before it,
    infinite for the first.
    """

    revisions: Tensor
    embedding: Tensor
    prompt: Tensor
    nearest: Tensor

    def __len__(self) -> int:
        return len(self.revisions)


class GrowingTensor:
    """Rows that are appended; capacity doubles, so that n appends copy O(n) rows."""

    def __init__(self):
        self._buffer: Tensor | None = None
        self._length = 0

    def extend(self, rows: Tensor) -> None:
        needed = self._length + len(rows)
        if self._buffer is None or needed > len(self._buffer):
            grown = rows.new_empty(max(2 * self._length, needed), *rows.shape[1:])
            if self._buffer is not None:
                grown[:self._length] = self.rows
            self._buffer = grown
        self._buffer[self._length:needed] = rows
        self._length = needed

    @property
    def rows(self) -> Tensor:
        """`[n, ...]`, a view."""
        return self._buffer[:self._length]


class Bank:
    """Reads a log once, and from then on only its new rows. Safe to share between threads."""

    def __init__(self, memory: Memory):
        self.memory = memory
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._revision = 0
        self._born = GrowingTensor()
        self._embedding, self._prompt = GrowingTensor(), GrowingTensor()
        self._nearest = GrowingTensor()

    def at(self, revision: int | None = None) -> Remembered:
        """What the memory holds at a revision (default: the last).

        Raises RevisionError, and RevisionGoneError where a sample's data was dropped.
        """
        with self._lock, torch.inference_mode(False):
            self._follow()
            at = self._revision if revision is None else revision
            live = torch.tensor(self.memory.live(at), dtype=torch.int64)
            if len(live) == 0:
                return Remembered(live, torch.empty(0, 0), torch.empty(0, 0), torch.empty(0))
            index = torch.searchsorted(self._born.rows, live)
            index = index.clamp(max=len(self._born.rows) - 1)
            if not torch.equal(self._born.rows[index], live):
                self.memory.embeddings(at)  # raises RevisionGoneError, which tells what was dropped
            return Remembered(live, self._embedding.rows[index], self._prompt.rows[index],
                              self._nearest.rows[index])

    def _follow(self) -> None:
        last = self.memory.revision
        if last < self._revision:
            self._clear()  # the database was replaced
        new = [entry for entry in self.memory.entries(after=self._revision, upto=last)
               if entry.embedding is not None]
        if new:
            self._extend(new)
        self._revision = last

    def _extend(self, new: Sequence[Entry]) -> None:
        no_prompt = torch.zeros(PROMPT_DIM)
        self._born.extend(torch.tensor([entry.revision for entry in new]))
        self._embedding.extend(torch.stack([entry.embedding for entry in new]))
        self._prompt.extend(torch.stack([
            no_prompt if e.prompt_embedding is None else e.prompt_embedding for e in new]))
        self._nearest.extend(torch.tensor([
            torch.inf if (nearest := entry.settings.get(NEAREST)) is None else nearest
            for entry in new]))
