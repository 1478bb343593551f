"""Minority score (Um et al., Don't Play Favorites, ICLR 2024): how badly one denoising step
restores an image. Rare images are restored worse.

    l(x0) = E_n d(x0, x0-hat(a x0 + s n))                                   (eq. 6)

The noise level is given as sigma = s / a, which means the same for every model family.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .distances import Distance

SIGMA_OF_SIDE = 0.025
"""The default noise level over the side of the latents. Noise hides a detail by its size, so the
level that tells rare from common grows with the side: the paper's code has 0.6 T for all models,
which is 6.4 at 256 pixels (linear schedule) and 1.4 at 64 (cosine)."""
DRAWS = 5
BATCH = 16

PROBE_VALUES = 4096
SAME_ANSWER = 2e-3
"""Relative difference up to which two answers count as the same model's: above what another
device or kernel changes, below what would show in a score."""


def default_sigma(height: float, width: float) -> float:
    """The noise level for latents of this size: 1.6 for 64 x 64, 6.4 for 256 x 256."""
    return SIGMA_OF_SIDE * math.sqrt(height * width)


def flow_time(sigma: float, noise_scale: float = 1.0) -> float:
    """t of x_t = (1 - t) x0 + t noise_scale n at which noise / signal is sigma."""
    return sigma / (sigma + noise_scale)


def noise_for(content_hash: str, seed: int, draw: int, shape: Sequence[int]) -> Tensor:
    """The noise of one draw for one image, whatever else is scored with it."""
    digest = hashlib.sha256(f"{content_hash}/{seed}/{draw}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(tuple(shape), generator=generator)


@dataclass(frozen=True, kw_only=True)
class MinorityScorer:
    """denoise: (x0, noise) -> x0-hat, both `[batch, channels, ...]` as the sampler sees latents;
    view: latents -> what the distance compares: `images` in [-1, 1], or the latents themselves;
    batch: how many evaluations go together."""

    denoise: Callable[[Tensor, Tensor], Tensor]
    view: Callable[[Tensor], Tensor]
    distance: Distance
    draws: int = DRAWS
    seed: int = 0
    batch: int = BATCH

    @torch.no_grad()
    def scores(self, latents: Tensor, hashes: Sequence[str]) -> Tensor:
        """latents `[n, channels, ...]` and their content hashes -> scores `[n]`, float32, CPU."""
        return self._score(latents, self._restore(latents, hashes))

    @torch.no_grad()
    def answer(self, latents: Tensor) -> tuple[float, ...]:
        """What tells this scorer from one with another model, conditioning, VAE or LPIPS weights:
        the mean score of fixed latents, and values of their x0-hat. Compare by `same_answer`."""
        hashes = [f"probe {i}" for i in range(len(latents))]
        restored = self._restore(latents, hashes)
        values = restored.flatten()
        values = values[::-(-len(values) // PROBE_VALUES)]
        score = self._score(latents, restored).mean()
        return (float(score), *values.float().cpu().tolist())

    def _restore(self, latents: Tensor, hashes: Sequence[str]) -> Tensor:
        """x0-hat `[draws * n, channels, ...]`, the first draw of all images first."""
        pairs = [(i, draw) for draw in range(self.draws) for i in range(len(latents))]
        restored = []
        for start in range(0, len(pairs), self.batch):
            chunk = pairs[start:start + self.batch]
            noise = torch.stack([noise_for(hashes[i], self.seed, draw, latents.shape[1:])
                                 for i, draw in chunk])
            restored.append(self.denoise(latents[[i for i, _ in chunk]], noise.to(latents)))
        return torch.cat(restored)

    def _score(self, latents: Tensor, restored: Tensor) -> Tensor:
        originals = torch.cat([self.view(latents)] * self.draws)
        distances = [self.distance(original, self.view(found)) for original, found in zip(
            originals.split(self.batch), restored.split(self.batch), strict=True)]
        return torch.cat(distances).float().cpu().view(self.draws, -1).mean(0)


def same_answer(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two answers come from the same scorer, as far as a score can tell."""
    if len(one) != len(other):
        return False
    a, b = torch.tensor([one, other], dtype=torch.float64)
    close = (a[1:] - b[1:]).norm() <= SAME_ANSWER * a[1:].norm()
    return bool(close) and abs(one[0] - other[0]) <= SAME_ANSWER * abs(one[0])
