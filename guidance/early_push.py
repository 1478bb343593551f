"""Pushes that reach as far at high noise as at low.

By Tweedie's formula x0-hat follows x_t by dx0/dx_t = (a / s^2) Cov[x0 | x_t]; with data of unit
variance that is a / (a^2 + s^2), which vanishes as noise grows (Song et al., PiGDM, 2023, use the
same approximation). So where noise is high a shift of x_t by a times the wanted displacement of x0
hardly moves x0-hat, and models that settle everything in their first steps are pushed too late.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .limiter import per_sample_norm
from .noise_level import NoiseLevel

LEAST_SIGNAL = 1e-3  # below it the gain stays: every push is at its limit there
LOOK_STEPS = 10  # in runs of at most so many steps a push that begins at the second comes too late


def early_gain(level: NoiseLevel) -> Tensor:
    """`[batch]`, float32; (a^2 + s^2) / a, the shift of x_t for one unit of x0-hat."""
    signal, noise = level.signal.float(), level.noise.float()
    return (signal ** 2 + noise ** 2) / signal.clamp(min=LEAST_SIGNAL)


def turned(noise: Tensor, shift: Tensor) -> Tensor:
    """The noise after a shift, `[batch, ...]`, as long as before: what is not as long as noise
    should be, models take for signal."""
    moved = noise + shift
    length = per_sample_norm(moved).clamp(min=torch.finfo(torch.float32).tiny)
    return moved * (per_sample_norm(noise) / length).view(-1, *[1] * (noise.ndim - 1))
