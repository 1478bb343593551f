"""Novelty guidance inside the network: the novelty net as an adapter behind one of its blocks.

After Gwern, "Novelty Nets: Classifier Anti-Guidance" (2024). The net reads the activation h that
leaves the block, says how likely its image was generated before, and moves h along the gradient of
log(1 - P) with respect to h; the rest of the model goes on from there. Nothing is backpropagated
through the model, and the model runs no more often.

Only the half of classifier-free guidance that has the prompt is moved: the guidance scale then
enlarges the difference. Moving the other half does the opposite, and moving both does little (see
docs/novelty.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .evaluation import Evaluation
from .feature_space import REFERENCE_LOG_SNR, FeatureSpace
from .limiter import limit, per_sample_norm
from .noise_level import NoiseLevel
from .novelty import NoveltyRun, NoveltySettings
from .repulsion import Repulsion

# Of the activation's norm that a push may be, at strength 1: half of it at the default strength .3.
# On `digits` at CFG 3 that gave the most distinct good images at the quality of plain sampling.
FRACTION = 5 / 3


class FeatureRun(NoveltyRun):
    """The state of one sampling run. `adapt` is to be called with each activation, from within the
    model that `denoise` calls."""

    of = "activation"

    def __init__(self, space: FeatureSpace, repulsion: Repulsion | None,
                 settings: NoveltySettings):
        super().__init__(space, repulsion, settings)
        self._now: Tensor | None = None  # sigma `[batch]`, within an evaluation
        self._seen: list[Tensor] = []  # embeddings `[batch, dim]` of this evaluation
        self._active = False
        self._moved: list[tuple[Tensor, ...]] = []
        self._kept: list[tuple[NoiseLevel, Tensor]] = []  # embedding of every evaluation

    def _denoise(self, model: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor,
                 level: NoiseLevel, at: Evaluation) -> Tensor:
        if at.looking:
            return model(x)
        self._active = self.pushes(x)
        self._now, self._seen, self._moved = sigma, [], []
        try:
            denoised = at.answered(model(x))
        finally:
            self._now = None
        if self._seen:
            self._kept.append((level, _mean(self._seen)))
        if self._moved:
            self._evaluations.append(_of_all(self._moved))
        return denoised

    def adapt(self, activation: Tensor) -> Tensor:
        """The activation `[batch, width, (frames,) height, width]` of the half with the prompt,
        moved away from what is remembered; the very same tensor where nothing is to be moved."""
        if self._now is None:
            return activation
        sigma = self._now
        pooled = self.space.pooled(activation)
        embedding = self.space.direction(pooled)
        self._seen.append(embedding)
        if not self._active:
            return activation
        push, probability = self._push(embedding)
        within = (sigma >= self.settings.sigma_end) & (sigma <= self.settings.sigma_start)
        norm = per_sample_norm(activation)
        limited = limit(self.space.push(activation, pooled, push),
                        within * (FRACTION * self.settings.strength) * norm)
        self._moved.append((within, probability, limited.norm / norm, limited.finite))
        return (activation + limited.shift).to(activation.dtype)

    def embedding(self) -> Tensor:
        """`[batch, dim]`: of the images of this run at the reference level, between the two
        evaluations next to it. ValueError if no activation was seen."""
        if not self._kept:
            raise ValueError("no activation of the positive prompt was seen in this run. Take away "
                             "what replaces the model's blocks, or limits the prompt to other "
                             "steps; or set space to latent in Novelty Memory, with another name.")
        log_snr = torch.stack([level.log_snr for level, _ in self._kept])
        seen = torch.stack([embedding for _, embedding in self._kept])
        noisier = log_snr <= REFERENCE_LOG_SNR
        low, before = _at(log_snr.where(noisier, -torch.inf).argmax(dim=0), log_snr, seen)
        high, after = _at(log_snr.where(~noisier, torch.inf).argmin(dim=0), log_snr, seen)
        share = ((REFERENCE_LOG_SNR - low) / (high - low)).clamp(0, 1)
        share = torch.where(noisier.all(dim=0), 0.0, torch.where(noisier.any(dim=0), share, 1.0))
        return torch.lerp(before, after, share[:, None])


def _mean(embeddings: list[Tensor]) -> Tensor:
    """Bit for bit the same in any order: several devices answer as they come."""
    if len(embeddings) == 1:
        return embeddings[0]
    return torch.stack(embeddings).sort(dim=0).values.mean(dim=0)


def _at(which: Tensor, log_snr: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample of `[evaluations, batch]` and `[evaluations, batch, dim]` one evaluation."""
    sample = torch.arange(len(which), device=which.device)
    return log_snr[which, sample], seen[which, sample]


def _of_all(areas: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Figures of an evaluation, of those of its areas."""
    if len(areas) == 1:
        return areas[0]
    within, probability, push, finite = map(torch.stack, zip(*areas, strict=True))
    return within[0], probability.amax(dim=0), push.amax(dim=0), finite.all(dim=0)
