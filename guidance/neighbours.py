"""Nearest neighbours and their distances, in blocks: 50,000 points need bounded memory.

Distances are Euclidean, in float64. A block's come from a matrix product; those of the neighbours
that are kept are computed again from differences, so that copies are exactly 0 apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ROWS, COLUMNS = 512, 8192  # of a block: 32 MB
REFINED = 64  # rows whose neighbours are compared one by one together
SPARE = 4  # candidates beyond k, as products round

Tick = Callable[[int], None]
"""Called with the number of points just done; what it raises ends the work."""


def silent(done: int) -> None:
    """A Tick that tells nobody."""


def squared_blocks(points: Tensor, others: Tensor,
                   tick: Tick = silent) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, squared distances `[rows, columns]`) for `points` `[n, dim]` against `others`
    `[m, dim]`; all columns of some rows, then the next rows."""
    centre = _mean(others)  # small numbers round less
    for top in range(0, len(points), ROWS):
        rows = slice(top, min(top + ROWS, len(points)))
        part = points[rows].double() - centre
        for left in range(0, len(others), COLUMNS):
            columns = slice(left, min(left + COLUMNS, len(others)))
            other = others[columns].double() - centre
            squared = torch.addmm(other.square().sum(1), part, other.T, alpha=-2)
            yield rows, columns, squared.add_(part.square().sum(1, keepdim=True)).clamp_(min=0)
        tick(rows.stop - top)


def nearest(points: Tensor, others: Tensor | None, k: int,
            tick: Tick = silent) -> tuple[Tensor, Tensor]:
    """Distances `[n, k]`, ascending, and indices `[n, k]` of the k nearest of `others` to each of
    `points`; without others, of the other points. Equal distances: the lower index first.

    k: at most the number of points to choose from.
    """
    alone = others is None
    others = points if alone else others
    wanted = min(k + SPARE, len(others) - alone)
    distances = torch.empty(len(points), k, dtype=torch.float64)
    indices = torch.empty(len(points), k, dtype=torch.int64)
    best: list[Tensor] = []
    for rows, columns, squared in squared_blocks(points, others, tick):
        if alone:
            squared.diagonal(rows.start - columns.start).fill_(torch.inf)
        near = squared.topk(min(wanted, squared.shape[1]), dim=1, largest=False)
        found = [near.values, near.indices + columns.start]
        if columns.start > 0:
            joined = [torch.cat(pair, dim=1) for pair in zip(best, found, strict=True)]
            near = joined[0].topk(min(wanted, joined[0].shape[1]), dim=1, largest=False)
            found = [near.values, joined[1].gather(1, near.indices)]
        best = found
        if columns.stop == len(others):
            distances[rows], indices[rows] = _refined(points[rows], others, best[1], k)
    return distances, indices


def _refined(points: Tensor, others: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    candidates = candidates.sort(dim=1).values
    parts = []
    for start in range(0, len(points), REFINED):
        near = others[candidates[start:start + REFINED]].double()
        parts.append((near - points[start:start + REFINED, None].double()).norm(dim=2))
    order = torch.cat(parts).sort(dim=1, stable=True)
    return order.values[:, :k], candidates.gather(1, order.indices[:, :k])


def _mean(points: Tensor) -> Tensor:
    return points.mean(dim=0, dtype=torch.float64)
