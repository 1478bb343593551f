"""A memory's samples as guidance reads them: what is needed of them, and no more, follows the log.

Which samples live at which revision is kept in RAM, in 8 bytes a sample. What they hold is read
from the log when it is asked for: by the net only what is new, as a whole by the exact kernel, and
only then it stays in RAM.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sqlalchemy import Row
from torch import Tensor

from ..prompt import PROMPT_DIM
from . import fates
from .database import Database
from .errors import RevisionGoneError
from .log import Memory
from .schema import STILL_LIVE

NEAREST = "nearest"  # in a sample's settings: distance to the nearest sample before it
RECENT = 10_000  # samples whose distances a new one is compared with
SMALL = 10_000  # up to so many samples are kept in RAM, whoever asks


class Contents(NamedTuple):
    """embedding: `[n, dim]`; prompt: `[n, PROMPT_DIM]`, zeros where a sample has none."""

    embedding: Tensor
    prompt: Tensor


@dataclass(frozen=True)
class Remembered:
    """The samples alive at one revision, in the order they came.

    revisions: `[n]`; revision: the one they are alive at; read: the contents of those from one
    index up to another; some: of those with these indices, which ascend; recent: the `nearest` of
    at most so many of the newest; ages: how many samples were recorded after each, `[n]`.
    """

    revisions: Tensor
    revision: int
    read: Callable[[int, int], Contents]
    some: Callable[[Tensor], Contents]
    recent: Callable[[int], Tensor]
    ages: Callable[[], Tensor]

    def __len__(self) -> int:
        return len(self.revisions)

    @property
    def dim(self) -> int:
        """Of the embeddings; 0 where there is none."""
        return self.read(0, 1).embedding.shape[1]

    @property
    def embedding(self) -> Tensor:
        """`[n, dim]`, of all; `[0, 0]` where there is none."""
        return self.read(0, len(self)).embedding

    @property
    def prompt(self) -> Tensor:
        """`[n, PROMPT_DIM]`, of all; `[0, 0]` where there is none."""
        return self.read(0, len(self)).prompt

    @property
    def nearest(self) -> Tensor:
        """`[m]`: the distance of each of the RECENT newest samples to the nearest that was there
        before it, infinite for the first."""
        return self.recent(RECENT)


class GrowingTensor:
    """Rows that are appended. Capacity grows by an eighth, so that appending costs the same however
    many there are."""

    def __init__(self, start: Tensor | None = None):
        self._buffer = start
        self._length = 0 if start is None else len(start)

    def extend(self, rows: Tensor) -> None:
        needed = self._length + len(rows)
        if self._buffer is None or needed > len(self._buffer):
            grown = rows.new_empty(max(self._length * 9 // 8, needed), *rows.shape[1:])
            if self._buffer is not None:
                grown[:self._length] = self.rows
            self._buffer = grown
        self._buffer[self._length:needed] = rows
        self._length = needed

    def __len__(self) -> int:
        return self._length

    @property
    def rows(self) -> Tensor:
        """`[n, ...]`, a view; there must have been some, or a start."""
        return self._buffer[:self._length]


class Bank:
    """Reads a log once, and from then on only its new rows. Safe to share between threads."""

    def __init__(self, memory: Memory):
        self.memory = memory
        self._lock = threading.RLock()
        self._clear()

    def _clear(self) -> None:
        self._revision = 0
        with torch.inference_mode(False):
            self._born, self._gone = (GrowingTensor(torch.empty(0, dtype=torch.int32))
                                      for _ in range(2))
        self._kept: tuple[GrowingTensor, ...] = ()  # revision, embedding, prompt
        self._distances: dict[int, float] = {}  # `nearest` by revision

    def at(self, revision: int | None = None, left: bool = False) -> Remembered:
        """What the memory holds at a revision (default: the last); left: of that, what it still
        holds now.

        Raises RevisionError, and RevisionGoneError where a sample's data was dropped.
        """
        with self._lock, torch.inference_mode(False):
            self._follow()
            at = self._revision if revision is None else revision
            if not 0 <= at <= self._revision:
                self.memory.live(at)  # raises RevisionError, which tells what there is
            born, gone = self._born.rows, self._gone.rows
            alive = (born <= at) & (gone > at if not left else gone == STILL_LIVE)
            if bool((gone[alive] != STILL_LIVE).any()) and fates.any_dropped(*self._log, at):
                self.memory.embeddings(at)  # raises RevisionGoneError, which tells what was dropped
            revisions = born[alive].long()
            return Remembered(revisions, at,
                              lambda first, last: self._contents(revisions[first:last]),
                              lambda index: self._contents(revisions[index]),
                              lambda count: self._nearest(revisions[-count:]),
                              lambda: int((born <= at).sum()) - 1 - alive.nonzero()[:, 0])

    @property
    def _log(self) -> tuple[Database, str]:
        return self.memory._database, self.memory.name

    def _follow(self) -> None:
        if self.memory.revision < self._revision:
            self._clear()  # the database was replaced
        found = fates.fates(*self._log, after=self._revision)
        for revision, gone in found.forgotten.items():
            index = torch.searchsorted(self._born.rows, torch.tensor(
                [number for number in gone if number <= self._revision], dtype=torch.int32))
            self._gone.rows[index] = revision
        self._born.extend(torch.from_numpy(found.born))
        self._gone.extend(torch.from_numpy(found.gone))
        self._revision = found.last

    def _contents(self, revisions: Tensor) -> Contents:
        """Of samples `[n]` that are alive at some revision, ascending."""
        if len(revisions) == 0:
            return Contents(torch.empty(0, 0), torch.empty(0, 0))
        with self._lock, torch.inference_mode(False):
            if not self._kept and len(revisions) <= SMALL < len(self._born):
                held, embedding, prompt = self._read_these(revisions)
            else:
                held, embedding, prompt = self._keep()
            index: Any = torch.searchsorted(held, revisions.int()).clamp(max=max(len(held) - 1, 0))
            if len(held) == 0 or not torch.equal(held[index], revisions.int()):
                raise RevisionGoneError(
                    f'Samples of memory "{self.memory.name}" were dropped while they were read, to '
                    "keep it below its cap. Run it again.")
            if int(index[-1]) - int(index[0]) + 1 == len(index):
                index = slice(int(index[0]), int(index[-1]) + 1)  # a view, not a copy
            return Contents(embedding[index], prompt[index])

    def _keep(self) -> tuple[Tensor, ...]:
        """Revisions and contents of all samples, from now on in RAM."""
        if not self._kept or len(self._kept[0]) == 0:
            self._kept = tuple(map(GrowingTensor, self._read(1, self._revision)))
        elif (last := int(self._kept[0].rows[-1])) < self._revision:
            found = self._read(last + 1, self._revision)
            if len(found[0]):
                for part, new in zip(self._kept, found, strict=True):
                    part.extend(new)
        return tuple(part.rows for part in self._kept)

    def _read_these(self, wanted: Tensor) -> tuple[Tensor, ...]:
        """Those of the samples with these revisions, ascending, and perhaps of some in between."""
        first, last = int(wanted[0]), int(wanted[-1])
        if last - first < 2 * len(wanted):
            return self._read(first, last)
        return _as_tensors(fates.some_contents(*self._log, wanted.tolist()), len(wanted))

    def _read(self, first: int, last: int) -> tuple[Tensor, ...]:
        """Revisions `[n]` and contents of the samples from one revision to another, as stored."""
        most = int(((self._born.rows >= first) & (self._born.rows <= last)).sum())
        return _as_tensors(fates.contents(*self._log, first, last), most)

    def _nearest(self, revisions: Tensor) -> Tensor:
        """`[n]`, of samples by revision, ascending."""
        with self._lock, torch.inference_mode(False):
            numbers = revisions.tolist()
            unknown = [number for number in numbers if number not in self._distances]
            if unknown:
                found = fates.settings(*self._log, unknown[0], unknown[-1])
                self._distances |= {
                    number: torch.inf if (value := one.get(NEAREST)) is None else value
                    for number, one in found.items()}
            return torch.tensor([self._distances[number] for number in numbers])


def _as_tensors(pages: Iterable[Sequence[Row]], most: int) -> tuple[Tensor, ...]:
    """Revisions `[n]` and contents of at most so many samples."""
    revisions, embedding, count = np.empty(most, np.int32), None, 0
    prompt = np.zeros((most, PROMPT_DIM), np.float32)
    for page in pages:
        if embedding is None and page:
            embedding = np.empty((most, len(page[0].embedding) // 4), np.float32)
        for row in page:
            revisions[count] = row.revision
            embedding[count] = np.frombuffer(row.embedding, "<f4")
            if row.prompt_embedding is not None:
                prompt[count] = np.frombuffer(row.prompt_embedding, "<f2")
            count += 1
    embedding = np.empty((0, 0), np.float32) if embedding is None else embedding
    return tuple(torch.from_numpy(part[:count]) for part in (revisions, embedding, prompt))
