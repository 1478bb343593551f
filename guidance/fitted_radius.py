"""A radius from the memory itself: how far apart its samples lie, whatever the model's latents.

Of the remembered samples of a prompt each has a nearest; the radius is a share of the median of
these distances. So it suits models whose images lie closer together or farther apart, and grows
smaller as the history grows denser: then there is less room to push to, and a push that finds none
breaks images. Above a share of .8 it feeds itself: images pushed farther apart make it larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .repulsion import squared_distance

FITTED = 0.0  # in place of a radius
# Of the median distance to the nearest; by space. On `digits` at CFG 3 (a simulation of the chains
# of docs/novelty.md, ten classes) .65, .7 and .75 gave 92, 100 and 105 distinct good images of 128,
# at 98.4, 98.1 and 96.3 % good ones; fixed radii of .15, .17 and .19: 93, 99, 102 at 98.2, 97.9,
# 96.8 %.
SHARE = 0.7
# While fewer than ENOUGH samples count: few lie far apart, and a radius from their distances broke
# one more image of a hundred.
UNKNOWN, ENOUGH = 0.15, 8
LEAST = 0.01  # where nearly all samples are the same
ASKED = 256  # samples whose nearest is looked for, evenly spaced over the history


def fitted_radius(samples: Tensor, share: float = SHARE) -> float:
    """samples: `[n, dim]`, embeddings of one prompt."""
    if len(samples) < ENOUGH:
        return UNKNOWN
    asked = torch.linspace(0, len(samples) - 1, min(len(samples), ASKED)).long()
    centred = samples - samples.mean(dim=0)
    distance = squared_distance(centred[asked], centred)
    distance[torch.arange(len(asked)), asked] = torch.inf
    return max(LEAST, share * float(distance.min(dim=1).values.median().sqrt()))
