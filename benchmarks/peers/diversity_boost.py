"""DiversityBoost's kind of push: the first x0-hat takes its composition from the noise.

After the description of facok/ComfyUI-DiversityBoost (README, 2026-04): at the first step, the
phases of x0-hat's low frequencies are turned towards those of the noise, by an angle which the
channels share and which tanh caps; high frequencies are removed. Authors' setting: strength 1 (the
most there is), 2 periods, a cap of pi / 2. They advise to raise the number of periods for more
diversity, so that is what the sweep does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.peers.hooks import Peer

TURN = math.pi / 2
ORDER = 6  # of the Butterworth low-pass


def low_pass(height: int, width: int, periods: float) -> Tensor:
    """Share of each frequency that counts as composition, `[height, width]`; the mean does not."""
    cycles_y = torch.fft.fftfreq(height)[:, None] * height
    cycles_x = torch.fft.fftfreq(width)[None] * width
    share = (1 + ((cycles_y ** 2 + cycles_x ** 2) / periods ** 2) ** ORDER) ** -0.5
    share[0, 0] = 0
    return share


def composed(denoised: Tensor, noise: Tensor, periods: float) -> Tensor:
    """x0-hat `[batch, channels, height, width]` with the composition of the noise."""
    share = low_pass(*denoised.shape[-2:], periods).to(denoised)
    image, other = torch.fft.fft2(denoised), torch.fft.fft2(noise)

    def direction(spectrum: Tensor) -> Tensor:
        """The phase that the channels share."""
        return torch.sgn(torch.sgn(spectrum).mean(dim=1, keepdim=True))

    angle = torch.angle(direction(image).conj() * direction(other))
    turned = TURN * torch.tanh(share * angle / TURN)
    return torch.fft.ifft2(image * share * torch.exp(1j * turned)).real


class DiversityBoost(Peer):
    """strength: periods across the image, up to which frequencies are turned; the authors' 2."""

    def denoised(self, guider, model, x: Tensor, step) -> Tensor:
        denoised = model(x)
        return composed(denoised, x, self.strength) if step.index == 0 else denoised
