"""The radius that a memory's own samples give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.fitted_radius import ENOUGH, LEAST, SHARE, UNKNOWN, fitted_radius


def samples(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [8, 9, 100, 256])
def test_is_a_share_of_the_median_distance_to_the_nearest(count):
    given = samples(count)
    distance = torch.cdist(given.double(), given.double())
    nearest = distance.fill_diagonal_(torch.inf).min(dim=1).values.sort().values
    assert fitted_radius(given) == pytest.approx(SHARE * float(nearest[(count - 1) // 2]), rel=1e-4)
    assert fitted_radius(given, share=0.5) == pytest.approx(0.5 * fitted_radius(given) / SHARE)


def test_goes_with_the_scale_of_the_latents_and_not_with_where_they_lie():
    given = samples(50)
    assert fitted_radius(7 * given + 100) == pytest.approx(7 * fitted_radius(given), rel=1e-3)


def test_a_long_history_is_asked_at_samples_spread_over_it():
    early, late = samples(1000), samples(1000, seed=1) + 100
    assert fitted_radius(torch.cat([early, late])) == pytest.approx(
        (fitted_radius(early) + fitted_radius(late)) / 2, rel=0.1)


def test_few_samples_say_nothing():
    for count in (0, 1, ENOUGH - 1):
        assert fitted_radius(samples(count)) == UNKNOWN


def test_samples_that_are_all_the_same_still_have_a_radius():
    assert fitted_radius(torch.ones(20, 12)) == LEAST
