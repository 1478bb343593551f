"""Bounds a shift of x0, so that one strength means the same on every model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def per_sample_norm(x: Tensor) -> Tensor:
    """`[batch, ...]` -> `[batch]`, float32."""
    return torch.linalg.vector_norm(x.flatten(1).float(), dim=1)


class Limited(NamedTuple):
    """shift: `[batch, ...]`; norm: `[batch]`, of each sample's shift where that is finite; finite:
    `[batch]` bool, a shift with NaN or infinity in it has become zero."""

    shift: Tensor
    norm: Tensor
    finite: Tensor


def limit(shift: Tensor, most: Tensor | None = None) -> Limited:
    """Scales each sample's shift `[batch, ...]` down to norm `most`, `[batch]`, where it is
    larger; None: bounds nothing, and only drops what is not finite."""
    norm = per_sample_norm(shift)
    finite = norm < torch.inf
    view = (-1, *[1] * (shift.ndim - 1))
    if most is not None:
        bounded = torch.minimum(norm, most)
        shift = shift * (bounded / norm.clamp(min=torch.finfo(norm.dtype).tiny)).view(view)
        norm = bounded
    return Limited(torch.where(finite.view(view), shift, 0), norm, finite)
