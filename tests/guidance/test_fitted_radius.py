"""The radius that a memory's own samples give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.fitted_radius import (
    ACTIVATIONS,
    ASKED,
    ENOUGH,
    LATENTS,
    LEAST,
    LOOKED_AT,
    Fit,
    fitted_radius,
)
from guidance.repulsion import ExactKernel

pytestmark = pytest.mark.parametrize("fit", [LATENTS, ACTIVATIONS], ids=["latents", "activations"])


def samples(count: int, seed: int = 0, dim: int = 3) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def nearest(given: Tensor) -> Tensor:
    return torch.cdist(given.double(), given.double()).fill_diagonal_(torch.inf).min(dim=1).values


@pytest.mark.parametrize("count", [40, 41, ASKED])
def test_is_a_share_of_the_median_distance_to_the_nearest(count, fit: Fit):
    given = samples(count)
    median = nearest(given).sort().values[(count - 1) // 2]
    assert fitted_radius(given, fit) == pytest.approx(fit.of_nearest * float(median), rel=1e-4)


def test_shrinks_as_the_history_grows_denser(fit: Fit):
    found = [fitted_radius(samples(count), fit) for count in (20, 200, 2000)]
    assert found == sorted(found, reverse=True) and found[0] > 1.5 * found[2]


def test_a_long_history_is_asked_at_samples_spread_over_it(fit: Fit):
    given = torch.cat([samples(1000), samples(1000, seed=1) + 100])
    assert fitted_radius(given, fit) == pytest.approx(
        fit.of_nearest * float(nearest(given).median()), rel=0.1)


def test_a_very_long_history_is_looked_at_as_a_full_net_would(fit: Fit):
    """Equal to the last bit for the samples that are looked at."""
    given = samples(4 * LOOKED_AT)
    spaced = torch.linspace(0, len(given) - 1, LOOKED_AT, dtype=torch.float64).round().long()
    assert fitted_radius(given, fit) == fitted_radius(given[spaced], fit)


def in_the_middle(given: Tensor, of_each: float, radius: float) -> float:
    """P in the mean of samples that stand for so many each."""
    kernel = ExactKernel(given, torch.full((len(given),), of_each).log(), radius)
    return float(kernel(given.mean(dim=0)[None]).probability)


def test_in_the_middle_of_the_samples_next_to_nothing_counts_as_generated(fit: Fit):
    """In many dimensions the nearest is as far as all others, and the mean nearer than they are."""
    given = torch.eye(300)
    for of_each in (1.0, 100.0):
        radius = fitted_radius(given, fit, count=300 * of_each)
        assert radius < fit.of_nearest * nearest(given).median()
        assert in_the_middle(given, of_each, radius) == pytest.approx(fit.in_mean, rel=0.1)


def test_goes_with_the_scale_of_the_latents_and_not_with_where_they_lie(fit: Fit):
    given = samples(50)
    assert fitted_radius(7 * given + 100, fit) == pytest.approx(
        7 * fitted_radius(given, fit), rel=1e-3)


def test_too_few_samples_say_nothing(fit: Fit):
    for count in range(ENOUGH):
        assert fitted_radius(samples(count), fit) == fit.unknown
    assert fitted_radius(samples(ENOUGH), fit) != fit.unknown


def test_samples_that_are_all_the_same_still_have_a_radius(fit: Fit):
    assert fitted_radius(torch.ones(20, 12), fit) == LEAST
