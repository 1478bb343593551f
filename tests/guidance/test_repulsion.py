"""The exact kernel and the ball, the oracles of every other repulsion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.repulsion import (
    EDGE,
    Ball,
    ExactKernel,
    away,
    gaussian_mixture,
    log_mixture_weight,
    squared_distance,
)

DIM = 12
RADIUS = 0.4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def at_distance(distance: float) -> Tensor:
    """`[1, DIM]`, this far from the origin."""
    direction = random(1, DIM)
    return distance * direction / direction.norm()


def lone(cls: type, **options):
    """A repulsion from one sample at the origin."""
    return cls(torch.zeros(1, DIM), torch.zeros(1), RADIUS, **options)


def mixture(e, centres, log_weight, bandwidth):
    weight = log_mixture_weight(centres, log_weight, bandwidth)
    return gaussian_mixture(e, centres, weight, bandwidth)


def test_squared_distance():
    a, b = random(5, DIM), random(7, DIM, seed=1)
    assert torch.allclose(squared_distance(a, b), torch.cdist(a, b) ** 2, atol=1e-4)
    assert (squared_distance(a, a) >= 0).all()


def test_away_is_zero_where_both_coincide():
    found = away(torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    assert torch.allclose(found, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize("bandwidth", [0.2, 1.0, 5.0])
def test_mean_shift_is_the_gradient_of_the_kernel(bandwidth):
    centres, log_weight = random(30, DIM, seed=1).double(), -random(30, seed=2).abs().double()
    e = random(6, DIM).double().requires_grad_()
    f, mean = mixture(e, centres, log_weight, bandwidth)
    by_hand = (log_weight - torch.cdist(e, centres) ** 2 / (2 * bandwidth ** 2)).logsumexp(1)
    assert torch.allclose(f, by_hand)
    gradient, = torch.autograd.grad(by_hand.sum(), e)
    assert torch.allclose((mean - e) / bandwidth ** 2, gradient, atol=1e-7)


def test_weights_of_each_query():
    centres, e = random(4, DIM, seed=1), random(2, DIM)
    weights = -random(2, 4, seed=2).abs()
    f, _ = mixture(e, centres, weights, 1.0)
    for i in range(2):
        alone, _ = mixture(e[i:i + 1], centres, weights[i], 1.0)
        assert f[i].item() == pytest.approx(alone.item(), rel=1e-5)


def test_probability_of_the_kernel_is_a_half_at_the_radius_and_nothing_far_away():
    kernel = lone(ExactKernel)
    at = {d: kernel(at_distance(d * RADIUS)).probability.item() for d in (0, 1, 2, 5)}
    assert at[0] == pytest.approx(torch.sigmoid(torch.tensor(EDGE)).item(), abs=1e-4)
    assert at[1] == pytest.approx(0.5, abs=1e-4)
    assert at[2] < 0.01
    assert at[5] < 1e-12
    assert kernel(at_distance(5 * RADIUS)).push.norm() < 1e-12


@pytest.mark.parametrize("cls", [ExactKernel, Ball])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_push_points_away_from_the_sample(cls, share):
    e = at_distance(share * RADIUS)
    push = lone(cls)(e).push
    assert torch.cosine_similarity(push, e).item() == pytest.approx(1, abs=1e-4)


def test_push_points_away_from_the_nearer_of_two():
    near, far = at_distance(0.0), at_distance(10 * RADIUS)
    kernel = ExactKernel(torch.cat([near, far]), torch.zeros(2), RADIUS)
    e = at_distance(0.8 * RADIUS)
    assert torch.cosine_similarity(kernel(e).push, e).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("cls", [ExactKernel, Ball])
def test_a_sample_of_another_prompt_pushes_less(cls):
    e = at_distance(0.8 * RADIUS)
    same, similar, other = (cls(torch.zeros(1, DIM), torch.tensor([w]), RADIUS)(e).push.norm()
                            for w in (0.0, -1.6, -8.0))
    assert same > 1.2 * similar > 120 * other > 0


def test_more_samples_at_one_place_make_a_repeat_more_certain():
    e = at_distance(RADIUS)
    one, many = (ExactKernel(torch.zeros(n, DIM), torch.zeros(n), RADIUS)(e)
                 for n in (1, 10))
    assert many.probability > one.probability


def test_ball_is_the_rule_of_spell():
    centres, e = random(9, DIM, seed=1), random(4, DIM)
    radius = torch.cdist(e, centres).median().item()
    found = Ball(centres, torch.zeros(9), radius)(e)
    for i in range(4):
        expected = torch.zeros(DIM)
        for centre in centres:
            difference = e[i] - centre
            expected += 1.6 * torch.relu(radius / difference.norm() - 1) * difference
        assert torch.allclose(found.push[i], expected, atol=1e-4)


def test_ball_pushes_inside_only():
    outside = lone(Ball)(at_distance(1.01 * RADIUS))
    assert not outside.push.any() and outside.probability.item() == 0
    e = at_distance(0.6 * RADIUS)
    inside = lone(Ball, overcompensation=1.0)(e)
    assert inside.probability.item() == 1
    assert (e + inside.push).norm().item() == pytest.approx(RADIUS, rel=1e-3)  # onto the sphere


@pytest.mark.parametrize("cls", [ExactKernel, Ball])
def test_a_repeat_itself_gives_finite_numbers(cls):
    found = lone(cls)(torch.zeros(1, DIM))
    assert found.push.isfinite().all() and found.probability.isfinite().all()
    assert found.probability.item() > 0.8


@pytest.mark.parametrize("kind", [ExactKernel, Ball])
def test_far_from_the_origin_as_near_it(kind):
    centres, embedding = 0.3 * random(5, 64), 0.3 * random(3, 64, seed=1)
    near = kind(centres, torch.zeros(5), 3.0)(embedding)
    far = kind(centres + 500, torch.zeros(5), 3.0)(embedding + 500)
    assert torch.allclose(near.push, far.push, rtol=1e-3, atol=1e-3 * near.push.abs().max().item())
    assert torch.allclose(near.probability, far.probability, atol=1e-3)


@pytest.mark.parametrize("weight", [0.1, 1.0, 100.0])
def test_distance_is_that_of_a_lone_sample_with_the_same_probability(weight):
    """In radii; a centre that stands for many counts as nearer, and as near as can be at most."""
    kernel = ExactKernel(torch.zeros(1, DIM), torch.tensor([weight]).log(), RADIUS)
    found = kernel.distance(at_distance(1.5 * RADIUS))
    same = lone(ExactKernel)(at_distance(float(found) * RADIUS)).probability
    assert same == pytest.approx(float(kernel(at_distance(1.5 * RADIUS)).probability))
    assert kernel.distance(torch.zeros(1, DIM)) == pytest.approx(
        max(0.0, float(-torch.tensor(weight).log() / EDGE)) ** 0.5)
