"""Pushes that reach as far at high noise as at low, where the image is settled already.

Among the images of a prompt, with mean m and variance v, the embedding of x_t has the variance
a^2 v + s^2: here s is what averaging leaves of the noise. If they are Gaussian, x0-hat follows x_t
by dx0/dx_t = a v / (a^2 v + s^2) (Tweedie), which vanishes as noise grows. So at high noise a shift
of x_t by a times the wanted displacement of x0 hardly moves x0-hat, and models that settle an image
in their first steps, as distilled ones do, are pushed too late. Dividing by that factor helps: the
shift grows by s^2 / (a v). That extra has two bounds:

Where a model does not know yet what is to come, x0-hat is near m, and the extra would decide
nothing but break the image; models that are not distilled are in this state until little noise is
left. And noise that nobody would draw breaks images. So the extra is bounded by the standard
deviation of x_t, and leaves x_t as far from its mean as it was: it turns x_t around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .noise_level import NoiseLevel
from .repulsion import Samples

EARLY = ("auto", "on", "off")
LOOK_STEPS = 10  # in runs of at most so many steps a push that begins at the second comes too late
# Of the variance of finished images, x0-hat's: below the first nothing is settled, at the second
# all of it. At sigma 14.6 `digits` is at .2, its distilled student at 1.
OPEN, SETTLED = 0.5, 0.9
# At strength 1, a shift of x_t may be so many standard deviations of x_t.
DEVIATIONS = 2.0
LEAST_SIGNAL = 1e-3  # below it the gain stays: every push is at its limit there


@dataclass(frozen=True)
class EarlyPush:
    """mean: `[dim]` of the prompt's remembered embeddings; variance: `[]`, mean squared distance
    from it; count: `[]`, of the samples that both come from; always: whether to push also what is
    not settled."""

    mean: Tensor
    variance: Tensor
    count: Tensor
    always: bool = False

    @classmethod
    def away_from(cls, samples: Samples, always: bool = False) -> EarlyPush | None:
        """None for a single sample, which has no spread."""
        if len(samples.centres) < 2:
            return None
        weight = samples.log_weight.softmax(dim=0)
        mean = weight @ samples.centres
        variance = weight @ (samples.centres - mean).square().sum(dim=1)
        count = 1 / weight.square().sum()  # Kish's effective number
        unbiased = variance / (1 - 1 / count).clamp(min=torch.finfo(count.dtype).eps)
        return cls(mean, unbiased.clamp(min=torch.finfo(count.dtype).tiny), count, always)

    def extra(self, denoised: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
        """`[batch]`: by how much to shift x_t, for one unit of x0-hat, beyond the signal itself.

        denoised: embedding of x0-hat, `[batch, dim]`; noise: `[batch]`, root mean square of the
        noise in the embedding of x_t.
        """
        inverse = noise ** 2 / (level.signal.clamp(min=LEAST_SIGNAL) * self.variance)
        return inverse if self.always else self.settled(denoised) * inverse

    def settled(self, denoised: Tensor) -> Tensor:
        """`[batch]`, 0 to 1: how much of an image is decided, by its x0-hat's embedding
        `[batch, dim]`."""
        # The mean of `count` samples is itself off by a share 1 / count of the variance.
        spread = (denoised - self.mean).square().sum(dim=1) / self.variance - 1 / self.count
        return ((spread - OPEN) / (SETTLED - OPEN)).clamp(0, 1)

    def is_settled(self, denoised: Tensor) -> bool:
        """Whether most images of a batch are decided. Waits for the device."""
        return bool(self.settled(denoised).median() > 0)

    def turned(self, x: Tensor, shift: Tensor, level: NoiseLevel, noise: Tensor, strength: float
               ) -> Tensor:
        """A shift of x_t, bounded and turned around the mean; all are embeddings `[batch, dim]`."""
        deviation = (level.signal ** 2 * self.variance + noise ** 2).sqrt()
        length = torch.linalg.vector_norm(shift, dim=1).clamp(min=torch.finfo(shift.dtype).tiny)
        bound = (DEVIATIONS * strength * deviation / length).clamp(max=1)
        before = x - level.signal[:, None] * self.mean
        after = before + bound[:, None] * shift
        kept = (torch.linalg.vector_norm(before, dim=1)
                / torch.linalg.vector_norm(after, dim=1).clamp(min=torch.finfo(x.dtype).tiny))
        return kept[:, None] * after - before
