"""Both guidances' pushes in closed form, made without the code that makes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Direction:
    """A classifier in closed form: log p(1 | x_t) = log sigmoid(a <v, x_vp> / 20), where the
    direction v is made of the place alone and a is the signal of the variance-preserving x_vp."""

    classes, thresholds, log_snr_range = 2, torch.tensor([0.1, 0.2]), (-10.0, 10.0)

    def on(self, device) -> Direction:
        return self

    def check_space(self, space: str) -> None:
        """It knows any."""

    def _odds(self, x_vp: Tensor, log_snr: Tensor) -> Tensor:
        return (log_snr.sigmoid().sqrt() * (x_vp * direction(x_vp)).flatten(1).sum(1)) / 20

    def log_probs(self, x_vp: Tensor, log_snr: Tensor) -> Tensor:
        odds = self._odds(x_vp, log_snr)
        return F.logsigmoid(torch.stack([-odds, odds], dim=1))

    def gradient(self, x_vp: Tensor, log_snr: Tensor) -> Tensor:
        """Of log p(1 | x_t) by x_vp, `[batch, ...]`."""
        factor = (-self._odds(x_vp, log_snr)).sigmoid() * log_snr.sigmoid().sqrt() / 20
        return spread(factor, x_vp) * direction(x_vp)


def direction(x: Tensor) -> Tensor:
    """v for x `[batch, ...]`: the same pattern of -1 to 1 for every image."""
    return torch.arange(x[0].numel(), device=x.device).to(x.dtype).mul(0.7).cos().view(x[:1].shape)


def spread(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))


class Place(NamedTuple):
    """Where an evaluation is: x_t = a x0 + s n, in float64; here: the host's sigma; within: whether
    it lies in the window; certain: whether that cannot be a matter of rounding."""

    x: Tensor
    a: Tensor
    s: Tensor
    here: float
    within: bool
    certain: bool


def signal_and_noise(sampling, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """a and s of x_t = a x0 + s n, `[batch]` each, as the host itself mixes them."""
    one, zero = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (1.0, 0.0))
    a = sampling.noise_scaling(sigma[:1], zero.clone(), one.clone())
    s = sampling.noise_scaling(sigma[:1], one.clone(), zero.clone())
    return a.view(1).expand(len(sigma)), s.view(1).expand(len(sigma))


def away_from(embedding: Tensor, remembered: Tensor, radius: float) -> Tensor:
    """The wanted displacement `[batch, dim]`: as long as P is high, along the gradient of
    log(1 - P), where P = sigmoid(4.5 + log sum exp(-4.5 d^2 / radius^2))."""
    with torch.inference_mode(False), torch.enable_grad():
        e = embedding.clone().requires_grad_()
        squared = (e[:, None] - remembered.clone()).square().sum(2)
        f = (-4.5 * squared / radius ** 2).logsumexp(1)
        gradient, = torch.autograd.grad(F.logsigmoid(-(f + 4.5)).sum(), e)
        length = radius * (f + 4.5).sigmoid()
    return length.detach()[:, None] * F.normalize(gradient, dim=1, eps=1e-300)


def early_extra(embedding: Tensor, x: Tensor, wanted: Tensor, remembered: Tensor, a: Tensor,
                s: Tensor, deviations: float) -> Tensor:
    """What early_push adds to the shift of x_t: `wanted` times s^2 / (a v), as far as x0-hat's
    distance from the mean, squared, is .5 to .9 of the variance v; at most so many deviations of
    x_t, which keeps its distance from the mean. All are embeddings; a, s: `[batch]`."""
    mean = remembered.mean(dim=0)
    v = (remembered - mean).square().sum() / (len(remembered) - 1)
    settled = (embedding - mean).square().sum(1) / v - 1 / len(remembered)
    shift = (((settled - 0.5) / 0.4).clamp(0, 1) * s ** 2 / (a.clamp(min=1e-3) * v))[:, None]
    shift = shift * wanted
    most = deviations * (a ** 2 * v + s ** 2).sqrt()
    shift = shift * (most / shift.norm(dim=1).clamp(min=1e-300)).clamp(max=1)[:, None]
    before = x - a[:, None] * mean
    after = before + shift
    return after * (before.norm(dim=1) / after.norm(dim=1))[:, None] - before


def agree(found: Tensor, expected: Tensor, base: Tensor, relative: float) -> bool:
    """Whether each image's push is the expected one but for a fraction of it, and for the rounding
    of float32, in which it was added to `base`."""
    found, expected, base = (one.double().flatten(1) for one in (found, expected, base))
    rounding = 4e-7 * base.norm(dim=1) if relative else 0.0
    return bool(((found - expected).norm(dim=1) <= relative * expected.norm(dim=1)
                 + rounding).all())
