"""Particle Guidance, in latent space: the samples of a batch repel each other while noisy.

Corso et al., "Particle Guidance: non-I.I.D. Diverse Sampling with Diffusion Models", 2310.13102:
the score gains the gradient of log Phi = -sum_j k(x_i, x_j), with an RBF kernel
k = exp(-d^2 / h), h = median(d)^2 / log(n - 1); for Stable Diffusion while sigma >= 1.

Two adaptations. Its particles are those of one batch; so that it has any effect at batch 1, those
of earlier queue items stay, as they were at the same step. And its coefficient is tied to the size
of the latents (published ones go from 10 to 150 on latents of 16,000 to 260,000 elements, because
the gradient shrinks with their number): `strength` is the coefficient over the number of elements.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.peers.bank import with_mates
from benchmarks.peers.hooks import Peer

SIGMA = 1.0


def repulsion(x: Tensor, others: Tensor) -> Tensor:
    """Gradient of -sum_j exp(-|x - x_j|^2 / h) at x `[elements]`; others: `[particles, elements]`.

    h, from the median of the distances, counts as a constant.
    """
    away = x - others
    squared = away.square().sum(dim=1)
    width = bandwidth(squared)
    return (2 / width * torch.exp(-squared / width)[:, None] * away).sum(dim=0)


def bandwidth(squared: Tensor) -> Tensor:
    """median(d)^2 / log(n - 1) of the squared distances to the n - 1 others; of few, as of 3."""
    return squared.median() / math.log(max(len(squared), 3))


class ParticleGuidance(Peer):
    """strength: coefficient over the number of elements of a latent."""

    keeps_noisy = True

    def denoised(self, guider, model, x: Tensor, step) -> Tensor:
        denoised, flat = model(x), x.flatten(1)
        earlier = flat[:0] if self.bank is None else self.bank.noisy(step.index, x)
        if step.edm < SIGMA or step.a == 0 or len(earlier) + len(x) < 2:
            return denoised
        gradient = torch.stack([repulsion(one, with_mates(earlier, flat, i))
                                for i, one in enumerate(flat)]).view_as(x)
        # eps' = eps - c s grad, and so x0' = x0 + c s^2 / a grad
        return denoised + self.strength * flat.shape[1] * step.s ** 2 / step.a * gradient
