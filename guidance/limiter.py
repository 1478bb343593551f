"""Bounds a shift of x0, so that one strength means the same on every model."""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample_norm(x: Tensor) -> Tensor:
    """`[batch, ...]` -> `[batch]`, float32."""
    return torch.linalg.vector_norm(x.flatten(1).float(), dim=1)


def limit(shift: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Scales each sample's shift down to norm `most` where it is larger.

    shift: `[batch, ...]`; most: `[batch]`. Returns (the shift, dropped `[batch]` bool): a shift
    with NaN or infinity in it becomes zero and is reported as dropped.
    """
    norm = per_sample_norm(shift)
    dropped = ~torch.isfinite(norm)
    scale = (most / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1)
    view = (-1, *[1] * (shift.ndim - 1))
    bounded = torch.where(dropped.view(view), 0, shift * scale.view(view))
    return bounded, dropped
