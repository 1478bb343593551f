"""Pushes that reach as far at high noise as at low."""

from __future__ import annotations

import pytest
import torch

from guidance.early_push import early_gain, turned
from guidance.evaluation import Evaluation
from guidance.limiter import per_sample_norm
from guidance.noise_level import NoiseLevel

from .test_novelty import denoise, exploding, noise, posterior_mean, remembered, start

LEVELS = [NoiseLevel.variance_exploding(torch.tensor([sigma])) for sigma in (0.1, 1.0, 14.6)]
LEVELS += [NoiseLevel.flow(torch.tensor([t])) for t in (0.1, 0.5, 0.95)]


@pytest.mark.parametrize("level", LEVELS)
def test_moves_x0_of_unit_variance_data_by_what_is_wanted(level):
    x, wanted = noise(1), noise(1, seed=1)
    model = posterior_mean(level)
    moved = model(x + level.like(early_gain(level), x) * wanted) - model(x)
    torch.testing.assert_close(moved, wanted, rtol=1e-3, atol=1e-4)


def test_pure_noise_of_a_flow_model_has_a_finite_gain():
    assert early_gain(NoiseLevel.flow(torch.ones(1))).isfinite().all()


def test_turned_noise_keeps_its_length_and_without_a_shift_itself():
    before, shift = noise(2), 0.3 * noise(2, seed=1)
    after = turned(before, shift)
    torch.testing.assert_close(per_sample_norm(after), per_sample_norm(before))
    assert (after - before).norm() > 0.2 * shift.norm()
    assert torch.equal(turned(before, torch.zeros_like(before)), before)


def test_pushes_farther_at_high_noise_only():
    def moved(sigma: float, early: bool) -> float:
        x = sigma * noise(1)
        plain = posterior_mean(exploding(1, sigma))(x)
        run = start(remembered(plain + 0.05 * noise(1, seed=1)), early=early)
        return float(([denoise(run, x, sigma) for _ in range(2)][1] - plain).norm())

    assert moved(14.6, True) > 5 * moved(14.6, False) > 0
    assert moved(0.1, True) == pytest.approx(moved(0.1, False), rel=0.05)


@pytest.mark.parametrize(("look", "calls"), [(True, [2, 1, 1]), (False, [1, 1, 1])])
def test_looks_once_before_the_first_push(look, calls):
    x = noise(1)
    model, count = posterior_mean(exploding(1, 1.0)), []
    run = start(remembered(x / 2 + 0.1 * noise(1, seed=1)), early=True, look=look)
    made = []
    for _ in range(3):
        before = len(count)
        found = denoise(run, x, model=lambda given: (count.append(1), model(given))[1])
        made.append(len(count) - before)
        assert (found - x / 2).norm() > 0 or not look
    assert made == calls
    assert run.figures().looked is look


def test_two_that_look_in_one_evaluation_look_once_and_add_up_in_any_order():
    x, level = noise(1), exploding(1, 1.0)
    ways = [remembered(x / 2 + 0.1 * noise(1, seed=seed)) for seed in (1, 2)]

    def both(order) -> tuple[torch.Tensor, int]:
        shared, count, model = Evaluation(), [], posterior_mean(level)
        outer, inner = (start(ways[i], early=True, look=True) for i in order)

        def watched(given):
            count.append(1)
            return model(given)

        found = outer.denoise(lambda given: inner.denoise(watched, given, level.noise, level,
                                                          shared),
                              x, level.noise, level, shared)
        return found, len(count)

    (one, calls), (other, _) = both((0, 1)), both((1, 0))
    assert calls == 2
    torch.testing.assert_close(one, other)


def test_nothing_remembered_nothing_looked():
    x = noise(1)
    run = start(None, early=True, look=True)
    assert torch.equal(denoise(run, x), x / 2)
    assert not run.figures().looked
