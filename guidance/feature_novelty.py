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
        self._now: tuple[Tensor, NoiseLevel] | None = None  # within an evaluation
        self._seen: list[Tensor] = []  # embeddings `[batch, dim]` of this evaluation
        self._active = False
        self._moved: list[tuple[Tensor, ...]] = []
        self._noisier: tuple[Tensor, Tensor] | None = None  # log SNR, embedding: nearest below
        self._cleaner: tuple[Tensor, Tensor] | None = None  # and above the reference

    def _denoise(self, model: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor,
                 level: NoiseLevel, at: Evaluation) -> Tensor:
        if at.looking:
            return model(x)
        self._active = self.pushes(x)
        self._now, self._seen, self._moved = (sigma, level), [], []
        try:
            denoised = at.answered(model(x))
        finally:
            self._now = None
        if self._seen:
            self._keep(level.log_snr, torch.stack(self._seen).mean(dim=0))
        if self._moved:
            self._evaluations.append(tuple(torch.stack(column).amax(dim=0)
                                           for column in zip(*self._moved, strict=True)))
        return denoised

    def adapt(self, activation: Tensor) -> Tensor:
        """The activation `[batch, width, (frames,) height, width]` of the half with the prompt,
        moved away from what is remembered; the very same tensor where nothing is to be moved."""
        if self._now is None:
            return activation
        sigma, level = self._now
        embedding = self.space.embed(activation)
        self._seen.append(embedding)
        if not self._active:
            return activation
        push, probability = self._push(embedding, level)
        within = (sigma >= self.settings.sigma_end) & (sigma <= self.settings.sigma_start)
        norm = per_sample_norm(activation)
        shift, dropped = limit(self.space.push(activation, push),
                               within * FRACTION * self.settings.strength * norm)
        self._moved.append((within, probability, per_sample_norm(shift) / norm, dropped))
        return (activation + shift).to(activation.dtype)

    def _keep(self, log_snr: Tensor, embedding: Tensor) -> None:
        """Keeps the evaluations next to the reference level on both sides, without a wait."""
        below = log_snr <= REFERENCE_LOG_SNR
        least = torch.full_like(log_snr, -torch.inf)
        noisier = self._noisier or (least, embedding)
        cleaner = self._cleaner or (-least, embedding)
        self._noisier = _replaced(noisier, below & (log_snr > noisier[0]), log_snr, embedding)
        self._cleaner = _replaced(cleaner, ~below & (log_snr < cleaner[0]), log_snr, embedding)

    def embedding(self) -> Tensor:
        """`[batch, dim]`: of the images of this run at the reference level, between the two
        evaluations next to it. ValueError if no activation was seen."""
        if self._noisier is None or self._cleaner is None:
            raise ValueError("no activation of the positive prompt was seen in this run. Take away "
                             "what replaces the model's blocks, or set space to latent in Novelty "
                             "Memory, with another name.")
        (low, before), (high, after) = self._noisier, self._cleaner
        share = ((REFERENCE_LOG_SNR - low) / (high - low)).clamp(0, 1)
        share = torch.where(torch.isinf(low), 1.0, torch.where(torch.isinf(high), 0.0, share))
        return torch.lerp(before, after, share[:, None])


def _replaced(kept: tuple[Tensor, Tensor], where: Tensor, log_snr: Tensor,
              embedding: Tensor) -> tuple[Tensor, Tensor]:
    return (torch.where(where, log_snr, kept[0]),
            torch.where(where[:, None], embedding, kept[1]))
