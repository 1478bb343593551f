"""A radius from the memory itself: how far its samples lie apart, whatever the model's latents.

Of a prompt's samples each has a nearest; the radius is a share of the median of these distances. So
it suits models whose images lie closer together or farther apart, and shrinks as the history grows
denser: then there is less room to push to, and a push that finds none breaks images.

But pushes make these distances larger, so the radius, so the pushes: by itself that left 38 % good
images of `digits` at CFG 1, with pushes as long at high noise as at low. So it is never more than a
share of the samples' spread, the root mean square distance from their mean, which pushes hardly
change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .repulsion import squared_distance

FITTED = 0.0  # in place of a radius
UNKNOWN = 0.15  # where no samples tell
ENOUGH = 4  # samples from which on they tell the radius
LEAST = 0.01  # where nearly all samples are the same
# Of a longer history, samples evenly spaced over it: as many as a full net has units; and those of
# them whose nearest is looked for.
LOOKED_AT, ASKED = 2048, 256


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a radius is in a feature space: the share of the median distance to the nearest, at most
    the share of the spread; and what it is while there are fewer than ENOUGH samples."""

    of_nearest: float
    of_spread: float
    unknown: float


# On `digits` at CFG 3 (ten classes, 128 images each, a simulation of the chains of bench novelty)
# these gave 97 distinct good images at 98.3 % good ones; the nearest alone, at .65, .7 and .75: 92,
# 100, 105 at 98.4, 98.1, 96.3 %; the spread alone, at .5 and .55: 99, 105 at 97.3, 96.6 %; fixed
# radii of .15, .17, .19: 93, 99, 102 at 98.2, 97.9, 96.8 %.
LATENTS = Fit(of_nearest=0.7, of_spread=0.5, unknown=UNKNOWN)
# A radius is a share of the activation that is moved by it, and how much of an activation differs
# from image to image depends on the block (docs/novelty.md): at sigma 2.1 the spread is .23 in the
# middle of the U-Net of `digits`, .12 in the middle of a small DiT, whose residual stream is mostly
# the same for all images.
ACTIVATIONS = Fit(of_nearest=0.8, of_spread=0.64, unknown=0.05)


def fitted_radius(samples: Tensor, fit: Fit) -> float:
    """samples: `[n, dim]`, embeddings of one prompt."""
    if len(samples) < ENOUGH:
        return fit.unknown
    samples = samples[_spaced(len(samples), LOOKED_AT)]
    centred = samples - samples.mean(dim=0)
    spread = (centred.square().sum() / (len(samples) - 1)).sqrt()
    asked = _spaced(len(samples), ASKED)
    distance = squared_distance(centred[asked], centred)
    distance[torch.arange(len(asked)), asked] = torch.inf
    nearest = distance.min(dim=1).values.median().sqrt()
    return max(LEAST, float(torch.minimum(fit.of_nearest * nearest, fit.of_spread * spread)))


def _spaced(count: int, most: int) -> Tensor:
    """Evenly spaced numbers from 0 to count - 1, each once: all of them, or `most`."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()
