"""Where boosted sampling starts."""

from __future__ import annotations

import pytest
import torch

from guidance.boost_and_skip import boost, refusal
from guidance.minority_report import boost_report
from guidance.noise_level import NoiseLevel


def noise() -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_gamma_one_gives_the_very_same_tensor():
    x = noise()
    assert boost(x, 1.0, None) is x


def test_at_the_highest_noise_it_is_gamma():
    assert torch.equal(boost(noise(), 4.0, None), 4 * noise())


@pytest.mark.parametrize("level", [
    NoiseLevel.variance_exploding(torch.tensor([1.5])), NoiseLevel.flow(torch.tensor([0.7])),
    NoiseLevel.flow(torch.tensor([0.7]), noise_scale=2.0)])
@pytest.mark.parametrize("gamma", [1.0, 4.0])
def test_skipped_to_a_level_the_variance_preserving_sample_is_gamma_n(level, gamma):
    """x_vp = gamma n, for a host that makes x_t = s n of the noise."""
    x_t = level.noise * boost(noise(), gamma, level)
    x_vp = x_t / (level.signal ** 2 + level.noise ** 2).sqrt()
    assert torch.allclose(x_vp, gamma * noise(), rtol=1e-5)


@pytest.mark.parametrize(("changes", "message"), [
    ({}, None),
    ({"first_sigma": [14.6001]}, None),
    ({"first_sigma": [14.5999]}, None),  # a rounding below
    ({"skip": 19}, None),
    ({"skip": 20}, "skip is 20, but the run has 20 steps"),
    ({"steps": 1, "skip": 1}, "the run has 1 step."),
    ({"noise": torch.zeros(1, 3)}, "adds no noise of its own"),
    ({"masked": True}, "a mask"),
    ({"first_sigma": [9.0]}, "begins at sigma 9, part of the way"),
    ({"first_sigma": []}, "no steps")])
def test_refusals(changes, message):
    found = refusal(**({"noise": noise(), "steps": 20, "skip": 1, "first_sigma": [14.6],
                        "highest_sigma": 14.6, "masked": False} | changes))
    assert found is None if message is None else message in found


def test_report():
    assert boost_report(1, 0, False, [], []) == "Nothing done: gamma is 1 and skip is 0."
    assert boost_report(2.5, 0, False, [14.6], [14.6]) == "Initial noise times 2.5"
    assert boost_report(1, 2, True, [14.6], [7.0]) == (
        "First 2 steps skipped: begins at sigma 7 in place of 14.6, pixels kept in their range")
    assert "times 4, first 1 step skipped" in boost_report(4, 1, False, [14.6], [7.0])
