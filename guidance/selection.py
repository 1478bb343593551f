"""Keeps some of many embeddings: those that stand for all the others, those that are farthest from
one another, or those that are new.

Embeddings are `[n, dim]` on the CPU in a feature space's units; distances are Euclidean there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .repulsion import squared_distance

SAME = 1e-3  # distance of two embeddings of one image: rounding, also of an image's 8 bits
MOST_IMAGES = 20_000  # whose distances are 1.6 GB
CELLS = 2 ** 24  # of a distance matrix that are held at once
STARTS, FEW = 10, 1000  # how many starts k-medoids tries, and up to how many images


@dataclass(frozen=True)
class Representatives:
    """kept: indices, ascending; medoid: `n` indices, for each its nearest of the kept ones;
    distance: `[n]`, to that one; apart: of the two kept ones that are nearest to each other."""

    kept: list[int]
    medoid: list[int]
    distance: Tensor
    apart: float

    def report(self, wanted: int) -> str:
        """wanted: how many were asked for."""
        kept, n = len(self.kept), len(self.medoid)
        if kept == n:
            return f"Kept all {n}" + (f": {wanted} were asked for." if wanted > n else ".")
        sizes = [self.medoid.count(i) for i in self.kept]
        return (f"Kept {kept} of {n}; each stands for {min(sizes)} to {max(sizes)} images.\n"
                f"Distance to the one that stands for it: {self.distance.mean():.3g} on average, "
                f"{self.distance.max():.3g} at most"
                + (f"\nThe kept ones are at least {self.apart:.3g} apart" if kept > 1 else ""))


@dataclass(frozen=True)
class Novel:
    """kept: indices, ascending; remembered, repeated: how many were dropped because they are near
    the memory, and near one that was kept."""

    kept: list[int]
    remembered: int
    repeated: int

    def report(self, distance: float) -> str:
        """distance: below which something is too near."""
        kept, n = len(self.kept), len(self.kept) + self.remembered + self.repeated
        if kept == n:
            return f"Kept all {n}: none is too near, below {distance:.3g}."
        reasons = [f"{count} too near to {whom}" for count, whom in (
            (self.remembered, "the memory"), (self.repeated, "an image that was kept")) if count]
        text = f"Kept {kept} of {n}; dropped {' and '.join(reasons)}, below {distance:.3g}."
        return text if kept else f"Nothing kept, so what follows does not run. {text}"


class SelectionError(ValueError):
    """The images cannot be chosen from; the message says what to do."""


def most_different(embedding: Tensor, count: int) -> Representatives:
    """The `count` medoids of `embedding`: the mean distance of all to their nearest is least.

    FasterPAM (Schubert and Rousseeuw, "Fast and Eager k-Medoids Clustering", 2021) from fixed
    starts, so that the same images give the same choice. All are kept where count >= n.
    Raises SelectionError.
    """
    n = len(embedding)
    _check_count(count)
    if count >= n:
        return _all(n)
    if n > MOST_IMAGES:
        raise SelectionError(
            f"There are {n} images, but the distances of more than {MOST_IMAGES} do not fit into "
            "memory. Choose from each part of them first, then from what was kept.")
    kmedoids = _kmedoids()
    distance = distances(embedding)
    found = [kmedoids.fasterpam(distance.numpy(), count, random_state=start, n_cpu=1)
             for start in range(STARTS if n <= FEW else 1)]
    best = min(found, key=lambda result: result.loss)
    return assigned(distance, sorted(int(i) for i in best.medoids))


def assigned(distance: Tensor, kept: Sequence[int]) -> Representatives:
    """Each of `distance` `[n, n]` with its nearest of the kept ones; these with themselves."""
    index = torch.tensor(kept)
    nearest = distance[:, index].min(dim=1)
    medoid, least = index[nearest.indices], nearest.values.clone()
    medoid[index], least[index] = index, 0.0
    between = distance[index][:, index].fill_diagonal_(torch.inf)
    return Representatives([*kept], medoid.tolist(), least, float(between.min()))


def farthest_apart(embedding: Tensor, count: int) -> Representatives:
    """The one of `embedding` that is farthest from the mean, then `count` - 1 times the one that is
    farthest from all kept so far: their least distance is at least half of what any `count` can
    have (Gonzalez, "Clustering to Minimize the Maximum Intercluster Distance", 1985).

    All are kept where count >= n. Raises SelectionError.
    """
    n = len(embedding)
    _check_count(count)
    if count >= n:
        return _all(n)
    one = int(torch.linalg.vector_norm(embedding - embedding.mean(dim=0), dim=1).argmax())
    kept, medoid = [], torch.zeros(n, dtype=torch.int64)
    least, apart = torch.full((n,), torch.inf), torch.inf
    while True:
        distance = torch.linalg.vector_norm(embedding - embedding[one], dim=1)
        nearer = distance < least
        least, medoid = torch.where(nearer, distance, least), medoid.masked_fill(nearer, one)
        least[one], medoid[one] = -1.0, one  # not again, where all that is left are copies
        kept.append(one)
        if len(kept) == count:
            break
        one = int(least.argmax())
        apart = float(least[one])
    return Representatives(sorted(kept), medoid.tolist(), least.clamp(min=0), apart)


def _check_count(count: int) -> None:
    if count < 1:
        raise SelectionError(f"count is {count}; expected at least 1.")


def _all(n: int) -> Representatives:
    return Representatives([*range(n)], [*range(n)], torch.zeros(n), 0.0)


def distances(embedding: Tensor) -> Tensor:
    """`[n, n]`, float32; filled block by block, so that no second matrix is needed."""
    n = len(embedding)
    matrix = torch.empty(n, n)
    for rows in torch.arange(n).split(_rows(n)):
        matrix[rows] = squared_distance(embedding[rows], embedding).sqrt_()
    return matrix.fill_diagonal_(0)


def novel(embedding: Tensor, remembered: Tensor, distance: float) -> Novel:
    """Those of `embedding` not nearer than `distance` to `remembered` `[m, dim]`, nor to one kept
    before, in order. What is the same (SAME) is dropped even where distance is 0.
    """
    def near(other: Tensor) -> Tensor:
        return (other < distance) | (other <= SAME)

    known = near(nearest(embedding, remembered)).tolist()
    kept, repeated = [], 0
    rows = torch.empty_like(embedding)  # the kept ones, in front
    for i, one in enumerate(embedding):
        if known[i]:
            continue
        if near(torch.linalg.vector_norm(rows[:len(kept)] - one, dim=1)).any():
            repeated += 1
            continue
        rows[len(kept)] = one
        kept.append(i)
    return Novel(kept, sum(known), repeated)


def nearest(embedding: Tensor, points: Tensor, own: Tensor | None = None) -> Tensor:
    """`[n]`: distance of each of `embedding` to the nearest of `points` `[m, dim]`, infinite where
    there is none. own: `[n]`, the row of `points` that each of them is, which does not count.
    """
    found = embedding.new_full((len(embedding),), torch.inf)
    if len(points) < (1 if own is None else 2):
        return found
    for rows in torch.arange(len(embedding)).split(_rows(len(points))):
        squared = squared_distance(embedding[rows], points)
        if own is not None:
            squared[torch.arange(len(rows)), own[rows]] = torch.inf
        # The difference itself: the matrix product loses digits where points nearly coincide.
        difference = embedding[rows] - points[squared.argmin(dim=1)]
        found[rows] = torch.linalg.vector_norm(difference, dim=1)
    return found


def percentile_distance(points: Tensor, percentile: float, most: int = 1000) -> float | None:
    """The percentile, 0 to 100, of the distances of `points` `[m, dim]` to their nearest neighbour;
    None where there are fewer than two. Of more than `most` points, that many are asked, evenly
    spaced."""
    if len(points) < 2:
        return None
    asked = torch.linspace(0, len(points) - 1, min(most, len(points))).round().long()
    found = nearest(points[asked], points, own=asked)
    return float(found.double().quantile(percentile / 100))


def _rows(columns: int) -> int:
    return max(1, CELLS // max(1, columns))


def _kmedoids():
    try:
        import kmedoids
    except ImportError as error:
        raise SelectionError(
            "Keep Most Different needs the Python package kmedoids. Stop ComfyUI, run this in a "
            f'terminal, then start it again:\n"{sys.executable}" -m pip install "kmedoids>=0.5"'
        ) from error
    return kmedoids
