"""Self-guided minority sampling of one run: rare images without a classifier.

Um and Ye, "Self-Guided Generation of Minority Samples Using Diffusion Models", ECCV 2024
(2407.11555). A model restores what is common well and what is rare badly. So x0-hat is noised
anew, restored to x0'', and the sample climbs how far the restored image is from it:

    J = d(x0-hat(x_t), sg[x0''])        g = grad_{x_t} J / max |grad_{x_t} J|
    mean += w Sigma g, the same score as    x0' = x0 + w (1 - abar) / sqrt(abar) g.

d is the Euclidean distance of latents (the paper's code has it beside LPIPS). Mode "free" takes the
gradient at x0-hat itself, which is the direction x0 - x0'', and does without backpropagation
through the model; it is scaled by the variance of x0 given x_t, r^2 = s^2 / (a^2 + s^2):

    x0' = x0 + w r^2 d / max |d|,        d = x0 - x0''.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors

from .limiter import limit, per_sample_norm
from .minority import finite_mean, vp_factor
from .noise_level import NoiseLevel
from .step_window import Passed, StepWindow

MODES = ("backprop", "free")

Denoiser = Callable[[Tensor, Tensor], Tensor]  # x [batch, ...], the host's sigma [batch] -> x0-hat


@dataclass(frozen=True, kw_only=True)
class SelfGuidedSettings:
    """mode: one of MODES; scale: w; again_sigma, again: the noise level, in the host's numbers and
    as `[1]`, at which x0-hat is noised anew."""

    mode: str
    scale: float
    again_sigma: float
    again: NoiseLevel
    window: StepWindow


@dataclass(frozen=True)
class SelfGuidedFigures:
    """What the pushes of a run came to.

    passed: its evaluations; pushed: those at which was pushed; mean_push: mean of |shift| over the
    noise removed; first, last: mean over the batch of the root mean square difference of x0-hat and
    the restored image, at the first and the last push; dropped: shifts of samples that were NaN or
    infinite.
    """

    passed: Passed
    pushed: int
    mean_push: float
    first: float
    last: float
    dropped: int


def sample_seeds(start: Tensor, seed: int) -> list[int]:
    """A seed for each sample of `start` `[batch, ...]`, told by its content: a sample gets the same
    random numbers in any batch."""
    return [int.from_bytes(hashlib.sha256(one.numpy().tobytes() + str(seed).encode()).digest()[:7],
                           "big") for one in start.detach().float().cpu().contiguous()]


class SelfGuidedRun:
    """The state of one sampling run. seeds: one for each sample of the batch."""

    def __init__(self, settings: SelfGuidedSettings, seeds: list[int]):
        self.settings = settings
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._passed = Passed()
        self._first_step: int | None = None
        self._keeps = False  # whether the model writes over what its gradient needs
        self._distance: list[Tensor] = []  # first and last, each [batch], on the device
        self._pushes: list[tuple[Tensor, Tensor]] = []  # each [batch], on the device

    @property
    def idle(self) -> bool:
        return self.settings.scale == 0

    def guide(self, model: Denoiser, x: Tensor, denoised: Tensor, level: NoiseLevel,
              timestep: Tensor, sigma: float, log_snr: float) -> Tensor:
        """x0-hat `denoised` at x `[batch, ...]`, pushed; the very same where nothing is to push.

        model: the denoiser once more, differentiable in mode backprop; timestep: the host's sigma
        `[batch]`; sigma, log_snr: the level once more, as numbers.
        """
        settings = self.settings
        if not self._passed.open(settings.window, sigma, log_snr) or self.idle:
            return denoised
        if self._first_step is None:
            self._first_step = settings.window.step(sigma)
        if not settings.window.due(sigma, self._first_step):
            return denoised
        if settings.mode == "backprop":
            direction, factor = self._through_model(model, x, timestep), vp_factor(level)
        else:
            direction, factor = self._difference(model, denoised), level.prior_variance
        largest = direction.flatten(1).abs().amax(dim=1)
        factor = settings.scale * factor / largest.clamp(min=torch.finfo(largest.dtype).tiny)
        shift = direction * level.like(factor, x)
        limited = limit(shift)
        removed = per_sample_norm(x / level.like(level.signal, x) - denoised)
        self._pushes.append((limited.norm / removed, limited.finite))
        return denoised + limited.shift.to(denoised.dtype)

    def _through_model(self, model: Denoiser, x: Tensor, timestep: Tensor) -> Tensor:
        """Gradient of J by x_t."""
        with torch.inference_mode(False), torch.enable_grad():
            x_t = x.detach().clone().requires_grad_()

            def answer() -> Tensor:
                return model(x_t, timestep.detach().clone())

            with self._keeping():
                denoised = answer()
                with torch.no_grad():
                    restored = denoised.detach() - self._difference(model, denoised.detach())
                try:
                    return _slope(denoised, restored, x_t)
                except RuntimeError as error:
                    if self._keeps or "inplace operation" not in str(error):
                        raise
            del denoised  # and with it what its gradient took
            self._keeps = True
            with self._keeping():
                return _slope(answer(), restored, x_t)

    def _keeping(self) -> AbstractContextManager:
        """Within, a model may write over what its gradient needs, as Flux does, which adds in
        place. It takes longer, and so only models that do are run in it."""
        return allow_mutation_on_saved_tensors() if self._keeps else nullcontext()

    def _difference(self, model: Denoiser, denoised: Tensor) -> Tensor:
        """x0 - x0'', with x0'' restored by the model from x0 noised anew."""
        again = self.settings.again
        noise = torch.stack([torch.randn(denoised.shape[1:], generator=generator)
                             for generator in self._generators]).to(denoised)
        signal, spread = (again.like(one, noise).to(noise) for one in (again.signal, again.noise))
        x_s = signal * denoised + spread * noise
        sigma = torch.full((len(x_s),), self.settings.again_sigma, device=x_s.device)
        difference = denoised - model(x_s, sigma)
        self._distance = [*self._distance[:1],
                          difference.detach().square().flatten(1).mean(dim=1).sqrt()]
        return difference

    def figures(self) -> SelfGuidedFigures:
        """To be read when the run has ended: it waits for the device."""
        if not self._pushes:
            return SelfGuidedFigures(self._passed, 0, 0.0, 0.0, 0.0, 0)
        push, finite = (torch.stack(column).cpu() for column in zip(*self._pushes, strict=True))
        return SelfGuidedFigures(
            passed=self._passed, pushed=int(finite.any(dim=1).sum()),
            mean_push=finite_mean(push[finite]), first=finite_mean(self._distance[0]),
            last=finite_mean(self._distance[-1]), dropped=int((~finite).sum()))


def _slope(denoised: Tensor, restored: Tensor, x_t: Tensor) -> Tensor:
    """Gradient of J by x_t, for an x0-hat `denoised` that was made from it."""
    distance = torch.linalg.vector_norm((denoised - restored).flatten(1), dim=1)
    return torch.autograd.grad(distance.sum(), x_t)[0]
