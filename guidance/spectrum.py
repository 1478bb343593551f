"""What the directions of a set of features tell: Vendi score, mean cosine, spread, and a map.

Memory grows with the number of pictures, or with the square of the number of features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

NO_EIGENVALUE = 1e-12
CHUNK = 4096


def vendi(features: Tensor, q: float = 1.0) -> float:
    """The Vendi score, 1 to n: exp of the Renyi entropy of order q of the eigenvalues of K / n, K
    the cosine similarities (Friedman and Dieng, 2210.02410, eq. 2; Pasarkar and Dieng, 2310.12952).

    The smaller of K / n and the features' second moments is decomposed: both have the same
    eigenvalues but for zeros.
    """
    n, dim = len(features), features.shape[1] + 1
    if n <= dim:
        unit = torch.cat([*_unit_chunks(features)])
        matrix = unit @ unit.T
    else:
        matrix = torch.zeros(dim, dim, dtype=torch.float64)
        for unit in _unit_chunks(features):
            matrix.addmm_(unit.T, unit)
    values = torch.linalg.eigvalsh(matrix / n)
    values = values[values > NO_EIGENVALUE]
    values /= values.sum()
    if q == 1:
        return math.exp(-float((values * values.log()).sum()))
    if math.isinf(q):
        return 1 / float(values.max())
    return math.exp(float(torch.logsumexp(q * values.log(), 0)) / (1 - q))


def mean_cosine(features: Tensor) -> float | None:
    """Mean cosine similarity of two pictures, over all pairs; None for a single picture."""
    n = len(features)
    if n < 2:
        return None
    total = sum(unit.sum(dim=0) for unit in _unit_chunks(features))
    return float(total.square().sum() - n) / (n * (n - 1))


def _unit_chunks(features: Tensor) -> Iterator[Tensor]:
    """`[chunk, dim + 1]`, of length 1. A vector of zeros has no direction, and becomes one of its
    own: equal to others of zeros, and unlike all else."""
    for chunk in features.split(CHUNK):
        chunk = chunk.double()
        nothing = (chunk == 0).all(dim=1, keepdim=True)
        yield functional.normalize(torch.cat([chunk, nothing], dim=1), eps=0.0)


def spread(features: Tensor) -> float | None:
    """Root mean square distance of two pictures, over all pairs; None for a single picture."""
    n = len(features)
    if n < 2:
        return None
    mean = features.mean(dim=0, dtype=torch.float64)
    squared = sum(float((chunk.double() - mean).square().sum()) for chunk in features.split(CHUNK))
    return math.sqrt(2 * squared / (n - 1))


def map_of(features: Tensor) -> Tensor:
    """The first two principal components `[n, 2]`; zeros where there is nothing to tell apart."""
    mean = features.mean(dim=0, dtype=torch.float64)
    n, dim = features.shape
    if n > dim:
        moments = torch.zeros(dim, dim, dtype=torch.float64)
        for chunk in features.split(CHUNK):
            centred = chunk.double() - mean
            moments.addmm_(centred.T, centred)
        axes = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :2]
    else:
        axes = torch.linalg.svd(features.double() - mean, full_matrices=False).Vh[:2].T
    axes = torch.where(axes.sum(dim=0) < 0, -axes, axes)  # else the map may turn over at a whim
    place = torch.cat([(chunk.double() - mean) @ axes for chunk in features.split(CHUNK)])
    return functional.pad(place, (0, 2 - place.shape[1]))
