"""Minority guidance around a model and a classifier that are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from guidance.minority import (
    MinorityRun,
    MinoritySettings,
    checked_class,
    checked_thresholds,
    class_at,
    vp_factor,
)
from guidance.minority_report import minority_report
from guidance.noise_level import NoiseLevel
from guidance.step_window import StepWindow

SHAPE = (2, 3, 3)
WIDE = {"sigma_start": 1e9, "sigma_end": 0.0}


class Mixture:
    """Data of Gaussians N(mean_i, variance_i I) with weights; also the exact classifier of them."""

    def __init__(self, weights, variances, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.classes = len(weights)
        self.log_weights = torch.tensor(weights, dtype=dtype).log()
        self.variances = torch.tensor(variances, dtype=dtype)
        self.means = torch.randn(len(weights), *SHAPE, generator=generator).to(dtype)
        self.thresholds = torch.arange(1, len(weights) + 1, dtype=dtype) / 10
        self.log_snr_range = (-11.0, 11.0)
        self.calls = 0

    def log_posterior(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """log p(i | x_t) `[batch, classes]`; a, s `[batch]`."""
        a, s = a[:, None], s[:, None]
        variance = a ** 2 * self.variances + s ** 2
        offset = x[:, None] - a[..., None, None, None] * self.means
        square = offset.flatten(2).square().sum(2)
        dim = math.prod(SHAPE)
        joint = self.log_weights - square / (2 * variance) - dim / 2 * variance.log()
        return joint.log_softmax(dim=1)

    def log_probs(self, x_vp: Tensor, log_snr: Tensor) -> Tensor:
        self.calls += 1
        abar = log_snr.to(self.dtype).sigmoid()
        return self.log_posterior(x_vp, abar.sqrt(), (1 - abar).sqrt())

    def expected(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """E[x0 | x_t, i] `[batch, classes, ...]`."""
        a, s = (one[:, None] for one in (level.signal, level.noise))
        gain = a * self.variances / (a ** 2 * self.variances + s ** 2)
        offset = x[:, None] - a[..., None, None, None] * self.means
        return self.means + gain[..., None, None, None] * offset

    def denoise(self, x: Tensor, level: NoiseLevel) -> Tensor:
        p = self.log_posterior(x, level.signal, level.noise).exp()
        return (p[..., None, None, None] * self.expected(x, level)).sum(1)


def mixture(**kwargs) -> Mixture:
    return Mixture([0.7, 0.2, 0.1], [1.0, 0.5, 2.0], **kwargs)


def noise(batch: int, dtype=torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def exploding(sigma: float, batch: int = 2, dtype=torch.float64) -> NoiseLevel:
    return NoiseLevel.variance_exploding(torch.full((batch,), sigma, dtype=dtype))


def start(classifier, target=2, weight=1.0, schedule=(14.6, 5.0, 1.0, 0.2, 0.0), every=1,
          mean=False, **window) -> MinorityRun:
    return MinorityRun(classifier, MinoritySettings(
        target=target, weight=weight, mean=mean,
        window=StepWindow(schedule=schedule, every=every, **(WIDE | window))))


def guide(run: MinorityRun, x: Tensor, denoised: Tensor, level: NoiseLevel,
          after: NoiseLevel | None = None) -> Tensor:
    return run.guide(x, denoised, level, level if after is None else after,
                     level.noise[0].item(), level.log_snr[0].item())


# Exactness

LEVELS = pytest.mark.parametrize("level", [
    *(exploding(sigma) for sigma in (0.03, 0.5, 2.0, 14.6, 120.0)),
    *(NoiseLevel.flow(torch.full((2,), t, dtype=torch.float64)) for t in (0.03, 0.3, 0.8, 0.99)),
    NoiseLevel.flow(torch.full((2,), 0.5, dtype=torch.float64), noise_scale=2.0)])


@LEVELS
@pytest.mark.parametrize("target", [0, 1, 2])
def test_weight_one_is_the_model_of_the_class_alone(level, target):
    """By Bayes' rule grad log p(x_t) + grad log p(l | x_t) = grad log p(x_t | l)."""
    known = mixture()
    x = level.like(level.signal, noise(2)) * 0.5 + level.like(level.noise, noise(2)) * noise(2)
    guided = guide(start(known, target=target), x, known.denoise(x, level), level)
    assert torch.allclose(guided, known.expected(x, level)[:, target], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("target", [None, 0, 2])
def test_families_are_pushed_alike(sigma, target):
    """EPS and V samples at sigma, and flow samples at t = sigma / (1 + sigma)."""
    known, ve = mixture(), exploding(sigma)
    flow = NoiseLevel.flow(ve.noise / (1 + ve.noise))
    x = noise(2) * (1 + sigma)
    one = guide(start(known, target), x, known.denoise(x, ve), ve)
    other = guide(start(known, target), x / (1 + sigma), known.denoise(x / (1 + sigma), flow), flow)
    assert (one - known.denoise(x, ve)).abs().max() > 1e-6
    assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


class Ddpm:
    """The schedule of guided-diffusion respaced to few steps, in its own terms and float64."""

    def __init__(self, steps: int):
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        every = torch.cumprod(1 - betas, 0)
        self.abar = every[torch.linspace(0, 999, steps).round().long()]
        self.before = torch.cat([torch.ones(1, dtype=torch.float64), self.abar[:-1]])
        self.beta = 1 - self.abar / self.before
        self.posterior_variance = self.beta * (1 - self.before) / (1 - self.abar)
        self.sigmas = ((1 - self.abar) / self.abar).sqrt()

    def posterior_mean(self, t: int, x_start: Tensor, x_t: Tensor) -> Tensor:
        """q_posterior_mean_variance."""
        one = self.beta[t] * self.before[t].sqrt() / (1 - self.abar[t])
        two = (1 - self.before[t]) * (1 - self.beta[t]).sqrt() / (1 - self.abar[t])
        return one * x_start + two * x_t


def cond_fn(known: Mixture, x_vp: Tensor, abar: Tensor, target: int, scale: float) -> Tensor:
    """The published one: the gradient of the log-probability, times the scale."""
    x_vp = x_vp.clone().requires_grad_()
    chosen = known.log_probs(x_vp, torch.logit(abar).repeat(len(x_vp)))[:, target]
    return scale * torch.autograd.grad(chosen.sum(), x_vp)[0]


STEPS = pytest.mark.parametrize(("steps", "t"), [(10, 1), (10, 5), (10, 9), (250, 3), (250, 249)])


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


def shifted(ddpm: Ddpm, t: int, x_vp: Tensor, x_start: Tensor, mean: bool) -> Tensor:
    """Our shift of x0-hat at step t, in float32, for the host's x and sigma."""
    sigma, after = (ddpm.sigmas[i].item() for i in (t, t - 1))
    x = (x_vp * (1 + sigma ** 2) ** 0.5).float()
    level = exploding(sigma, len(x), torch.float32)
    run = start(mixture(dtype=torch.float32), weight=3.5, mean=mean)
    guided = guide(run, x, torch.zeros_like(x), level, exploding(after, 1, torch.float32))
    return guided.double()


@STEPS
def test_condition_score_of_guided_diffusion(steps, t):
    """Its DDIM step, and Euler's of the host, with the shift that we make of x0-hat."""
    ddpm, known, x_vp = Ddpm(steps), mixture(), noise(3)
    abar, before, sigma, after = ddpm.abar[t], ddpm.before[t], ddpm.sigmas[t], ddpm.sigmas[t - 1]
    x_start = known.denoise(x_vp * (1 + sigma ** 2).sqrt(), exploding(sigma.item(), 3))
    eps = (x_vp / abar.sqrt() - x_start) / (1 / abar - 1).sqrt()
    guided_eps = eps - (1 - abar).sqrt() * cond_fn(known, x_vp, abar, 2, 3.5)
    guided_start = x_vp / abar.sqrt() - (1 / abar - 1).sqrt() * guided_eps

    shift = shifted(ddpm, t, x_vp, x_start, mean=False)
    assert relative(shift, guided_start - x_start) < 1e-4
    ddim = before.sqrt() * guided_start + (1 - before).sqrt() * guided_eps
    x, x0 = x_vp * (1 + sigma ** 2).sqrt(), x_start + shift
    euler = x0 + after / sigma * (x - x0)
    assert relative(euler / (1 + after ** 2).sqrt(), ddim) < 1e-4


@STEPS
def test_condition_mean_of_guided_diffusion(steps, t):
    """Its ancestral step, and Euler ancestral's of the host, with the shift of form `mean`."""
    ddpm, known, x_vp = Ddpm(steps), mixture(), noise(3)
    abar, sigma, after = ddpm.abar[t], ddpm.sigmas[t], ddpm.sigmas[t - 1]
    x_start = known.denoise(x_vp * (1 + sigma ** 2).sqrt(), exploding(sigma.item(), 3))
    gradient = cond_fn(known, x_vp, abar, 2, 3.5)
    moved = ddpm.posterior_variance[t] * gradient  # new_mean - mean

    shift = shifted(ddpm, t, x_vp, x_start, mean=True)
    ours = (ddpm.posterior_mean(t, x_start + shift, x_vp)
            - ddpm.posterior_mean(t, x_start, x_vp))
    assert relative(ours, moved) < 1e-4
    up = (after ** 2 * (sigma ** 2 - after ** 2) / sigma ** 2).sqrt()
    down = (after ** 2 - up ** 2).sqrt()
    x, x0 = x_vp * (1 + sigma ** 2).sqrt(), x_start + shift
    euler = (x0 + down / sigma * (x - x0)) / (1 + after ** 2).sqrt()
    assert relative(euler, ddpm.posterior_mean(t, x_start, x_vp) + moved) < 1e-4


def test_both_forms_are_one_where_steps_are_small():
    ddpm = Ddpm(1000)
    ve = [NoiseLevel.variance_exploding(ddpm.sigmas[t:t + 1]) for t in (500, 499)]
    assert vp_factor(ve[0]).item() == pytest.approx(vp_factor(ve[1]).item(), rel=0.02)


@LEVELS
def test_mixed_is_the_sum_of_the_classes_gradients(level):
    """Eq. 8: omega_i = tau_i p_i / sum_j tau_j p_j."""
    known, x = mixture(), noise(2) * 2
    zero = torch.zeros_like(x)
    found = guide(start(known, None, weight=0.7), x, zero, level)
    p = known.log_posterior(x, level.signal, level.noise).exp()
    omega = known.thresholds * p / (known.thresholds * p).sum(1, keepdim=True)
    each = torch.stack([guide(start(known, i), x, zero, level) for i in range(3)], dim=1)
    expected = 0.7 * (omega[..., None, None, None] * each).sum(1)
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_factor_keeps_its_precision_at_little_noise():
    level = exploding(0.002, dtype=torch.float32)
    exact = 0.002 ** 2 / (1 + 0.002 ** 2) ** 0.5
    assert vp_factor(level)[0].item() == pytest.approx(exact, rel=1e-6)


# Where it pushes

def test_scale_zero_gives_the_very_same_tensor_and_asks_nobody():
    known, x = mixture(), noise(2)
    run = start(known, weight=0.0)
    assert guide(run, x, x, exploding(1.0)) is x
    assert run.idle and known.calls == 0
    assert "Nothing pushed: scale is 0." in minority_report(2, 3, 0.0, run.figures())


@pytest.mark.parametrize(("sigma", "pushes"), [(0.49, False), (0.5, True), (2.0, True),
                                               (2.01, False)])
def test_outside_the_window_the_very_same_tensor(sigma, pushes):
    known, x = mixture(), noise(2)
    run = start(known, sigma_start=2.0, sigma_end=0.5)
    assert (guide(run, x, x, exploding(sigma)) is not x) == pushes
    assert known.calls == pushes
    told = minority_report(2, 3, 1.0, run.figures())
    assert ("Pushed at 1 of 1" in told) == pushes
    assert ("no step lies between" in told) != pushes


@pytest.mark.parametrize(("level", "pushes"), [
    (exploding(149.0), False), (exploding(148.0), True), (exploding(0.0068), True),
    (exploding(0.0067), False), (NoiseLevel.flow(torch.ones(2, dtype=torch.float64)), False)])
def test_noise_levels_that_the_classifier_does_not_know_are_left_alone(level, pushes):
    known, x = mixture(), noise(2)
    known.log_snr_range = (-10.0, 10.0)
    run = start(known)
    assert (guide(run, x, x, level) is not x) == pushes
    assert ("outside the noise levels" in minority_report(2, 3, 1.0, run.figures())) != pushes


def test_a_partly_known_range_is_told():
    known, x = mixture(), noise(2)
    run = start(known)
    for sigma in (500.0, 1.0):
        guide(run, x, x, exploding(sigma))
    told = minority_report(2, 3, 1.0, run.figures())
    assert "Pushed at 1 of 2" in told and "left alone at 1, outside the noise levels" in told


@pytest.mark.parametrize(("every", "calls"), [(1, 6), (2, 4), (3, 2), (4, 2)])
def test_every_n_steps_counts_the_schedules_steps(every, calls):
    """Two evaluations a step, as dpmpp_sde makes them; the window lets the first step out."""
    known, x = mixture(), noise(2)
    run = start(known, schedule=(14.0, 8.0, 4.0, 2.0, 0.0), every=every, sigma_start=8.0)
    for sigma in (14.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.0):
        guide(run, x, x, exploding(sigma))
    assert known.calls == calls
    figures = run.figures()
    assert (figures.pushed, figures.computed) == (6, calls)


def test_the_last_gradient_is_pushed_with_the_present_factor():
    known, x = mixture(), noise(2)
    zero = torch.zeros_like(x)
    run = start(known, schedule=(4.0, 2.0, 1.0, 0.0), every=2)
    first = guide(run, x, zero, exploding(4.0))
    second = guide(run, x * 3, zero, exploding(2.0))
    factors = [vp_factor(exploding(sigma))[0] for sigma in (4.0, 2.0)]
    assert torch.allclose(second, first * factors[1] / factors[0])
    third = guide(run, x * 3, zero, exploding(1.0))
    assert torch.allclose(third, guide(start(known), x * 3, zero, exploding(1.0)))


@pytest.mark.parametrize(("sigma", "step"), [
    (20.0, 0), (14.6, 0), (14.5999, 0), (9.0, 0), (5.0, 1), (4.99999, 1), (0.1, 3), (0.0, 4)])
def test_step_of_a_noise_level(sigma, step):
    window = StepWindow(schedule=(14.6, 5.0, 1.0, 0.2, 0.0), **WIDE)
    assert window.step(sigma) == step
    assert window.after(sigma) == (5.0, 1.0, 0.2, 0.0, 0.0)[step]


# Tensors

def test_each_sample_is_pushed_as_if_alone():
    known, x = mixture(), noise(3)
    level = exploding(1.0, 3)
    together = guide(start(known), x, known.denoise(x, level), level)
    for i in range(3):
        one, alone = x[i:i + 1], exploding(1.0, 1)
        found = guide(start(known), one, known.denoise(one, alone), alone)
        assert torch.allclose(together[i:i + 1], found, rtol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_push_that_is_not_finite_is_dropped_for_its_sample_alone(bad):
    known, x = mixture(), noise(2)
    exact = known.log_probs
    known.log_probs = lambda x_vp, log_snr: exact(x_vp, log_snr) * torch.tensor(
        [[bad], [1.0]], dtype=torch.float64)
    run = start(known)
    for sigma in (2.0, 1.0):
        guided = guide(run, x, x / 2, exploding(sigma))
        assert torch.equal(guided[0], x[0] / 2)
        assert guided[1].isfinite().all() and not torch.equal(guided[1], x[1] / 2)
    figures = run.figures()
    assert (figures.pushed, figures.dropped) == (2, 2)
    assert 0 < figures.mean_push < math.inf and figures.first < 0
    assert "2 pushes dropped" in minority_report(2, 3, 1.0, figures)


def test_all_dropped_is_told():
    known, x = mixture(), noise(2)
    known.log_probs = lambda x_vp, log_snr: x_vp.flatten(1)[:, :3] * math.nan
    run = start(known)
    assert torch.equal(guide(run, x, x, exploding(1.0)), x)
    for target, name in ((2, "scale"), (None, "beta")):
        told = minority_report(target, 3, 1.0, run.figures())
        assert f"Nothing pushed: all 2 pushes were not finite. Lower {name}." in told


def test_one_frame_of_a_video_model_is_an_image():
    known, x = mixture(), noise(2)
    level = exploding(1.0)
    flat = guide(start(known), x, x, level)
    assert torch.equal(guide(start(known), x[:, :, None], x[:, :, None], level), flat[:, :, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_the_dtype_of_the_model(dtype):
    plain = noise(2).to(dtype)
    run = start(mixture(dtype=torch.float32))
    guided = guide(run, noise(2, torch.float32), plain, exploding(1.0, dtype=torch.float32))
    assert guided.dtype == dtype


def test_tensors_of_inference_mode():
    """A linear classifier: the way back needs its weights, and the input."""
    net = torch.nn.Linear(math.prod(SHAPE), 3)

    class Net(Mixture):
        def log_probs(self, x_vp, log_snr):
            return (net(x_vp.flatten(1).square()) * log_snr[:, None].sigmoid()).log_softmax(1)

    known = Net([0.5, 0.3, 0.2], [1, 1, 1])
    with torch.inference_mode():
        x, level = noise(2, torch.float32), exploding(1.0, dtype=torch.float32)
        inside = guide(start(known), x, x, level)
    outside = guide(start(known), x.clone(), x.clone(), exploding(1.0, dtype=torch.float32))
    assert torch.equal(inside, outside) and not torch.equal(inside, x)


def test_does_not_touch_the_global_random_state():
    before = torch.random.get_rng_state()
    x = noise(2)
    guide(start(mixture()), x, x, exploding(1.0))
    assert torch.equal(before, torch.random.get_rng_state())


# Figures, classes

def test_figures():
    known, x = mixture(), noise(2)
    run = start(known, weight=2.0, sigma_start=10.0)
    plain = {sigma: known.denoise(x * sigma, exploding(sigma)) for sigma in (14.0, 4.0, 0.5)}
    pushes = [((guide(run, x * sigma, one, exploding(sigma)) - one).flatten(1).norm(dim=1)
               / (x * sigma - one).flatten(1).norm(dim=1)) for sigma, one in plain.items()]
    figures = run.figures()
    assert (figures.passed.evaluations, figures.passed.outside, figures.pushed) == (3, 1, 2)
    assert figures.mean_push == pytest.approx(torch.cat(pushes[1:]).mean().item(), rel=1e-5)
    log_p = [known.log_posterior(x * sigma, level.signal, level.noise)[:, 2].mean().item()
             for sigma, level in ((4.0, exploding(4.0)), (0.5, exploding(0.5)))]
    assert (figures.first, figures.last) == pytest.approx(tuple(log_p), rel=1e-6)
    told = minority_report(2, 3, 2.0, figures)
    assert "Towards class 2 of 3" in told and f"log p(class 2): {log_p[0]:.3f} at the first" in told


def test_report_of_mixed_tells_the_expected_score():
    known, x, level = mixture(), noise(1), exploding(1.0, 1)
    run = start(known, None, weight=1.0)
    guide(run, x, x, level)
    p = known.log_posterior(x, level.signal, level.noise).exp()
    expected = (known.thresholds * p).sum().item()
    assert f"Expected score: {expected:.4f} at the first" in minority_report(
        None, 3, 1.0, run.figures())


def test_guided_samples_are_of_the_class():
    """A whole run by Euler: plain samples are mostly common, guided ones rare."""
    known = Mixture([0.95, 0.05], [0.05, 0.05])
    schedule = [*torch.logspace(1.5, -1.5, 40).tolist(), 0.0]

    def sample(weight: float) -> float:
        run = start(known, target=1, weight=weight, schedule=tuple(schedule))
        x = noise(64, seed=3) * schedule[0]
        for sigma, after in zip(schedule, schedule[1:], strict=False):
            level = exploding(sigma, 64)
            denoised = guide(run, x, known.denoise(x, level), level)
            x = denoised + after / sigma * (x - denoised)
        clean = exploding(1e-3, 64)
        return known.log_posterior(x, clean.signal, clean.noise).exp()[:, 1].mean().item()

    assert sample(0.0) < 0.2
    assert sample(1.0) > 0.99


@pytest.mark.parametrize(("percentile", "classes", "expected"), [
    (0, 100, 0), (50, 100, 50), (99, 100, 99), (100, 100, 99), (99.9, 100, 99), (29, 100, 29),
    (58, 100, 58), (99, 10, 9), (89.9, 10, 8), (99.9, 1000, 999), (100, 1, 0), (49.9, 2, 0)])
def test_class_at_a_percentile(percentile, classes, expected):
    assert class_at(percentile, classes) == expected


def test_checked_class():
    assert checked_class(-1, 99, 100) == 99
    assert checked_class(7, 99, 100) == 7
    for bad in (100, -2):
        with pytest.raises(ValueError, match=f"Class {bad} .* 100 classes, 0 to 99"):
            checked_class(bad, 99, 100)


@pytest.mark.parametrize("thresholds", [
    None, torch.tensor([-1.0, 2.0]), torch.zeros(2), torch.tensor([1.0, math.inf]),
    torch.tensor([1.0, math.nan])])
def test_mixed_needs_positive_thresholds(thresholds):
    with pytest.raises(ValueError, match="Set mode to class"):
        checked_thresholds(thresholds)
