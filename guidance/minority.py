"""Minority guidance of one sampling run.

Um, Lee and Ye, "Don't Play Favorites: Minority Guidance for Diffusion Models", ICLR 2024
(2301.12334). A classifier of noisy images tells how rare an image is, in classes of rarity; the
sample climbs the log-probability of one class (eq. 4), or the log of the rarity that the classifier
expects (eq. 8).

By Tweedie's formula a shift of the score by w grad log c(x_t) is a shift of x0-hat by
w (s^2 / a) grad log c(x_t). The classifier knows x_vp = x_t / sqrt(a^2 + s^2), so by the chain rule

    x0' = x0 + w (1 - abar) / sqrt(abar) grad_{x_vp} log c(x_vp, log SNR),

one line for EPS, V, EDM and flow. It is `condition_score` of openai/guided-diffusion: its
eps' = eps - w sqrt(1 - abar) grad is this shift of x0-hat, and it is right for every sampler.

Its ancestral sampler uses `condition_mean` instead: the mean of a step moves by w Sigma grad, with
Sigma the variance of the noise that the step puts back, sqrt(abar') beta / (1 - abar) times the
shift of x0-hat. With Sigma the variance of the posterior q(x_t' | x_t, x0) this comes to the same
shift of x0-hat with the factor (1 - abar') / sqrt(abar') of the level after the step (form "mean").
Steps that are small make both forms one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .limiter import limit, per_sample_norm
from .noise_level import NoiseLevel
from .replayed import Replayed
from .step_window import Passed, StepWindow

MODES = ("class", "mixed")
FORMS = ("score", "mean")


class Classifier(Protocol):
    """What guidance needs of a MinorityClassifier."""

    classes: int
    thresholds: Tensor | None
    log_snr_range: tuple[float, float]

    def log_probs(self, x_vp: Tensor, log_snr: Tensor) -> Tensor:
        """`[batch, channels, height, width]`, `[batch]` -> `[batch, classes]`."""


@dataclass(frozen=True, kw_only=True)
class MinoritySettings:
    """target: the class to climb, None for the mixed mode; weight: w of eq. 4, or beta of eq. 8;
    mean: whether to move the mean of ancestral steps, in place of the score."""

    target: int | None
    weight: float
    window: StepWindow
    mean: bool = False


@dataclass(frozen=True)
class MinorityFigures:
    """What the pushes of a run came to.

    passed: its evaluations; pushed: those at which was pushed; computed: those of them at which the
    gradient was computed anew; mean_push: mean of |shift| over the noise removed, |x_t / a - x0|;
    first, last: mean of log c over the batch at the first and the last gradient; dropped: shifts of
    samples that were NaN or infinite.
    """

    passed: Passed
    pushed: int
    computed: int
    mean_push: float
    first: float
    last: float
    dropped: int


def class_at(percentile: float, classes: int) -> int:
    """The class that holds a percentile of rarity, 0 the most common and 100 the rarest."""
    return min(int(percentile * classes / 100 + 1e-9), classes - 1)


def checked_class(number: int, percentile: float, classes: int) -> int:
    """The class to climb: `number`, or by the percentile where that is -1. ValueError if it is not
    one of the classifier's."""
    if not -1 <= number < classes:
        raise ValueError(f"Class {number} was asked for, but this classifier has {classes} "
                         f"classes, 0 to {classes - 1}. Set class_number to one of these, or to "
                         "-1 to choose by rarity.")
    return class_at(percentile, classes) if number == -1 else number


def checked_thresholds(thresholds: Tensor | None) -> Tensor:
    """The tau of eq. 8, `[classes]`; ValueError where eq. 8 cannot be computed from them."""
    if thresholds is None:
        raise ValueError("Mode mixed needs the minority scores that divide the classes, and this "
                         "classifier's file does not hold them. Set mode to class.")
    if not (thresholds >= 0).all() or not (thresholds > 0).any() or thresholds.isinf().any():
        raise ValueError("Mode mixed takes the logarithm of the expected minority score, so the "
                         "scores that divide the classes must be positive; this classifier's run "
                         f"from {thresholds.min():.4g} to {thresholds.max():.4g}. Set mode to "
                         "class, or train a classifier on scores of another distance.")
    return thresholds


def vp_factor(level: NoiseLevel) -> Tensor:
    """`[batch]`; (1 - abar) / sqrt(abar), without the cancellation of 1 - abar."""
    return level.noise ** 2 / (level.signal * (level.signal ** 2 + level.noise ** 2).sqrt())


def finite_mean(values: Tensor) -> float:
    """The mean of those values that are finite, 0 where none is."""
    values = values[values.isfinite()]
    return float(values.mean()) if len(values) else 0.0


def climbed(classifier: Classifier, target: int | None, x: Tensor, signal: Tensor, noise: Tensor
            ) -> tuple[Tensor, Tensor]:
    """Gradient of log c by x_vp at x `[batch, ...]`, of its shape, and log c `[batch]`.

    x, signal, noise: may be tensors of inference mode; target: as MinoritySettings has it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        level = NoiseLevel(signal.detach().clone(), noise.detach().clone())
        scale = (level.signal ** 2 + level.noise ** 2).sqrt()
        x_vp = x.detach() / level.like(scale, x)
        x_vp = x_vp.to(torch.promote_types(x.dtype, torch.float32)).clone().requires_grad_()
        image = x_vp.squeeze(2) if x_vp.ndim == 5 else x_vp  # one frame
        log_probs = classifier.log_probs(image, level.log_snr)
        if target is None:
            assert classifier.thresholds is not None
            tau = classifier.thresholds.to(log_probs)
            log_c = torch.logsumexp(tau.log() + log_probs, dim=1)  # eq. 8
        else:
            log_c = log_probs[:, target]  # eq. 4
        gradient, = torch.autograd.grad(log_c.sum(), x_vp)
    return gradient, log_c.detach()


class MinorityRun:
    """The state of one sampling run. The classifier's tensors must be ordinary ones."""

    def __init__(self, classifier: Classifier, settings: MinoritySettings):
        self.classifier = classifier
        self.settings = settings
        self._passed = Passed()
        self._first_step: int | None = None
        self._gradient: Tensor | None = None  # of log c by x_vp, [batch, ...]
        self._log_c: list[Tensor] = []  # first and last, each [batch], on the device
        self._climbed = Replayed(partial(climbed, classifier, settings.target))
        self._computed = 0
        self._pushes: list[tuple[Tensor, Tensor]] = []  # each [batch], on the device

    @property
    def idle(self) -> bool:
        return self.settings.weight == 0

    def guide(self, x: Tensor, denoised: Tensor, level: NoiseLevel, after: NoiseLevel,
              sigma: float, log_snr: float) -> Tensor:
        """x0-hat `denoised` at x `[batch, ...]`, pushed; the very same where nothing is to push.

        after: the level that the step goes to, `[1]` or `[batch]`; sigma, log_snr: the level once
        more, as numbers: the host's own, and log SNR.
        """
        settings = self.settings
        usable = self.classifier.log_snr_range
        if not self._passed.open(settings.window, sigma, log_snr, usable) or self.idle:
            return denoised
        if self._first_step is None:
            self._first_step = settings.window.step(sigma)
        if self._gradient is None or settings.window.due(sigma, self._first_step):
            self._gradient, log_c = self._climbed(x, level.signal, level.noise)
            self._log_c = [*self._log_c[:1], log_c]
            self._computed += 1
        factor = settings.weight * vp_factor(after if settings.mean else level)
        shift = level.like(factor, x).to(self._gradient) * self._gradient  # eq. 4, 8
        limited = limit(shift)
        removed = per_sample_norm(x / level.like(level.signal, x) - denoised)
        self._pushes.append((limited.norm / removed, limited.finite))
        return denoised + limited.shift.to(denoised.dtype)

    def figures(self) -> MinorityFigures:
        """To be read when the run has ended: it waits for the device."""
        if not self._pushes:
            return MinorityFigures(self._passed, 0, 0, 0.0, 0.0, 0.0, 0)
        push, finite = (torch.stack(column).cpu() for column in zip(*self._pushes, strict=True))
        return MinorityFigures(
            passed=self._passed, pushed=int(finite.any(dim=1).sum()), computed=self._computed,
            mean_push=finite_mean(push[finite]), first=finite_mean(self._log_c[0]),
            last=finite_mean(self._log_c[-1]), dropped=int((~finite).sum()))
