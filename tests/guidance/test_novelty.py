"""Novelty guidance of a run, around a model that is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from guidance.latent_space import LatentSpace
from guidance.limiter import per_sample_norm
from guidance.noise_level import NoiseLevel
from guidance.novelty import NoveltyRun, NoveltySettings
from guidance.repulsion import Ball, ExactKernel, Repelled

SHAPE = (3, 8, 8)
SETTINGS = NoveltySettings(strength=0.3, radius=0.5, sigma_start=1e9, sigma_end=0.0)
SPACE = LatentSpace("Test", 3)
BOTH = pytest.mark.parametrize("kind", [ExactKernel, Ball])  # through the model, and on its answer


def noise(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


def exploding(batch: int, sigma: float) -> NoiseLevel:
    return NoiseLevel.variance_exploding(torch.full((batch,), sigma))


def posterior_mean(level: NoiseLevel) -> Callable[[Tensor], Tensor]:
    """The model of data x0 ~ N(0, I)."""
    return lambda x: x * level.like(level.signal / (level.signal ** 2 + level.noise ** 2), x)


def remembered(x0: Tensor, kind: type = ExactKernel):
    return kind(SPACE.embed(x0), torch.zeros(len(x0)), SETTINGS.radius)


def start(repulsion=None, **settings) -> NoveltyRun:
    return NoveltyRun(SPACE, repulsion, replace(SETTINGS, **settings))


def denoise(run: NoveltyRun, x: Tensor, sigma: float = 1.0, model=None) -> Tensor:
    """One evaluation at x0 + sigma n."""
    level = exploding(len(x), sigma)
    return run.denoise(model or posterior_mean(level), x, level.noise, level)


def shift(run: NoveltyRun, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
    """What x0 is moved by, before or behind the model, at the second evaluation at one place."""
    level = exploding(len(x), 1.0) if level is None else level
    model, seen = posterior_mean(level), []

    def watched(given: Tensor) -> Tensor:
        seen.append(given)
        return model(given)

    for _ in range(2):
        found = run.denoise(watched, x, level.noise, level)
    signal = level.like(level.signal, x).clamp(min=1e-30)
    return (seen[1] - x) / signal + found - model(seen[1])


@BOTH
def test_pushes_away_from_what_is_remembered(kind):
    x = noise(1)
    plain = x / 2  # at sigma 1
    seen = plain + 0.1 * noise(1, seed=1)
    run = start(remembered(seen, kind))
    pushed = [denoise(run, x) for _ in range(2)][1]
    before, after = ((SPACE.embed(one) - SPACE.embed(seen)).norm() for one in (plain, pushed))
    assert after > before


@BOTH
@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6, 20291.0])
def test_push_is_limited_by_the_noise_that_the_step_removes(kind, strength, sigma):
    x, level = noise(4) * (1 + sigma ** 2) ** 0.5, exploding(4, sigma)
    plain = posterior_mean(level)(x)
    moved = shift(start(remembered(plain + 0.01, kind), strength=strength), x, level)
    assert moved.isfinite().all()
    rounding = 1e-6 * per_sample_norm(x)
    assert (per_sample_norm(moved) <= strength * per_sample_norm(x - plain) + rounding).all()


@pytest.mark.parametrize("distance", [0.01, 0.3])  # at the limit, and far below it
def test_push_is_in_proportion_to_strength(distance):
    x = noise(2)
    whole, third = (shift(start(remembered(x / 2 + distance), strength=strength), x)
                    for strength in (0.3, 0.1))
    assert per_sample_norm(whole).min() > 0
    assert torch.allclose(whole, 3 * third, atol=1e-5)


def test_strength_limits_the_ball_but_does_not_scale_it():
    x = noise(2)
    seen = remembered(x / 2 + 0.45, Ball)
    one, other = (shift(start(seen, strength=strength, batch=0.0), x) for strength in (0.3, 1.0))
    assert one.abs().max() > 1e-3
    assert torch.allclose(one, other, atol=1e-6)


@BOTH
@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_flow_is_finite_from_pure_noise_to_the_image(kind, sigma):
    level = NoiseLevel.flow(torch.full((2,), sigma))
    run = start(remembered(noise(2), kind))
    for _ in range(2):
        assert run.denoise(lambda x: noise(2) + 0.1, noise(2), level.noise, level).isfinite().all()
    assert run.figures().dropped == 0


@BOTH
def test_strength_zero_gives_the_very_same_tensors(kind):
    x, plain = noise(2), noise(2)
    run = start(remembered(plain, kind), strength=0.0)
    given = []
    for _ in range(2):
        assert denoise(run, x, model=lambda one: given.append(one) or plain) is plain
    assert given[0] is x and given[1] is x
    assert run.figures().evaluations == 0


def test_nothing_remembered_and_alone_gives_the_very_same_tensors():
    x, plain, run, given = noise(1), noise(1), start(), []
    for _ in range(2):
        assert denoise(run, x, model=lambda one: given.append(one) or plain) is plain
    assert given[0] is x and given[1] is x


@BOTH
@pytest.mark.parametrize(("sigma", "pushes"), [(0.4, False), (0.5, True), (2.0, True),
                                               (2.1, False)])
def test_pushes_inside_the_window_only(kind, sigma, pushes):
    x, level = noise(2), exploding(2, sigma)
    seen = posterior_mean(level)(x) + 0.05 * noise(2, seed=1)
    run = start(remembered(seen, kind), sigma_start=2.0, sigma_end=0.5)
    assert shift(run, x, level).any() == pushes
    assert (run.figures().within > 0) == pushes


@BOTH
@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 10.0])
def test_families_are_pushed_alike_at_the_same_log_snr(kind, sigma):
    x, ve = noise(2) * (1 + sigma), exploding(2, sigma)
    flow = NoiseLevel.flow(ve.noise / (1 + ve.noise))
    seen = remembered(posterior_mean(ve)(x) + 0.05 * noise(2, seed=1), kind)
    one = shift(start(seen), x, ve)
    other = shift(start(seen), x / (1 + sigma), flow)
    assert one.abs().max() > 1e-3
    assert torch.allclose(one, other, atol=1e-5 * (1 + sigma))


def test_batch_mates_push_each_other_apart():
    x = noise(1).repeat(2, 1, 1, 1) + 0.05 * noise(2, seed=1)
    moved = x / 2 + shift(start(), x)
    assert (moved[0] - moved[1]).norm() > (x[0] - x[1]).norm() / 2


@BOTH
def test_without_batch_repulsion_each_sample_is_as_if_alone(kind):
    x = noise(3)
    seen = remembered(x / 2 + 0.05 * noise(3, seed=1), kind)
    together = shift(start(seen, batch=0.0), x)
    alone = torch.cat([shift(start(seen, batch=0.0), one[None]) for one in x])
    assert together.flatten(1).any(1).all()
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("through_model", [True, False])
def test_a_push_that_is_not_finite_is_dropped_and_counted(through_model):
    def broken(embedding: Tensor) -> Repelled:
        push = torch.ones_like(embedding)
        push[0] = torch.nan
        return Repelled(push, torch.ones(len(embedding)))

    broken.through_model = through_model
    run = start(broken, batch=0.0)
    moved = shift(run, noise(2))
    assert not moved[0].any() and moved[1].any()
    figures = run.figures()
    assert figures.dropped == figures.evaluations
    assert 0 < figures.mean_push < 1


def test_figures():
    near, far = noise(1), noise(1) + 100
    run = start(remembered(near + 0.1 * noise(1, seed=2), Ball), sigma_start=1.0, sigma_end=1.0)
    for sigma, plain in ((2.0, near), (1.0, near), (1.0, far), (0.5, near)):
        denoise(run, noise(1, seed=1) + plain, sigma, model=lambda x, plain=plain: plain)
    figures = run.figures()
    assert (figures.evaluations, figures.within, figures.dropped) == (4, 2, 0)
    assert figures.pushed == 0.5
    assert 0 < figures.mean_push <= SETTINGS.strength


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_the_dtype_of_the_model(kind, dtype):
    plain = noise(1).to(dtype)
    run = start(remembered(noise(1), kind))
    assert {denoise(run, noise(1), model=lambda x: plain).dtype for _ in range(2)} == {dtype}


@BOTH
def test_does_not_touch_the_global_random_state(kind):
    before = torch.random.get_rng_state()
    run = start(remembered(noise(3), kind))
    shift(run, noise(3))
    assert torch.equal(before, torch.random.get_rng_state())
