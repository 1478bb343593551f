"""Antithetic noise: every second image of a batch starts from the negated noise of the one before.

Jia et al., "Antithetic Noise in Diffusion Models", 2506.06185. It has no setting.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.hooks import Peer


class AntitheticNoise(Peer):
    """strength: 0 or 1, whether it is there."""

    def initial_noise(self, guider, noise: Tensor, scale, sigma: Tensor) -> Tensor:
        return negated(noise)


def negated(noise: Tensor) -> Tensor:
    """`[batch, ...]`, as pairs z, -z; the last of an odd batch is alone."""
    pairs = noise.clone()
    pairs[1::2] = -noise[:len(noise) - 1:2]
    return pairs
