"""Novelty guidance inside a network, around a small one that is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from guidance.feature_novelty import FRACTION, FeatureRun
from guidance.feature_space import LENGTH, REFERENCE_LOG_SNR, FeatureSpace
from guidance.noise_level import NoiseLevel
from guidance.novelty import NoveltySettings
from guidance.repulsion import Ball, ExactKernel

WIDTH = 8
SETTINGS = NoveltySettings(strength=0.3, radius=0.22, sigma_start=1e9, sigma_end=0.0)
SPACE = FeatureSpace("Net", "middle", WIDTH)
BOTH = pytest.mark.parametrize("kind", [ExactKernel, Ball])


def noise(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, WIDTH, 4, 4, generator=torch.Generator().manual_seed(seed))


def remembered(h: Tensor, kind: type = ExactKernel, radius: float = SETTINGS.radius):
    return kind(SPACE.embed(h), torch.zeros(len(h)), radius)


def start(repulsion=None, **settings) -> FeatureRun:
    return FeatureRun(SPACE, repulsion, replace(SETTINGS, **settings))


def evaluate(run: FeatureRun, *activations: Tensor, sigma: float = 1.0) -> list[Tensor]:
    """What becomes of the activations of one evaluation, one call of `adapt` each."""
    moved = []

    def model(x: Tensor) -> Tensor:
        moved.extend(run.adapt(h) for h in activations)
        return x

    level = NoiseLevel.variance_exploding(torch.full((len(activations[0]),), sigma))
    run.denoise(model, noise(len(activations[0]), seed=99), level.noise, level)
    return moved


def away(a: Tensor, b: Tensor) -> Tensor:
    return (SPACE.embed(a) - SPACE.embed(b)).norm(dim=1)


@BOTH
def test_moves_away_from_what_is_remembered(kind):
    h = noise(1)
    known = h + 0.3 * noise(1, seed=1)
    [moved] = evaluate(start(remembered(known, kind)), h)
    assert away(moved, known) > away(h, known) + 0.02


@BOTH
@pytest.mark.parametrize("strength", [0.01, 0.1, 0.5])
def test_a_push_is_limited_by_the_activation(kind, strength):
    h = noise(3)
    run = start(remembered(h + 0.05 * noise(3, seed=1), kind), strength=strength, batch=0.0)
    [moved] = evaluate(run, h)
    share = (moved - h).flatten(1).norm(dim=1) / h.flatten(1).norm(dim=1)
    assert (share <= FRACTION * strength * 1.001).all()
    figures = run.figures()
    assert figures.mean_push == pytest.approx(float(share.mean()), rel=1e-3)
    assert (figures.evaluations, figures.within, figures.of) == (1, 1, "activation")


def test_far_from_everything_nothing_moves():
    h = noise(1)
    [moved] = evaluate(start(remembered(-h)), h)
    assert (moved - h).norm() < 1e-5 * h.norm()


def test_neutral_settings_return_the_very_same_tensor():
    h = noise(1)
    known = remembered(h + 0.1 * noise(1, seed=1))
    for run in (start(known, strength=0.0), start(None)):
        [moved] = evaluate(run, h)
        assert moved is h
        assert torch.isfinite(run.embedding()).all()  # it is remembered all the same
    assert start(known).adapt(h) is h  # outside an evaluation


def test_outside_the_window_nothing_moves():
    h = noise(1)
    run = start(remembered(h + 0.1 * noise(1, seed=1)), sigma_start=5.0, sigma_end=0.5)
    for sigma in (6.0, 0.4):
        [moved] = evaluate(run, h, sigma=sigma)
        assert torch.equal(moved, h)
    assert not torch.equal(evaluate(run, h, sigma=1.0)[0], h)
    assert (run.figures().evaluations, run.figures().within) == (3, 1)


def test_batch_mates_move_apart():
    h = noise(1).expand(2, -1, -1, -1) + 0.2 * noise(2, seed=1)
    [moved] = evaluate(start(None), h)
    assert away(moved[:1], moved[1:]) > away(h[:1], h[1:])
    [alone] = evaluate(start(None, batch=0.0), h)
    assert alone is h


def test_each_area_is_moved_by_itself_and_counts_once():
    h, other = noise(1), noise(1, seed=3)
    run = start(remembered(h + 0.2 * noise(1, seed=1)))
    first, second = evaluate(run, h, other)
    assert (first - h).norm() > 10 * (second - other).norm()
    assert run.figures().evaluations == 1
    assert torch.allclose(run.embedding(), (SPACE.embed(h) + SPACE.embed(other)) / 2)


def test_an_area_that_is_near_counts_wherever_it_comes():
    h, other = noise(1), noise(1, seed=3)
    for areas in ((h, other), (other, h)):
        run = start(remembered(h + 0.2 * noise(1, seed=1)))
        evaluate(run, *areas)
        assert run.figures().pushed == 1 and run.figures().mean_push > 0.01


def test_the_order_of_areas_does_not_matter():
    areas, found = [noise(2, seed=seed) for seed in range(5)], []
    for order in (areas, areas[::-1], areas[2:] + areas[:2]):
        run = start()
        evaluate(run, *order)
        found.append(run.embedding())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])



def test_keeps_the_dtype_of_the_activation():
    h = noise(1).half()
    [moved] = evaluate(start(remembered(h.float() + 0.2 * noise(1, seed=1))), h)
    assert moved.dtype == torch.float16


def test_what_is_not_finite_is_dropped_and_told():
    h = noise(2)
    h[1, 0, 0, 0] = torch.nan
    run = start(remembered(noise(1)), batch=0.0)
    evaluate(run, h)
    assert run.figures().dropped == 1


def sigma_at(log_snr: float) -> float:
    return float(torch.tensor(-log_snr / 2).exp())


@pytest.mark.parametrize("order", [1, -1])
def test_remembers_the_embedding_at_the_reference_level(order):
    """Between the two evaluations that are nearest to it, in whatever order they come."""
    steps = [(-4.0, 1), (-2.0, 2), (-0.5, 3), (3.0, 4)][::order]
    run = start(None)
    for log_snr, seed in steps:
        evaluate(run, noise(1, seed), sigma=sigma_at(log_snr))
    share = (REFERENCE_LOG_SNR + 2.0) / 1.5
    expected = torch.lerp(SPACE.embed(noise(1, 2)), SPACE.embed(noise(1, 3)), share)
    assert torch.allclose(run.embedding(), expected, atol=1e-5)


@pytest.mark.parametrize("levels", [(-4.0, -2.0), (0.5, -1.0)])
def test_else_at_the_nearest_level(levels):
    run = start(None)
    for i, log_snr in enumerate(levels):
        evaluate(run, noise(1, i), sigma=sigma_at(log_snr))
    assert torch.allclose(run.embedding(), SPACE.embed(noise(1, 1)), atol=1e-6)
    assert run.embedding().norm() == pytest.approx(LENGTH, rel=1e-4)


def test_a_run_that_saw_no_activation_has_no_embedding_and_says_so():
    run = start(None)
    with pytest.raises(ValueError, match="no activation"):
        run.embedding()
