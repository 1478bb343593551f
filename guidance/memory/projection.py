"""A map of a memory: every sample as a point of the plane, near ones mostly near each other.

Principal component analysis: the plane is that of the two directions in which the embeddings vary
most (Pearson 1901; found by subspace iteration, Halko et al. 2011, arXiv:0909.4061, algorithm 4.4).
The random start comes from a generator of its own, so no global random state is touched.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from sqlalchemy import ColumnElement, Row
from torch import Tensor

from . import gallery, rows
from .bank import NEAREST
from .database import Database
from .schema import entry, payload

FITTED_ON = 16384  # samples that the directions are found from, at most
GROWTH = 1.125  # by which the samples must have grown, or shrunk, for new directions
COLUMNS = (entry.c.revision, entry.c.settings, payload.c.embedding)
WIDTH, ITERATIONS = 8, 12  # of the subspace iteration
CHUNK = 2000  # rows that are projected at once


@dataclass(frozen=True)
class Axes:
    """mean: `[dim]`; directions: `[dim, 2]`, orthonormal, zeros where the data has fewer; share: of
    the variance that lies in them, 0 to 1."""

    mean: Tensor
    directions: Tensor
    share: float

    def project(self, embedding: Tensor) -> Tensor:
        """`[n, dim]` -> `[n, 2]`."""
        return (embedding - self.mean) @ self.directions


def principal_axes(embedding: Tensor, like: Axes | None = None) -> Axes:
    """The axes of `[n, dim]`, n > 0.

    Signs: those of `like`, so that a map that grows does not flip; without it the largest
    component of a direction is positive.
    """
    mean = embedding.mean(0)
    centred = embedding - mean
    total = float(centred.square().sum())
    width = min(WIDTH, *centred.shape)
    basis = torch.randn(centred.shape[1], width, generator=torch.Generator().manual_seed(0))
    for _ in range(ITERATIONS):
        basis, _ = torch.linalg.qr(centred.T @ (centred @ basis))
    _, spread, rotation = torch.linalg.svd(centred @ basis, full_matrices=False)
    found = (basis @ rotation.T)[:, :2] * (spread[:2] > 0)
    directions = torch.zeros(centred.shape[1], 2)
    directions[:, :found.shape[1]] = found
    reference = directions if like is None else like.directions
    agreement = (directions * reference).sum(0)
    if like is None:
        agreement = directions.gather(0, directions.abs().argmax(0, keepdim=True))[0]
    directions *= torch.where(agreement < 0, -1.0, 1.0)
    share = float(spread[:2].square().sum()) / total if total > 0 else 0.0
    return Axes(mean, directions, min(share, 1.0))


@dataclass(frozen=True)
class Points:
    """The live samples at `revision`: numbers int32 `[n]`, ascending; points float32 `[n, 2]`;
    nearest float32 `[n]`, the distance to the nearest sample before each, infinite for the first;
    share: of the variance that the map shows."""

    revision: int
    numbers: np.ndarray
    points: np.ndarray
    nearest: np.ndarray
    share: float


class MemoryMap:
    """The map of one memory. Reads a log once, and from then on only its new rows, until the memory
    has grown enough for new directions. Safe to share between threads.

    Holds 16 bytes a sample; while it finds directions, FITTED_ON embeddings.
    """

    def __init__(self, database: Database, name: str):
        self._database, self._name = database, name
        self._lock = threading.Lock()
        self._axes: Axes | None = None
        self._fitted_on = 0
        self._known: Points | None = None

    def latest(self) -> Points:
        """The map at the latest revision."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            revision, numbers = gallery.live_numbers(self._database, self._name)
            if self._known is None or self._known.revision != revision:
                self._known = self._follow(revision, numbers)
            return self._known

    def _follow(self, revision: int, numbers: np.ndarray) -> Points:
        if len(numbers) == 0:
            self._axes, self._fitted_on = None, 0
            return Points(revision, numbers, np.empty((0, 2), np.float32),
                          np.empty(0, np.float32), 0.0)
        known = self._known
        replaced = known is not None and known.revision > revision
        grown = not self._fitted_on / GROWTH <= len(numbers) <= self._fitted_on * GROWTH
        if replaced:
            self._axes = None
        if replaced or grown or known is None:
            self._fit(revision, len(numbers))
            known = None
        kept = np.isin(known.numbers, numbers) if known else np.empty(0, bool)
        parts: list[tuple] = (
            [(known.numbers[kept], known.points[kept], known.nearest[kept])] if known else [])
        parts += self._read(revision, after=known.revision if known else 0)
        numbers, points, nearest = map(np.concatenate, zip(*parts, strict=True))
        return Points(revision, numbers, points, nearest, self._axes.share)

    def _fit(self, revision: int, count: int) -> None:
        stride = -(-count // FITTED_ON)
        chosen = entry.c.revision % stride == 0 if stride > 1 else True
        found = [row.embedding for row in self._rows(revision, chosen)]
        if not found:  # no number of so few is a multiple: take all
            found = [row.embedding for row in self._rows(revision)]
        self._axes = principal_axes(_tensor(found), self._axes)
        self._fitted_on = count

    def _read(self, revision: int, after: int) -> Iterator[tuple[np.ndarray, ...]]:
        """(numbers, points, nearest) of the live samples after a number, in chunks."""
        rows_left = self._rows(revision, after=after)
        while chunk := list(islice(rows_left, CHUNK)):
            yield self._chunk(chunk)

    def _chunk(self, found: list[Row]) -> tuple[np.ndarray, ...]:
        nearest = [json.loads(row.settings).get(NEAREST) for row in found]
        points = self._axes.project(_tensor([row.embedding for row in found]))
        return (np.array([row.revision for row in found], np.int32), points.numpy(),
                np.array([np.inf if one is None else one for one in nearest], np.float32))

    def _rows(self, revision: int, chosen: ColumnElement[bool] | bool = True,
              after: int = 0) -> Iterator[Row]:
        with self._database.read() as connection:
            row = rows.find(connection, self._name)
        condition = rows.alive(revision)
        return rows.stream(self._database, row, COLUMNS,
                           condition if chosen is True else condition & chosen, after)


def _tensor(embeddings: list[bytes]) -> Tensor:
    """`[n, dim]`."""
    return torch.from_numpy(np.frombuffer(b"".join(embeddings), "<f4").copy()).view(
        len(embeddings), -1)
