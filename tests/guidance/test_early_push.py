"""Pushes that reach as far at high noise as at low, where the image is settled."""

from __future__ import annotations

import pytest
import torch

from guidance.early_push import OPEN, SETTLED, EarlyPush
from guidance.evaluation import Evaluation
from guidance.latent_space import LatentSpace
from guidance.noise_level import NoiseLevel
from guidance.repulsion import ExactKernel

from .test_novelty import SPACE, denoise, exploding, noise, posterior_mean, remembered, start

LEVELS = [NoiseLevel.variance_exploding(torch.tensor([sigma])) for sigma in (0.1, 1.0, 14.6)]
LEVELS += [NoiseLevel.flow(torch.tensor([t])) for t in (0.1, 0.5, 0.95)]


def among(variance: float = 1.0, **settings) -> EarlyPush:
    """Among endlessly many images around 0."""
    return EarlyPush(torch.zeros(SPACE.dim), torch.tensor(variance), torch.tensor(torch.inf),
                     **settings)


def history(count: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.cat([noise(1, seed=100 + i) for i in range(count)])


def settled(x: torch.Tensor) -> torch.Tensor:
    """The model of a distilled student: what noise stands for is decided at once."""
    return x / x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


@pytest.mark.parametrize("variance", [0.1, 1.0])
@pytest.mark.parametrize("averaged", [1, 64])
@pytest.mark.parametrize("level", LEVELS)
def test_moves_x0_of_gaussian_images_by_what_is_wanted(level, averaged, variance):
    residue = level.noise / averaged ** 0.5
    jacobian = level.signal * variance / (level.signal ** 2 * variance + residue ** 2)
    extra = among(variance, always=True).extra(torch.zeros(1, SPACE.dim), level, residue)
    torch.testing.assert_close((level.signal + extra) * jacobian, torch.ones(1))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 4, 64, 64), (1, 4, 24, 40), (1, 4, 5, 16, 16)])
def test_knows_what_averaging_leaves_of_the_noise(shape):
    space = LatentSpace("Test", shape[1])
    drawn = torch.randn(2000 * shape[0], *shape[1:], generator=torch.Generator().manual_seed(0))
    measured = space.embed(drawn).square().sum(dim=1).mean().sqrt()
    assert space.noise_scale(drawn) == pytest.approx(measured.item(), rel=0.01)


def test_pure_noise_of_a_flow_model_has_a_finite_extra():
    level = NoiseLevel.flow(torch.ones(1))
    assert among(always=True).extra(noise(1).flatten(1), level, level.noise).isfinite().all()


def test_what_is_not_settled_is_left_alone():
    level = exploding(4, 14.6)
    direction = torch.nn.functional.normalize(noise(1).flatten(1))
    variances = torch.tensor([0.2, OPEN, (OPEN + SETTLED) / 2, 1.0])
    extra = among().extra(variances.sqrt()[:, None] * direction, level, level.noise)
    whole = among(always=True).extra(direction, level, level.noise)[0]
    torch.testing.assert_close(extra, whole * torch.tensor([0.0, 0.0, 0.5, 1.0]))


def test_a_batch_is_settled_where_most_of_it_is():
    direction = torch.nn.functional.normalize(noise(1).flatten(1))
    assert among().is_settled(torch.tensor([1.0, 1.0, 0.0])[:, None] * direction)
    assert not among().is_settled(torch.tensor([1.0, 0.0, 0.0])[:, None] * direction)


@pytest.mark.parametrize("strength", [0.1, 0.3])
@pytest.mark.parametrize("size", [8, 64, 128])
def test_noise_stays_what_noise_may_be(size, strength):
    space, level = LatentSpace("Test", 4), exploding(2, 14.6)
    x = 14.6 * torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(0))
    residue = level.noise * space.noise_scale(x)
    early = EarlyPush(torch.zeros(space.dim), torch.tensor(0.5), torch.tensor(10.0))
    wild = 1e3 * torch.randn(2, space.dim, generator=torch.Generator().manual_seed(1))
    before = space.embed(x)
    shift = early.turned(before, wild, level, residue, strength)
    torch.testing.assert_close((before + shift).norm(dim=1), before.norm(dim=1))
    deviation = (0.5 + residue ** 2).sqrt()
    assert (shift.norm(dim=1) < 2.2 * strength * deviation).all()
    assert (shift.norm(dim=1) > strength * deviation).all()


def test_x_is_turned_around_the_mean_at_its_noise_level():
    level = NoiseLevel.flow(torch.full((2,), 0.75))
    mean = 5 * noise(1, seed=3).flatten(1)[0]
    early = EarlyPush(mean, torch.tensor(0.5), torch.tensor(10.0))
    middle = level.signal[:, None] * mean
    x = middle + noise(2).flatten(1)
    shift = early.turned(x, noise(2, seed=1).flatten(1), level, level.noise, 0.3)
    assert shift.any()
    torch.testing.assert_close((x + shift - middle).norm(dim=1), (x - middle).norm(dim=1))


def test_no_shift_stays_none():
    level = exploding(1, 14.6)
    still = among().turned(noise(1).flatten(1), torch.zeros(1, SPACE.dim), level, level.noise, 0.3)
    assert not still.any()


def test_knows_the_spread_of_what_is_remembered():
    embeddings = SPACE.embed(3 + history(50, scale=0.5))
    early = EarlyPush.away_from(ExactKernel(embeddings, torch.zeros(50), 0.15))
    torch.testing.assert_close(early.mean, embeddings.mean(dim=0))
    torch.testing.assert_close(early.variance, embeddings.var(dim=0).sum())
    assert float(early.count) == pytest.approx(50)


def test_what_has_another_prompt_does_not_spread_it():
    embeddings = SPACE.embed(torch.cat([history(20), 100 + history(20)]))
    log_weight = torch.tensor([0.0] * 20 + [-11.0] * 20)
    early = EarlyPush.away_from(ExactKernel(embeddings, log_weight, 0.15))
    assert float(early.variance) == pytest.approx(1, rel=0.2)


def test_a_single_sample_has_no_spread():
    assert EarlyPush.away_from(remembered(noise(1))) is None


def pushed(sigma: float, model, early: str, seen: torch.Tensor) -> float:
    """By how much x0-hat is moved, at the second evaluation at one place."""
    x = sigma * noise(1)
    plain = model(x)
    run = start(remembered(torch.cat([plain + 0.05 * noise(1, seed=1), seen])), early=early)
    return float(([denoise(run, x, sigma, model) for _ in range(2)][1] - plain).norm())


def test_reaches_farther_at_high_noise_where_the_image_is_settled():
    seen = history(20)
    assert pushed(14.6, settled, "auto", seen) > 5 * pushed(14.6, settled, "off", seen) > 0
    assert pushed(0.1, settled, "auto", seen) == pytest.approx(
        pushed(0.1, settled, "off", seen), rel=0.05)
    open_ = posterior_mean(exploding(1, 14.6))
    assert pushed(14.6, open_, "auto", seen) == pushed(14.6, open_, "off", seen) > 0
    assert pushed(14.6, open_, "on", seen) > 5 * pushed(14.6, open_, "off", seen)


@pytest.mark.parametrize(("model", "early"), [(settled, 1), (posterior_mean(exploding(1, 9)), 0)])
def test_figures_tell_where_it_reached_farther(model, early):
    x = 9 * noise(1)
    seen = torch.cat([model(x) + 0.05 * noise(1, seed=1), history(20)])
    run = start(remembered(seen), early="auto")
    for _ in range(2):
        denoise(run, x, 9.0, model)
    assert run.figures().early == early


@pytest.mark.parametrize(("look", "sigma_first", "looked"), [
    (True, 1.0, True), (True, 1e10, False), (False, 1.0, False)])
def test_looks_once_before_the_first_push_of_a_run_that_begins_in_the_window(look, sigma_first,
                                                                             looked):
    x = noise(1)
    model, count = posterior_mean(exploding(1, 1.0)), []
    run = start(remembered(x / 2 + 0.1 * noise(1, seed=1)), early="on", look=look,
                sigma_first=sigma_first)
    made = []
    for _ in range(3):
        before = len(count)
        found = denoise(run, x, model=lambda given: (count.append(1), model(given))[1])
        made.append(len(count) - before)
        assert (found - x / 2).norm() > 0 or not looked
    assert made == [1 + looked, 1, 1]
    assert run.figures().looked is looked


def test_two_that_look_in_one_evaluation_look_once_and_add_up_in_any_order():
    x, level = noise(1), exploding(1, 1.0)
    ways = [remembered(x / 2 + 0.1 * noise(2, seed=seed)) for seed in (1, 2)]

    def both(order) -> tuple[torch.Tensor, int]:
        shared, count, model = Evaluation(), [], posterior_mean(level)
        outer, inner = (start(ways[i], early="on", look=True, sigma_first=1.0) for i in order)

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
    run = start(None, early="on", look=True, sigma_first=1.0)
    assert torch.equal(denoise(run, x), x / 2)
    assert not run.figures().looked
