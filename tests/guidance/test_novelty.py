"""Novelty guidance of a run, around a model that is known in closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from guidance.latent_space import LatentSpace
from guidance.limiter import per_sample_norm
from guidance.noise_level import NoiseLevel
from guidance.novelty import NoveltyRun, NoveltySettings
from guidance.repulsion import ExactKernel, Repelled

SHAPE = (3, 8, 8)
SETTINGS = NoveltySettings(strength=0.3, radius=0.5, sigma_start=1e9, sigma_end=0.0)


def noise(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


def posterior_mean(level: NoiseLevel):
    """The model of data x0 ~ N(0, I)."""
    return lambda x: x * level.like(level.signal / (level.signal ** 2 + level.noise ** 2), x)


def remembered(x0: Tensor) -> ExactKernel:
    embedding = LatentSpace("Test", 3).embed(x0)
    return ExactKernel(embedding, torch.zeros(len(x0)), SETTINGS.radius)


def start(repulsion=None, **settings) -> NoveltyRun:
    return NoveltyRun(LatentSpace("Test", 3), repulsion, replace(SETTINGS, **settings))


def denoise(run: NoveltyRun, x: Tensor, sigma: float = 1.0, model=None) -> Tensor:
    """One evaluation at x0 + sigma n."""
    each = torch.full((len(x),), sigma)
    level = NoiseLevel.variance_exploding(each)
    return run.denoise(model or posterior_mean(level), x, each, level)


def test_pushes_away_from_what_is_remembered():
    x = noise(1)
    plain = x / 2  # at sigma 1
    seen = plain + 0.1 * noise(1, seed=1)
    pushed = denoise(start(remembered(seen)), x)
    space = LatentSpace("Test", 3)
    before, after = ((space.embed(one) - space.embed(seen)).norm() for one in (plain, pushed))
    assert after > before


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6, 20291.0])
def test_push_is_limited_by_the_noise_that_the_step_removes(strength, sigma):
    x = noise(4) * (1 + sigma ** 2) ** 0.5
    plain = x / (1 + sigma ** 2)
    shift = denoise(start(remembered(plain), strength=strength), x, sigma) - plain
    assert shift.isfinite().all()
    assert (per_sample_norm(shift) <= strength * per_sample_norm(x - plain) * 1.001 + 1e-5).all()


def test_strength_zero_gives_the_very_same_tensor():
    plain = noise(2)
    run = start(remembered(plain), strength=0.0)
    assert denoise(run, noise(2), model=lambda x: plain) is plain
    assert run.figures().evaluations == 0
    assert run.trajectory().shape == (2, 1, 1 + 192)


def test_nothing_remembered_and_alone_gives_the_very_same_tensor():
    plain = noise(1)
    assert denoise(start(), noise(1), model=lambda x: plain) is plain


@pytest.mark.parametrize(("sigma", "pushes"), [(0.4, False), (0.5, True), (2.0, True),
                                               (2.1, False)])
def test_pushes_inside_the_window_only(sigma, pushes):
    plain = noise(2)
    run = start(remembered(plain), sigma_start=2.0, sigma_end=0.5)
    found = denoise(run, noise(2, seed=1), sigma, model=lambda x: plain)
    assert torch.equal(found, plain) != pushes
    assert run.figures().within == int(pushes)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0, 10.0])
def test_families_are_pushed_alike_at_the_same_log_snr(sigma):
    x, each = noise(2) * (1 + sigma), torch.full((2,), sigma)
    t = each / (1 + each)
    exploding, flow = NoiseLevel.variance_exploding(each), NoiseLevel.flow(t)
    seen = remembered(posterior_mean(exploding)(x) + 0.05 * noise(2, seed=1))
    a = start(seen).denoise(posterior_mean(exploding), x, each, exploding)
    b = start(seen).denoise(posterior_mean(flow), x / (1 + sigma), t, flow)
    assert not torch.allclose(a, posterior_mean(exploding)(x), atol=1e-3)
    assert torch.allclose(a, b, atol=1e-5 * (1 + sigma))


def test_batch_mates_push_each_other_apart():
    plain = noise(1).repeat(2, 1, 1, 1) + 0.05 * noise(2, seed=1)
    found = denoise(start(), noise(2), model=lambda x: plain)
    assert (found[0] - found[1]).norm() > (plain[0] - plain[1]).norm()


def test_without_batch_repulsion_each_sample_is_as_if_alone():
    x, seen = noise(3), remembered(noise(5, seed=1) / 2)
    together = denoise(start(seen, batch=0.0), x)
    alone = torch.cat([denoise(start(seen, batch=0.0), one[None]) for one in x])
    assert torch.allclose(together, alone, atol=1e-6)
    assert not torch.allclose(together, x / 2)


class Broken:
    """A repulsion that fails for the first sample of a batch."""

    def __call__(self, embedding: Tensor, log_snr: Tensor) -> Repelled:
        push = torch.ones_like(embedding)
        push[0] = torch.nan
        return Repelled(push, torch.ones(len(embedding)))


def test_a_push_that_is_not_finite_is_dropped_and_counted():
    plain, run = noise(2), start(Broken(), batch=0.0)
    found = denoise(run, noise(2, seed=1), model=lambda x: plain)
    assert torch.equal(found[0], plain[0])
    assert not torch.equal(found[1], plain[1])
    figures = run.figures()
    assert figures.dropped == 1
    assert 0 < figures.mean_push < 1


def test_figures():
    near, far = noise(1), noise(1) + 100
    run = start(remembered(near + 0.1 * noise(1, seed=2)), sigma_start=1.0, sigma_end=1.0)
    for sigma, plain in ((2.0, near), (1.0, near), (1.0, far), (0.5, near)):
        denoise(run, noise(1, seed=1) + plain, sigma, model=lambda x, plain=plain: plain)
    figures = run.figures()
    assert (figures.evaluations, figures.within, figures.dropped) == (4, 2, 0)
    assert figures.pushed == 0.5
    assert 0 < figures.mean_push <= SETTINGS.strength


def test_trajectory_runs_from_the_first_evaluation_to_the_last():
    run, plain = start(), noise(2)
    sigmas = torch.linspace(10, 0.1, 20)
    for sigma in sigmas.tolist():
        denoise(run, noise(2), sigma, model=lambda x: plain)
    trajectory = run.trajectory(points=5)
    assert trajectory.shape == (2, 5, 1 + 192)
    assert torch.allclose(trajectory[:, [0, -1], 0], -2 * sigmas[[0, -1]].log())
    assert torch.allclose(trajectory[0, 2, 1:], LatentSpace("Test", 3).embed(plain)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_the_dtype_of_the_model(dtype):
    plain = noise(1).to(dtype)
    assert denoise(start(remembered(noise(1))), noise(1), model=lambda x: plain).dtype == dtype


def test_does_not_touch_the_global_random_state():
    before = torch.random.get_rng_state()
    run = start(remembered(noise(3)))
    denoise(run, noise(3))
    run.trajectory()
    assert torch.equal(before, torch.random.get_rng_state())
