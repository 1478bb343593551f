"""The samples of a batch push one another, as if all but one were remembered.

Where nothing tells how far apart images lie, the batch itself may. Distilled models settle an
image in their first step: the x0-hat of a batch are as far apart then as its images will be. There
the radius is the one at which P(already generated) of the median x0-hat has a given value. Other
models begin with a blur, and their x0-hat move apart as noise falls: there it stays as it is, since
pushes in proportion to a blur's distances break images. So it does where pushes have led the batch
apart already.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .early_push import OPEN, SETTLED
from .fitted_radius import LEAST
from .repulsion import EDGE, ExactKernel, Repelled, squared_distance

PROBABILITY = 0.33  # of the median sample of the batch
NEWTON_STEPS = 3


class BatchMates:
    """One sampling run. radius: distance below which two samples count as the same; fits: whether
    a settled batch tells it, in a run that starts from pure noise."""

    def __init__(self, radius: float, fits: bool):
        self.radius = radius
        self.fits = fits
        self._at_first: Tensor | None = None  # variance of the first x0-hat, `[]`

    def __call__(self, embedding: Tensor) -> Repelled:
        """For each of `[batch, dim]` with batch >= 2."""
        if not self.fits:
            return repelled(embedding, self.radius)
        share = self._settled(embedding)
        return repelled(embedding, self.radius + share * (batch_radius(embedding) - self.radius))

    def _settled(self, embedding: Tensor) -> Tensor:
        """`[]`, 0 to 1: whether the batch is no farther apart than at its first evaluation."""
        variance = (embedding - embedding.mean(dim=0)).square().sum()
        if self._at_first is None:
            self._at_first = variance
        share = self._at_first / variance.clamp(min=torch.finfo(variance.dtype).tiny)
        return ((share - OPEN) / (SETTLED - OPEN)).clamp(0, 1)


def repelled(embedding: Tensor, radius: float | Tensor) -> Repelled:
    """Each of `[batch, dim]` by the others; radius: a number, or `[]` on the device."""
    others = torch.zeros(len(embedding), len(embedding), device=embedding.device)
    others.fill_diagonal_(-torch.inf)
    in_radii = embedding / radius
    push, probability = ExactKernel(in_radii, others, 1.0)(in_radii)
    return Repelled(push * radius, probability)


def batch_radius(embedding: Tensor) -> Tensor:
    """`[batch, dim]` with batch >= 2 -> `[]`, the median of the radii at which P is PROBABILITY.

    With k = EDGE / radius^2, logit P of a sample is EDGE + log sum_j exp(-k d_j^2), convex and
    falling in k. So Newton's method reaches the root from below, from where all others are equally
    far.
    """
    count = len(embedding)
    centred = embedding - embedding.mean(dim=0)
    squared = squared_distance(centred, centred).clamp(min=(LEAST / 10) ** 2)
    squared = squared.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)
    wanted = EDGE - math.log(PROBABILITY / (1 - PROBABILITY))
    k = (wanted + math.log(count - 1)) / squared.mean(dim=1)
    for _ in range(NEWTON_STEPS):
        exponent = -k[:, None] * squared
        slope = (exponent.softmax(dim=1) * squared).sum(dim=1)
        k = k + (exponent.logsumexp(dim=1) + wanted) / slope
    return (EDGE / k).sqrt().median().clamp(min=LEAST)
