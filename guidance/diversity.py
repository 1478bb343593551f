"""How diverse a set of images is, and how it covers a reference set, from their features.

All of it works in blocks: memory grows with the number of images, not with its square. Numbers
agree with scikit-learn (LOF), PyOD (AvgkNN: KNN with method "mean") and prdc.

    python -m guidance.diversity FOLDER [--reference FOLDER] [--json FILE]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .neighbours import Tick, nearest, silent, squared_blocks
from .spectrum import mean_cosine, spread, vendi

STRICT = 1 - 1e-9  # a point on a ball's surface is outside, however distances were rounded
SAME_PICTURE = 0.05  # of the usual distance, `spread`, up to which two images are one


@dataclass(frozen=True, kw_only=True)
class Settings:
    """k_knn, k_lof, k_manifold: neighbours that count for AvgkNN, LOF, and precision to coverage;
    vendi_q: order of the Vendi score, larger for more weight on what is frequent."""

    k_knn: int = 5
    k_lof: int = 20
    k_manifold: int = 5
    vendi_q: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Manifolds:
    """Shares of balls hit (`prdc`); None: too few images in a set."""

    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None


@dataclass(frozen=True, kw_only=True)
class Against:
    """A set `[n]` compared with a reference `[m]`. nearest: `[n]`, distance to the reference;
    avg_knn, lof: `[n]`, by neighbours in the reference; own_*: `[m]`, the reference's own. None:
    too few images."""

    count: int
    nearest: Tensor
    avg_knn: Tensor | None
    own_avg_knn: Tensor | None
    lof: Tensor | None
    own_lof: Tensor | None
    manifolds: Manifolds


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """What `measure` finds. nearest, neighbour: `[n]`, distance and index of the nearest other
    image; avg_knn, lof: `[n]`; spread: root mean square distance of two images; cosine: mean of
    two images. None: too few images."""

    settings: Settings
    count: int
    dim: int
    nearest: Tensor | None
    neighbour: Tensor | None
    avg_knn: Tensor | None
    lof: Tensor | None
    spread: float | None
    vendi: float
    cosine: float | None
    against: Against | None

    @property
    def same(self) -> float:
        """The distance up to which two images are called the same."""
        return SAME_PICTURE * (self.spread or 0.0)

    @property
    def twins(self) -> int:
        """How many images have another one that is the same."""
        return 0 if self.nearest is None else int((self.nearest <= self.same).sum())


def measure(features: Tensor, reference: Tensor | None = None, settings: Settings | None = None,
            tick: Tick = silent) -> Diversity:
    """Everything about the features `[n, dim]`, n > 0, and a reference `[m, dim]`, all finite.

    tick: called with steps done, `measure_steps` in all. Raises ValueError if dim differs.
    """
    settings = settings or Settings()
    n = len(features)
    ks = (1, settings.k_knn, settings.k_lof, settings.k_manifold)
    distance = neighbour = None
    if n > 1:
        distance, neighbour = nearest(features, None, min(max(ks), n - 1), tick)
    else:
        tick(n)
    against = None
    if reference is not None and len(reference):
        if reference.shape[1] != features.shape[1]:
            raise ValueError(f"The images have {features.shape[1]} features, the reference has "
                             f"{reference.shape[1]}. Take both from one feature extractor.")
        against = _against(features, distance, reference, settings, tick)
    return Diversity(
        settings=settings, count=n, dim=features.shape[1],
        nearest=None if distance is None else distance[:, 0],
        neighbour=None if neighbour is None else neighbour[:, 0],
        avg_knn=_avg_knn(distance, settings.k_knn),
        lof=_own_lof(distance, neighbour, settings.k_lof),
        spread=spread(features), vendi=vendi(features, settings.vendi_q),
        cosine=mean_cosine(features), against=against)


def measure_steps(count: int, reference: int) -> int:
    """How many steps `measure` ticks."""
    return count + (2 * count + reference if reference else 0)


def _against(features: Tensor, distance: Tensor | None, reference: Tensor, settings: Settings,
             tick: Tick) -> Against:
    m, k_lof = len(reference), settings.k_lof
    most = max(1, settings.k_knn, k_lof, settings.k_manifold)
    own = own_index = None
    if m > 1:
        own, own_index = nearest(reference, None, min(most, m - 1), tick)
    else:
        tick(m)
    to, index = nearest(features, reference, min(most, m), tick)
    lof = own_lof = None
    if _reach(own) >= k_lof:
        lrd = reachability_density(own, own_index, own, k_lof)
        own_lof = lof_scores(lrd, lrd, own_index, k_lof)
        lof = lof_scores(reachability_density(to, index, own, k_lof), lrd, index, k_lof)
    k = settings.k_manifold
    manifolds = prdc(reference, features, own[:, k - 1] if _reach(own) >= k else None,
                     distance[:, k - 1] if _reach(distance) >= k else None, k, tick)
    return Against(count=m, nearest=to[:, 0], avg_knn=_avg_knn(to, settings.k_knn),
                   own_avg_knn=_avg_knn(own, settings.k_knn), lof=lof, own_lof=own_lof,
                   manifolds=manifolds)


def _reach(distance: Tensor | None) -> int:
    """How many neighbours are known."""
    return 0 if distance is None else distance.shape[1]


def _avg_knn(distance: Tensor | None, k: int) -> Tensor | None:
    """AvgkNN `[n]` (Angiulli and Pizzuti, 2002, as a mean): mean distance to the k nearest."""
    return distance[:, :k].mean(dim=1) if _reach(distance) >= k else None


def _own_lof(distance: Tensor | None, neighbour: Tensor | None, k: int) -> Tensor | None:
    if _reach(distance) < k:
        return None
    lrd = reachability_density(distance, neighbour, distance, k)
    return lof_scores(lrd, lrd, neighbour, k)


def reachability_density(distance: Tensor, neighbour: Tensor, among: Tensor, k: int) -> Tensor:
    """`[n]`: 1 / mean_o max(k-distance(o), d(p, o)) over the k nearest o (Breunig et al., 2000,
    definitions 5 and 6).

    distance, neighbour: `[n, >= k]`, of the points; among: `[m, >= k]`, distances of those that
    `neighbour` counts to their own nearest.
    """
    reach = torch.maximum(distance[:, :k], among[:, k - 1][neighbour[:, :k]])
    return 1 / (reach.mean(dim=1) + 1e-10)  # as scikit-learn: copies are very dense, not infinitely


def lof_scores(density: Tensor, among: Tensor, neighbour: Tensor, k: int) -> Tensor:
    """LOF `[n]`: the neighbours' density over a point's own (Breunig et al., 2000, definition 7).
    density: `[n]`; among: `[m]`, of those that `neighbour` `[n, >= k]` counts."""
    return among[neighbour[:, :k]].mean(dim=1) / density


def prdc(real: Tensor, fake: Tensor, real_radius: Tensor | None, fake_radius: Tensor | None,
         k: int, tick: Tick = silent) -> Manifolds:
    """Precision and recall (Kynkaanniemi et al., 2019, eq. 1 and 2), density and coverage (Naeem
    et al., 2020, eq. 3 and 4), as prdc computes them.

    real: `[m, dim]`; fake: `[n, dim]`; real_radius: `[m]`, fake_radius: `[n]`: distance of each
    image to the k-th nearest other one of its set, None where there are fewer.
    """
    hit = torch.zeros(len(fake), dtype=torch.int64)  # real balls that a fake image lies in
    covered = torch.zeros(len(real), dtype=torch.bool)  # real balls with a fake image inside
    recalled = torch.zeros(len(real), dtype=torch.bool)  # real images inside a fake ball
    for rows, columns, squared in squared_blocks(fake, real, tick):
        if real_radius is not None:
            inside = squared < real_radius[columns].square() * STRICT
            hit[rows] += inside.sum(dim=1)
            covered[columns] |= inside.any(dim=0)
        if fake_radius is not None:
            recalled[columns] |= (squared < fake_radius[rows, None].square() * STRICT).any(dim=0)
    found = {}
    if real_radius is not None:
        found |= {"precision": _share(hit > 0), "density": float(hit.double().mean()) / k,
                  "coverage": _share(covered)}
    if fake_radius is not None:
        found["recall"] = _share(recalled)
    return Manifolds(**found)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def closest_pairs(found: Diversity, most: int) -> list[tuple[int, int, float]]:
    """(index, index, distance) of the nearest neighbours that are closest, each image once."""
    if found.nearest is None:
        return []
    pairs, used = [], set()
    for i in found.nearest.sort(stable=True).indices.tolist():
        j = int(found.neighbour[i])
        if not {i, j} & used:
            pairs.append((min(i, j), max(i, j), float(found.nearest[i])))
            used |= {i, j}
        if len(pairs) == most:
            break
    return pairs


if __name__ == "__main__":
    import sys

    from .diversity_command import main

    sys.exit(main())
