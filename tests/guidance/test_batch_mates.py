"""The samples of a batch as one another's memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.batch_mates import PROBABILITY, BatchMates, batch_radius, repelled
from guidance.fitted_radius import LEAST
from guidance.repulsion import ExactKernel, Repelled


def embeddings(batch: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(batch, 192, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("radius", [0.2, 20.0])
def test_each_is_pushed_as_if_the_others_were_remembered(radius):
    x = embeddings(4)
    found = repelled(x, radius)
    for i in range(4):
        others = torch.cat([x[:i], x[i + 1:]])
        alone = ExactKernel(others, torch.zeros(3), radius)(x[i:i + 1])
        assert torch.allclose(found.push[i], alone.push[0], atol=1e-4)
        assert torch.allclose(found.probability[i], alone.probability[0], atol=1e-4)


@pytest.mark.parametrize("batch", [2, 3, 4, 10, 64])
@pytest.mark.parametrize("scale", [0.03, 1.0, 50.0])
def test_the_median_sample_of_a_batch_has_the_given_probability(batch, scale):
    x = embeddings(batch, scale)
    found = repelled(x, batch_radius(x))
    # In an even batch the radius is the smaller of the two in the middle.
    at_least = found.probability.sort(descending=True).values[(batch - 1) // 2]
    assert at_least == pytest.approx(PROBABILITY, rel=1e-3)


def test_the_push_grows_with_the_distances():
    x = embeddings(4)
    small, large = (repelled(one, batch_radius(one)) for one in (x / 100, x))
    assert torch.allclose(100 * small.push, large.push, rtol=1e-3, atol=1e-4)
    assert torch.allclose(small.probability, large.probability, atol=1e-4)


def test_the_nearest_two_are_pushed_most():
    x = embeddings(4)
    x[1] = x[0] + 0.5 * embeddings(1, seed=1)[0]
    pushes = repelled(x, batch_radius(x)).push.norm(dim=1)
    assert pushes[:2].min() > 2 * pushes[2:].max()


def test_images_that_are_the_same_have_the_least_radius():
    x = embeddings(1).repeat(3, 1)
    assert batch_radius(x) == pytest.approx(LEAST)
    assert repelled(x, batch_radius(x)).push.isfinite().all()


def same(one: Repelled, other: Repelled) -> bool:
    return all(torch.allclose(*pair, rtol=1e-4, atol=1e-6)
               for pair in zip(one, other, strict=True))


def test_a_settled_batch_tells_its_own_radius():
    x, mates = embeddings(4), BatchMates(0.18, fits=True)
    for near in (x, x + 0.01 * embeddings(4, seed=1), 0.98 * x):
        assert same(mates(near), repelled(near, batch_radius(near)))


@pytest.mark.parametrize("growth", [1.5, 10.0])
def test_a_batch_that_moves_apart_keeps_the_given_radius(growth):
    x, mates = embeddings(4, 0.05), BatchMates(0.18, fits=True)
    mates(x)
    assert same(mates(growth * x), repelled(growth * x, 0.18))


def test_runs_begin_anew():
    x, mates = embeddings(4), BatchMates(0.18, fits=True)
    mates(x / 10)
    assert not same(mates(x), BatchMates(0.18, fits=True)(x))


def test_a_radius_of_the_users_own_stays():
    x, mates = embeddings(4), BatchMates(18.0, fits=False)
    assert same(mates(x), repelled(x, 18.0))
