"""Noise levels in the terms that every model family shares."""

from __future__ import annotations

import math

import pytest
import torch

from guidance.noise_level import NoiseLevel

SIGMAS = (0.03, 0.3, 1.0, 3.0, 14.6, 80.0)


def levels(sigma: float) -> dict[str, NoiseLevel]:
    """The same log SNR in each family."""
    one = torch.tensor([sigma], dtype=torch.float64)
    t, root = one / (1 + one), (1 + one ** 2).sqrt()
    return {"ve": NoiseLevel.variance_exploding(one), "flow": NoiseLevel.flow(t),
            "vp": NoiseLevel(1 / root, one / root)}


@pytest.mark.parametrize("sigma", SIGMAS)
def test_log_snr_is_the_same_in_each_family(sigma):
    found = [level.log_snr.item() for level in levels(sigma).values()]
    assert found == pytest.approx([-2 * math.log(sigma)] * 3)


@pytest.mark.parametrize("family", ["ve", "flow", "vp"])
def test_prior_variance_is_exact_for_unit_variance_data(family):
    """Then x0 | x_t ~ N(m, r^2 I), and tilting it by exp(g x0) moves its mean by r^2 g."""
    for sigma in SIGMAS:
        level = levels(sigma)[family]
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
