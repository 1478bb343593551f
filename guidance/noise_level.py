"""The noise level of a sample, in terms that every model family shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseLevel:
    """x_t = signal * x0 + noise * n with n ~ N(0, I); both `[batch]`."""

    signal: Tensor
    noise: Tensor

    @classmethod
    def variance_exploding(cls, sigma: Tensor) -> NoiseLevel:
        """EPS, V and EDM models as samplers see them: x_t = x0 + sigma * n."""
        return cls(torch.ones_like(sigma), sigma)

    @classmethod
    def flow(cls, t: Tensor, noise_scale: float = 1.0) -> NoiseLevel:
        """Flow matching: x_t = (1 - t) * x0 + t * noise_scale * n."""
        return cls(1 - t, t * noise_scale)

    @property
    def log_snr(self) -> Tensor:
        """`[batch]`; 2 log(signal / noise), finite also where the signal is 0."""
        smallest = torch.finfo(self.signal.dtype).tiny
        return 2 * (self.signal.clamp(min=smallest).log() - self.noise.clamp(min=smallest).log())

    @property
    def alphas_cumprod(self) -> Tensor:
        """`[batch]`; abar of the variance-preserving process with the same log SNR."""
        return self.signal ** 2 / (self.signal ** 2 + self.noise ** 2)

    @property
    def prior_variance(self) -> Tensor:
        """`[batch]`; r^2 = s^2 / (a^2 + s^2), the variance of x0 given x_t for unit-variance data
        (Song et al., PiGDM, 2023): scales a gradient that was taken at x0 itself."""
        return 1 - self.alphas_cumprod

    def like(self, values: Tensor, x: Tensor) -> Tensor:
        """`[batch]` values shaped to multiply x `[batch, ...]`."""
        return values.view(-1, *[1] * (x.ndim - 1))
