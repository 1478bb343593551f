"""Self-Guided Minority as wrappers of the host's sampling."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor

from ..guidance import self_guided
from ..guidance.minority_report import self_guided_report
from ..guidance.ordinary_weights import check_whole, ordinary_weights
from . import _host
from ._sampling_hooks import KEYS, SamplingHooks, levels, with_new_cache


@dataclass(frozen=True, kw_only=True)
class SelfGuidedOptions:
    """The widgets of Self-Guided Minority; percents run from 0, pure noise, to 1."""

    mode: str
    scale: float
    start_percent: float
    end_percent: float
    every_n_steps: int
    renoise_percent: float


class SelfGuidedHooks(SamplingHooks):
    """Both wrappers of one Self-Guided Minority node."""

    title, key = "Self-guided minority", KEYS + "self_guided"

    def attach(self, model):
        """A clone of the MODEL with the wrappers. ValueError where the model cannot be
        differentiated and should be."""
        if self.options.mode == "backprop" and self.options.scale != 0 and model.is_dynamic():
            try:
                model = model.clone(disable_dynamic=True)
            except RuntimeError as error:
                raise ValueError(_no_gradient(error)) from error
        return super().attach(model)

    def _begin(self, model, noise, latent_image, sigmas, seed) -> self_guided.SelfGuidedRun:
        options, sampling = self.options, model.get_model_object("model_sampling")
        again = min(float(sampling.percent_to_sigma(options.renoise_percent)),
                    float(sampling.sigma_max))
        self._note({"mode": options.mode, "scale": options.scale, "renoise_sigma": again})
        start = noise.cpu()  # the host moves both to one device later
        if latent_image is not None:
            start = torch.cat([start, latent_image.cpu()], dim=1)
        return self_guided.SelfGuidedRun(
            self_guided.SelfGuidedSettings(
                mode=options.mode, scale=options.scale, again_sigma=again,
                again=_host.noise_level(sampling, torch.tensor([again], device=model.load_device)),
                window=self._window(sampling, sigmas, options.every_n_steps)),
            self_guided.sample_seeds(start, seed or 0))

    def _guide(self, run, executor, x, timestep, model_options, seed, denoised, sigma) -> Tensor:
        guider = executor.class_obj
        options = _bare_options(guider, model_options)
        if run.settings.mode == "backprop":  # the host's nodes for several GPUs take no gradient
            options.pop("multigpu_clones", None)

        def model(x_t: Tensor, sigmas: Tensor) -> Tensor:
            return executor(x_t, sigmas, options, seed)

        level, log_snr = levels(guider, timestep, sigma)
        if run.settings.mode == "free":
            return run.guide(model, x, denoised, level, timestep, sigma, log_snr)

        def differentiable(x_t: Tensor, sigmas: Tensor) -> Tensor:
            with _differentiable(guider.inner_model.diffusion_model, x.device):
                return model(x_t, sigmas)

        try:
            return run.guide(differentiable, x, denoised, level, timestep, sigma, log_snr)
        except (RuntimeError, _NotWhole) as error:
            if comfy.model_management.is_oom(error):
                raise
            raise ValueError(_no_gradient(error)) from error

    def _report(self, run) -> str:
        return self_guided_report(self.options.mode, self.options.scale, run.figures())


class _NotWhole(Exception):
    """A model of which not all is on the device."""


@contextmanager
def _differentiable(net: torch.nn.Module, device: torch.device):
    """Within, gradients pass through the host's network; its operations are those of training."""
    try:
        check_whole(net, device)
    except ValueError as error:
        raise _NotWhole(str(error)) from error
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with ordinary_weights(net):
            yield
    finally:
        comfy.model_management.in_training = before


def _no_gradient(error: Exception) -> str:
    return (f"Self-Guided Minority cannot take a gradient through this model ({error}). Set mode "
            "to free, which needs none.")


def _bare_options(guider, model_options: dict) -> dict:
    """The options for evaluations beside the sampler's own: without this pack's other guidance,
    without what the sampler listens with (CFG++ ones do), and with a cache of their own."""
    options = with_new_cache(model_options)
    options.pop("sampler_post_cfg_function", None)
    if "sampler_post_cfg_function" in guider.model_options:
        options["sampler_post_cfg_function"] = guider.model_options["sampler_post_cfg_function"]
    options["transformer_options"] = {key: value for key, value
                                      in options["transformer_options"].items()
                                      if not key.startswith(KEYS)}
    return options
