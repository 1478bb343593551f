"""Noise on the condition, in units of its standard deviation: what people use most.

InvokeAI's "Seed Variance Enhancer" (invokeai/app/invocations/z_image_seed_variance_enhancer.py),
after SeedVarianceEnhancer by ChangeTheConstants: uniform noise in [-1, 1], times strength, times
the standard deviation of the embedding, on half of its values. Authors' setting: strength .1, of
which they say "subtle", .5 being "strong"; on one class embedding in place of hundreds of tokens
.1 does next to nothing, so .5 is in the middle of the sweep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.conditions import ConditionPeer, standard

SHARE = 0.5


class ConditioningNoise(ConditionPeer):
    """strength: multiple of the standard deviation. One noise for the whole of a run."""

    def perturbed(self, embedding: Tensor, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(self.run.generator.initial_seed())
        noise = 2 * torch.rand(embedding.shape, generator=generator) - 1
        chosen = torch.rand(embedding.shape, generator=generator) < SHARE
        return embedding + self.strength * standard(embedding)[1] * (noise * chosen).to(embedding)
