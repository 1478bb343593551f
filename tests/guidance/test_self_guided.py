"""Self-guided minority sampling around a model that is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from guidance.minority import vp_factor
from guidance.minority_report import self_guided_report
from guidance.noise_level import NoiseLevel
from guidance.ordinary_weights import check_whole, ordinary, ordinary_weights
from guidance.self_guided import MODES, SelfGuidedRun, SelfGuidedSettings, sample_seeds
from guidance.step_window import StepWindow

SHAPE = (2, 4, 4)
BOTH = pytest.mark.parametrize("mode", MODES)
VARIANCE = torch.linspace(0.1, 2.0, math.prod(SHAPE)).view(SHAPE)  # of the data, by element


def noise(batch: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


def exploding(sigma: float, batch: int = 2) -> NoiseLevel:
    return NoiseLevel.variance_exploding(torch.full((batch,), sigma))


def gain(sigma: Tensor) -> Tensor:
    """Of the denoiser of data N(0, VARIANCE): `[batch]` -> `[batch, ...]`."""
    return VARIANCE / (VARIANCE + sigma.view(-1, 1, 1, 1) ** 2)


def model(x: Tensor, sigma: Tensor) -> Tensor:
    return gain(sigma) * x


def start(mode: str, batch: int = 2, scale: float = 0.4, every: int = 1, again: float = 6.0,
          schedule=(14.6, 5.0, 1.0, 0.2, 0.0), seeds=None, **window) -> SelfGuidedRun:
    window = {"sigma_start": 1e9, "sigma_end": 0.0} | window
    return SelfGuidedRun(SelfGuidedSettings(
        mode=mode, scale=scale, again_sigma=again,
        again=NoiseLevel.variance_exploding(torch.tensor([again])),
        window=StepWindow(schedule=schedule, every=every, **window)),
        list(range(batch)) if seeds is None else seeds)


def guide(run: SelfGuidedRun, x: Tensor, sigma: float = 1.0, denoiser=model) -> Tensor:
    level = exploding(sigma, len(x))
    return run.guide(denoiser, x, model(x, level.noise), level, level.noise, sigma,
                     -2 * math.log(sigma))


def difference(x0: Tensor, again: float = 6.0, seeds=(0, 1)) -> Tensor:
    """x0 - x0'' with the noise of those seeds."""
    drawn = torch.cat([noise(1, seed) for seed in seeds])
    return x0 - model(x0 + again * drawn, torch.full((len(x0),), again))


def normal(x: Tensor) -> Tensor:
    return x / x.abs().flatten(1).amax(1).view(-1, 1, 1, 1)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_backprop_is_the_papers_formula(sigma):
    x = noise(2) * (1 + sigma)
    level = exploding(sigma)
    plain = model(x, level.noise)
    g = normal(gain(level.noise) * difference(plain))  # J is a norm: its gradient by x0 is d / |d|
    expected = plain + 0.4 * vp_factor(level)[0] * g
    assert torch.allclose(guide(start("backprop"), x, sigma), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_free_goes_away_from_the_restored_image(sigma):
    x = noise(2) * (1 + sigma)
    plain = model(x, torch.full((2,), sigma))
    expected = plain + 0.4 * sigma ** 2 / (1 + sigma ** 2) * normal(difference(plain))
    assert torch.allclose(guide(start("free"), x, sigma), expected, rtol=1e-4, atol=1e-5)


@BOTH
def test_flow_noises_anew_in_its_own_way(mode):
    """At t = sigma / (1 + sigma) it is pushed as EPS is at sigma."""
    sigma, again = 1.0, 6.0
    x = noise(2) * 2
    t = torch.full((2,), sigma / (1 + sigma))
    plain = model(x, torch.full((2,), sigma))

    def flow_model(x_t: Tensor, t: Tensor) -> Tensor:
        return model(x_t / (1 - t).view(-1, 1, 1, 1), t / (1 - t))

    again_t = again / (1 + again)
    run = SelfGuidedRun(SelfGuidedSettings(
        mode=mode, scale=0.4, again_sigma=again_t, again=NoiseLevel.flow(torch.tensor([again_t])),
        window=StepWindow(schedule=(1.0, 0.5, 0.0), sigma_start=1.0, sigma_end=0.0)), [0, 1])
    found = run.guide(flow_model, x / 2, plain, NoiseLevel.flow(t), t, t[0].item(), 0.0)
    assert torch.allclose(found, guide(start(mode), x, sigma), rtol=1e-4, atol=1e-5)


@BOTH
def test_scale_zero_gives_the_very_same_tensor_and_asks_nobody(mode):
    x = noise(2)
    run = start(mode, scale=0.0)
    assert run.guide(None, x, x, exploding(1.0), torch.ones(2), 1.0, 0.0) is x
    assert run.idle
    assert self_guided_report(mode, 0.0, run.figures()) == "Nothing pushed: scale is 0."


@BOTH
def test_pushes_at_every_nth_step_inside_the_window(mode):
    x, calls = noise(2), []

    def watched(x_t: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma[0].item())
        return model(x_t, sigma)

    run = start(mode, every=2, schedule=(14.0, 8.0, 4.0, 2.0, 1.0, 0.0), sigma_start=8.0,
                sigma_end=1.5)
    pushed = [s for s in (14.0, 8.0, 4.0, 2.0, 1.0) if not torch.equal(
        guide(run, x, s, watched), model(x, torch.full((2,), s)))]
    assert pushed == [8.0, 2.0]
    assert calls == ([8.0, 6.0, 2.0, 6.0] if mode == "backprop" else [6.0, 6.0])
    figures = run.figures()
    assert (figures.passed.evaluations, figures.passed.outside, figures.pushed) == (5, 2, 2)
    assert "Pushed at 2 of 5 evaluations" in self_guided_report(mode, 0.4, figures)


@BOTH
def test_pure_noise_of_a_flow_is_left_alone(mode):
    x, t = noise(2), torch.ones(2)
    run = start(mode)
    assert run.guide(model, x, x, NoiseLevel.flow(t), t, 1.0, -170.0) is x
    assert "outside the noise levels" in self_guided_report(mode, 0.4, run.figures())


@BOTH
def test_each_sample_is_pushed_as_if_alone(mode):
    x = noise(3)
    seeds = sample_seeds(x, 7)
    together = [start(mode, 3, seeds=seeds)] * 2
    alone = [[start(mode, 1, seeds=[seed])] * 2 for seed in seeds]
    for i in range(2):  # the second evaluation draws anew
        found = guide(together[i], x)
        for j in range(3):
            assert torch.allclose(found[j:j + 1], guide(alone[j][i], x[j:j + 1]), atol=1e-6)


def test_seeds_are_told_by_content_and_seed():
    x = noise(3)
    assert sample_seeds(x, 1) == sample_seeds(x, 1)
    assert sample_seeds(x[1:], 1) == sample_seeds(x, 1)[1:]
    assert len({*sample_seeds(x, 1), *sample_seeds(x, 2)}) == 6


@BOTH
def test_the_same_seed_draws_the_same(mode):
    x = noise(2)
    one, same, other = (guide(start(mode, seeds=seeds), x) for seeds in ([0, 1], [0, 1], [2, 3]))
    assert torch.equal(one, same) and not torch.allclose(one, other)


@BOTH
def test_a_push_that_is_not_finite_is_dropped_for_its_sample_alone(mode):
    broken = torch.tensor([math.nan, 1.0]).view(-1, 1, 1, 1)
    x = noise(2)
    run = start(mode)
    found = guide(run, x, denoiser=lambda x_t, sigma: model(x_t, sigma) * broken)
    plain = model(x, torch.ones(2))
    assert torch.equal(found[0], plain[0])
    assert found[1].isfinite().all() and not torch.equal(found[1], plain[1])
    figures = run.figures()
    assert figures.dropped == 1 and figures.mean_push > 0 and figures.first > 0


@BOTH
def test_a_model_that_restores_all_pushes_nothing_and_breaks_nothing(mode):
    x = noise(2)
    found = guide(start(mode), x, denoiser=lambda x_t, sigma: model(x, torch.ones(2)) + 0 * x_t)
    assert torch.equal(found, model(x, torch.ones(2)))


@BOTH
def test_does_not_touch_the_global_random_state(mode):
    before = torch.random.get_rng_state()
    guide(start(mode), noise(2))
    assert torch.equal(before, torch.random.get_rng_state())


@BOTH
def test_tensors_of_inference_mode(mode):
    expected = guide(start(mode), noise(2))
    with torch.inference_mode():
        assert torch.equal(guide(start(mode), noise(2)), expected)


def inference_net() -> nn.Module:
    with torch.inference_mode():
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(),
                            nn.Linear(16, 1))
        return net.to(torch.float64).to(torch.float32).eval()


def test_gradients_pass_weights_of_inference_mode_without_a_copy():
    net, x = inference_net(), noise(2).requires_grad_()
    kept = {name: weight.data_ptr() for name, weight in net.state_dict().items()}
    objects = [*net.parameters()]
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
        net(x)
    with ordinary_weights(net):
        gradient, = torch.autograd.grad(net(x).sum(), x)
        assert {name: weight.data_ptr() for name, weight in net.state_dict().items()} == kept
        assert not any(weight.is_inference() for weight in net.parameters())
    assert all(a is b for a, b in zip(net.parameters(), objects, strict=True))
    with torch.no_grad():
        same = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(),
                             nn.Linear(16, 1)).eval()
    same.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
    expected, = torch.autograd.grad(same(x).sum(), x)
    assert torch.equal(gradient, expected)


def test_weights_come_back_after_an_error():
    net = inference_net()
    objects = [*net.parameters(), *net.buffers()]
    with pytest.raises(KeyboardInterrupt), ordinary_weights(net):
        raise KeyboardInterrupt
    assert all(a is b for a, b in zip([*net.parameters(), *net.buffers()], objects, strict=True))


def test_ordinary_keeps_views():
    with torch.inference_mode():
        view = torch.arange(12.0).view(3, 4).t()[1:]
    same = ordinary(view)
    assert torch.equal(same, view) and same.stride() == view.stride()
    assert view.is_inference() and not same.is_inference()


def test_a_model_that_is_not_whole_is_refused():
    net = nn.Linear(2, 2)
    check_whole(net, torch.device("cpu"))
    net.weight = nn.Parameter(torch.empty(2, 2, device="meta"))
    with pytest.raises(ValueError, match="the weight weight lies on meta"):
        check_whole(net, torch.device("cpu"))
