"""A peer as wrappers of the host's sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.peers.bank import Bank

KEY = "benchmark.peer"
# So that no peer draws the very noise that an image starts from. Torch's generators on the CPU
# take a seed modulo 2 ** 32.
OTHER_SEEDS = 2 ** 31


@dataclass(frozen=True)
class Step:
    """One evaluation of the model, in x_t = a x0 + s n.

    index: of the step; steps: how many there are; sigma: in the host's unit, following: of the
    next step; time: 1 is pure noise, 0 the finished image.
    """

    index: int
    steps: int
    sigma: float
    following: float
    a: float
    s: float
    time: float

    @property
    def edm(self) -> float:
        """Noise over signal, which means the same on every model."""
        return self.s / self.a if self.a > 0 else float("inf")

    @property
    def r2(self) -> float:
        """Variance of x0 given x_t where x0 has unit variance."""
        return self.s ** 2 / (self.a ** 2 + self.s ** 2)


@dataclass
class Run:
    """One sampling run. generator: of the peer's own noise; noisy: x_t by step, if it is kept."""

    sigmas: list[float]
    generator: torch.Generator
    step: Step | None = None
    noisy: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, sigmas: list[float], seed: int | None) -> Run:
        """With noise of its own for each seed of an image."""
        return cls(sigmas, torch.Generator().manual_seed(OTHER_SEEDS + (seed or 0)))

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape of a tensor; the host's random state is untouched."""
        return torch.randn(like.shape, generator=self.generator).to(like)


class Peer:
    """A rival method on a MODEL. At strength 0 the MODEL stays as it is.

    bank: earlier queue items; None where each queue item is on its own.
    """

    keeps_noisy = False  # whether x_t of each step goes into the bank

    def __init__(self, strength: float, bank: Bank | None = None):
        self.strength = strength
        self.bank = bank
        self.run: Run | None = None

    def attach(self, model):
        """A clone of the MODEL with the wrappers; the very same one at strength 0."""
        if self.strength == 0:
            return model
        from comfy.patcher_extension import WrappersMP

        patched = model.clone()
        for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, self._outer_sample),
                              (WrappersMP.SAMPLER_SAMPLE, self._sampler_sample),
                              (WrappersMP.PREDICT_NOISE, self._predict_noise),
                              (WrappersMP.APPLY_MODEL, self.apply_model)):
            patched.add_wrapper_with_key(kind, KEY, wrapper)
        return patched

    # What a peer changes; all of it is left alone here.

    def initial_noise(self, guider, noise: Tensor, scale: Callable[[Tensor], Tensor],
                      sigma: Tensor) -> Tensor:
        """Standard normal noise `[batch, ...]` to start from; `scale` makes x_t of it."""
        return noise

    def denoised(self, guider, model: Callable[[Tensor], Tensor], x: Tensor, step: Step) -> Tensor:
        """x0-hat `[batch, ...]`; `model` maps x_t to it."""
        return model(x)

    def apply_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None,
                    transformer_options={}, **kwargs):  # noqa: B006
        """One call of the network."""
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    # How it gets there.

    def _outer_sample(self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None,
                      callback=None, disable_pbar=False, seed=None, latent_shapes=None):
        self.run = Run.of(sigmas.tolist(), seed)
        try:
            result = executor(noise, latent_image, sampler, sigmas, denoise_mask, callback,
                              disable_pbar, seed, latent_shapes=latent_shapes)
            if self.bank is not None:
                patcher = executor.class_obj.model_patcher
                self.bank.add(patcher.model.process_latent_in(result), self.run.noisy)
            return result
        finally:
            self.run = None

    def _sampler_sample(self, executor, guider, sigmas, extra_args, callback, noise,
                        latent_image=None, denoise_mask=None, disable_pbar=False):
        sampling = guider.inner_model.model_sampling
        largest = self.run.sigmas[0] >= float(sampling.sigma_max) * (1 - 1e-5)
        with torch.inference_mode(False):  # so that gradients may pass through it
            sigma = torch.tensor(self.run.sigmas[0], device=noise.device)

        def scale(noise: Tensor) -> Tensor:
            return sampling.noise_scaling(sigma, noise, torch.zeros_like(noise), largest)

        noise = self.initial_noise(guider, noise, scale, sigma)
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask,
                        disable_pbar)

    def _predict_noise(self, executor, x, timestep, model_options={}, seed=None):  # noqa: B006
        guider = executor.class_obj
        self.run.step = step = self._step(guider.inner_model.model_sampling, float(timestep[0]))
        if self.keeps_noisy and self.bank is not None:
            self.run.noisy[step.index] = x.clone()
        return self.denoised(guider, lambda x_t: executor(x_t, timestep, model_options, seed),
                             x, step)

    def _step(self, sampling, sigma: float) -> Step:
        from comfy.model_sampling import CONST

        sigmas = self.run.sigmas
        index = min(range(len(sigmas) - 1), key=lambda i: abs(sigmas[i] - sigma))
        flow = isinstance(sampling, CONST)
        time = (sigma if flow else float(sampling.timestep(torch.tensor(sigma)))
                / (len(sampling.sigmas) - 1))
        return Step(index=index, steps=len(sigmas) - 1, sigma=sigma, following=sigmas[index + 1],
                    a=1 - sigma if flow else 1.0, s=sigma, time=time)


def as_if_moved(denoised: Tensor, moved: Tensor, step: Step) -> Tensor:
    """The x0-hat for x_t that makes an Euler step end where it would from x_t + moved.

    denoised: x0-hat at x_t + moved. With r = following / sigma, an Euler step goes to
    r x + (1 - r) x0-hat, in EPS and in flow models alike.
    """
    ratio = step.following / step.sigma
    return denoised + moved * (ratio / (1 - ratio))
