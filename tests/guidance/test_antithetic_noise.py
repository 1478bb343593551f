"""Noises of a batch that are as unlike one another as they can be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.antithetic_noise import antithetic, independent


def noise(batch: int, seed: int = 0, size: int = 64) -> Tensor:
    return torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(seed))


def correlations(noise: Tensor) -> Tensor:
    """Of each two, `[pairs]`."""
    count = len(noise)
    one, other = torch.triu_indices(count, count, offset=1)
    return noise.flatten(1).corrcoef()[one, other]


def test_two_are_each_other_negated():
    one, other = antithetic(noise(2), 1.0)
    assert torch.allclose(one, -other, atol=1e-6)


@pytest.mark.parametrize("batch", [2, 3, 4, 16])
@pytest.mark.parametrize("amount", [0.25, 1.0])
def test_any_two_are_correlated_by_as_much_as_can_be(batch, amount):
    found = correlations(antithetic(noise(batch), amount))
    assert found.mean() == pytest.approx(-amount / (batch - 1), abs=0.02)
    assert (found + amount / (batch - 1)).abs().max() < 0.05  # 1 / sqrt(elements) is .008


@pytest.mark.parametrize("amount", [0.25, 1.0])
def test_each_by_itself_is_standard_normal(amount):
    one = torch.stack([antithetic(noise(3, seed, size=4), amount)[0] for seed in range(4000)])
    assert one.mean(dim=0).abs().max() < 5 / 4000 ** 0.5
    assert (one.var(dim=0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5
    fourth = (one ** 4).mean().item()
    assert fourth == pytest.approx(3, abs=0.1)


def test_amount_zero_changes_nothing():
    assert torch.equal(antithetic(noise(3), 0.0), noise(3))


def test_half_precision_stays():
    assert antithetic(noise(2).half(), 1.0).dtype == torch.float16


@pytest.mark.parametrize(("given", "expected"), [
    (noise(4), True),
    (noise(1).repeat(3, 1, 1, 1), False),
    (torch.cat([noise(3), noise(1)]), False),
    (antithetic(noise(2), 1.0), True),
])
def test_tells_noises_that_are_alike(given, expected):
    assert independent(given) is expected
