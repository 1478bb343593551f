"""A radius from the memory itself: how far its samples lie apart, whatever the model's latents.

Of a prompt's samples each has a nearest; the radius is a share of the median of these distances. So
it suits models whose images lie closer together or farther apart, and shrinks as the history grows
denser: then there is less room to push to, and a push that finds none breaks images.

That alone is not enough. Pushes make these distances larger, so the radius, so the pushes: by
itself it left 38 % good images of `digits` at CFG 1. And in many dimensions the nearest is hardly
nearer than all others, of which there are more and more. At high noise x0-hat is a blur near the
samples' mean, where nothing was ever generated; P adds up there over all samples, and all images
would be pushed out of the middle, in no direction that means anything. So the radius is never more
than what gives P a small value there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .repulsion import EDGE, squared_distance

FITTED = 0.0  # in place of a radius
UNKNOWN = 0.18  # where no samples tell
ENOUGH = 4  # samples from which on they tell the radius
LEAST = 0.01  # where nearly all samples are the same
# Of a longer history, samples evenly spaced over it: as many as a full net has units; and those of
# them whose nearest is looked for.
LOOKED_AT, ASKED = 2048, 256


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a radius is in a feature space: the share of the median distance to the nearest, at most
    what gives P this value in the samples' mean; and what it is while there are fewer than ENOUGH
    samples."""

    of_nearest: float
    in_mean: float
    unknown: float


LATENTS = Fit(of_nearest=0.9, in_mean=0.02, unknown=UNKNOWN)
# A radius is a share of the activation that is moved by it, and how much of an activation differs
# from image to image depends on the block (docs/novelty.md): at sigma 2.1 the spread is .23 in the
# middle of the U-Net of `digits`, .12 in the middle of a small DiT, whose residual stream is mostly
# the same for all images. All that is compared there is at one noise level, so no blur.
ACTIVATIONS = Fit(of_nearest=1.0, in_mean=0.9, unknown=0.06)


def fitted_radius(samples: Tensor, fit: Fit, count: float | None = None) -> float:
    """samples: `[n, dim]`, embeddings of one prompt; count: how many samples they stand for, where
    some are means of several."""
    if len(samples) < ENOUGH:
        return fit.unknown
    count = max(len(samples) if count is None else count, 1)
    samples = samples[_spaced(len(samples), LOOKED_AT)]
    centred = samples - samples.mean(dim=0)
    spread = (centred.square().sum() / (len(samples) - 1)).sqrt()
    asked = _spaced(len(samples), ASKED)
    distance = squared_distance(centred[asked], centred)
    distance[torch.arange(len(asked)), asked] = torch.inf
    nearest = distance.min(dim=1).values.median().sqrt()
    # As if all lay as far from the mean as their spread is:
    # logit P = log n + EDGE (1 - (spread / radius)^2).
    most = spread / (1 + (math.log(count) - _logit(fit.in_mean)) / EDGE) ** 0.5
    return max(LEAST, float(torch.minimum(fit.of_nearest * nearest, most)))


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _spaced(count: int, most: int) -> Tensor:
    """Evenly spaced numbers from 0 to count - 1, each once: all of them, or `most`."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()
