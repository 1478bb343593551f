"""Boost and skip: rare images by a change of where sampling starts.

Um, Kim and Ye, "Boost-and-Skip: A Simple Guidance-Free Diffusion for Minority Generation", ICML
2025 (2502.06516). The initial noise is multiplied by gamma, and the first steps are left out, so
that the model does not undo it. The published code does so in the variance-preserving process:
x_vp = gamma n at the level of the first step that is taken. It also keeps x0-hat of pixel models
between -1 and 1, without which a model that never saw such noise leaves it in the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .noise_level import NoiseLevel


def boost(noise: Tensor, gamma: float, level: NoiseLevel | None) -> Tensor:
    """The noise n `[batch, ...]` for a host that makes x_t = s n: gamma n in the
    variance-preserving process.

    level: `[1]`, where the run now starts; None where it starts at the highest noise as before,
    which the host's own scaling allows for. The very same where nothing is to change.
    """
    if level is not None:
        gamma = gamma * ((level.signal ** 2 + level.noise ** 2).sqrt() / level.noise).item()
    return noise if gamma == 1 else noise * gamma


def begins_at_highest_noise(first_sigma: float, highest_sigma: float) -> bool:
    """The host's own rule."""
    return first_sigma >= highest_sigma * (1 - 1e-5)


def refusal(noise: Tensor, steps: int, skip: int, first_sigma: list[float], highest_sigma: float,
            masked: bool) -> str | None:
    """Why a run of so many steps is left as it is, if it is. first_sigma: where it begins, empty
    for a run without a schedule."""
    if not first_sigma:
        return "Nothing done: the run has no steps."
    if masked:
        return ("Nothing done: this run keeps part of an image (a mask), and boosted noise would "
                "spoil the seam. Use the model without Boost and Skip here.")
    if not torch.any(noise):
        return ("Nothing done: this run adds no noise of its own; it goes on with another's. The "
                "run that begins is the one to boost.")
    if not begins_at_highest_noise(first_sigma[0], highest_sigma):
        return (f"Nothing done: this run begins at sigma {first_sigma[0]:.4g}, part of the way; "
                f"the model's highest noise is {highest_sigma:.4g}. Set denoise to 1, and a "
                "scheduler that begins at the highest noise (normal, simple, karras).")
    if skip >= steps:
        return (f"Nothing done: skip is {skip}, but the run has {steps} "
                f"{'step' if steps == 1 else 'steps'}. Set skip lower, or take more steps.")
    return None
