"""Noise levels and exact shifts, on data whose posterior is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from guidance.noise_level import NoiseLevel

SIGMAS = (0.03, 0.3, 1.0, 3.0, 14.6, 80.0)


class Mixture:
    """x0 ~ sum_k w_k N(mu_k, v I) in two dimensions, in float64."""

    means = torch.tensor([[-1.0, 0.5], [1.5, 1.0], [0.0, -2.0]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    variance = 0.2

    def _log_joint(self, x: Tensor, a: float, s: float) -> Tensor:
        """`[n, k]`: log p(x_t, k) up to a constant."""
        spread = a ** 2 * self.variance + s ** 2
        return self.weights.log() - (x[:, None] - a * self.means).square().sum(-1) / (2 * spread)

    def log_posterior(self, x: Tensor, a: float, s: float) -> Tensor:
        """`[n, k]`: log p(k | x_t)."""
        return self._log_joint(x, a, s).log_softmax(1)

    def denoise(self, x: Tensor, a: float, s: float) -> tuple[Tensor, Tensor]:
        """E[x0 | x_t] `[n, 2]`, and E[x0 | x_t, k] `[n, k, 2]`."""
        gain = a * self.variance / (a ** 2 * self.variance + s ** 2)
        each = self.means + gain * (x[:, None] - a * self.means)
        return (self.log_posterior(x, a, s).exp()[..., None] * each).sum(1), each


def levels(sigma: float) -> dict[str, tuple[NoiseLevel, float]]:
    """The same log SNR in each family, with the factor that takes its x_t to x0 + sigma n."""
    one = torch.tensor([sigma], dtype=torch.float64)
    t, root = one / (1 + one), (1 + one ** 2).sqrt()
    return {"ve": (NoiseLevel.variance_exploding(one), 1.0),
            "flow": (NoiseLevel.flow(t), 1 + sigma),
            "vp": (NoiseLevel(1 / root, one / root), root.item())}


def points() -> Tensor:
    return 3 * torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tweedie_shift(level: NoiseLevel, x: Tensor, component: int) -> Tensor:
    """The shift of x0 by the gradient of log p(component | x_t) at x_t."""
    a, s = level.signal.item(), level.noise.item()
    x = x.clone().requires_grad_()
    gradient, = torch.autograd.grad(Mixture().log_posterior(x, a, s)[:, component].sum(), x)
    return level.tweedie_factor * gradient


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("family", ["ve", "flow", "vp"])
def test_guided_towards_a_component_is_the_posterior_mean_given_it(family, sigma):
    level, scale = levels(sigma)[family]
    x = points() * (1 + sigma) / scale
    mean, given = Mixture().denoise(x, level.signal.item(), level.noise.item())
    for component in range(3):
        shifted = mean + tweedie_shift(level, x, component)
        assert torch.allclose(shifted, given[:, component], atol=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_families_agree_at_the_same_log_snr(sigma):
    shifts = [tweedie_shift(level, points() * (1 + sigma) / scale, 1)
              for level, scale in levels(sigma).values()]
    assert shifts[0].abs().max() > 1e-3
    for other in shifts[1:]:
        assert torch.allclose(shifts[0], other, atol=1e-5)
    found = [level.log_snr.item() for level, _ in levels(sigma).values()]
    assert found == pytest.approx([-2 * math.log(sigma)] * 3)


@pytest.mark.parametrize("family", ["ve", "flow", "vp"])
def test_prior_variance_is_exact_for_unit_variance_data(family):
    """Then x0 | x_t ~ N(m, r^2 I), and tilting it by exp(g x0) moves its mean by r^2 g."""
    for sigma in SIGMAS:
        level, _ = levels(sigma)[family]
        a, s = level.signal, level.noise
        assert level.prior_variance.item() == pytest.approx((1 / (1 + (a / s) ** 2)).item())
        grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
        log_density = -grid ** 2 / 2 - (0.7 * a - a * grid) ** 2 / (2 * s ** 2)
        means = [((log_density + tilt * grid).softmax(0) * grid).sum() for tilt in (0.0, 0.5)]
        assert (means[1] - means[0]).item() == pytest.approx(0.5 * level.prior_variance.item(),
                                                             rel=1e-4)


def test_flow_noise_scale_multiplies_the_noise():
    level = NoiseLevel.flow(torch.tensor([0.25]), 2.0)
    assert (level.signal.item(), level.noise.item()) == (0.75, 0.5)


def test_all_numbers_are_finite_at_the_ends():
    for level in (NoiseLevel.flow(torch.tensor([0.0, 1.0])),
                  NoiseLevel.variance_exploding(torch.tensor([0.0, 20291.0]))):
        assert level.log_snr.isfinite().all()
        assert ((level.prior_variance >= 0) & (level.prior_variance <= 1)).all()
        assert ((level.alphas_cumprod >= 0) & (level.alphas_cumprod <= 1)).all()


def test_like_gives_one_factor_a_sample():
    x = torch.ones(2, 3, 4, 5, 6)
    level = NoiseLevel.variance_exploding(torch.tensor([2.0, 3.0]))
    assert (x * level.like(level.noise, x)).flatten(1)[:, 7].tolist() == [2.0, 3.0]
