"""One denoising step of the host's models, of any family and under any conditioning."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.model_sampling
import comfy.samplers
import folder_paths
import torch
from torch import Tensor

from ..guidance.minority_score import flow_time
from . import _host
from ._adm_model import AdmModel

PERCENTS = 65


def lpips_folders() -> list[str]:
    """Where the host keeps LPIPS backbones: its models folder, and any the user configured."""
    configured = folder_paths.folder_names_and_paths.get("lpips", ([], set()))[0]
    return list(dict.fromkeys([str(Path(folder_paths.models_dir, "lpips")), *configured]))


def host_sigma(model_sampling, sigma: float) -> float:
    """A noise level s / a in the numbers of the host's model. ValueError if the model has no such
    level."""
    if isinstance(model_sampling, _host.NOT_DIFFUSION):
        raise ValueError("This model maps one image to another and does not denoise, so it has no "
                         "minority score. Use a diffusion or flow model.")
    ends = torch.tensor([float(model_sampling.sigma_min), float(model_sampling.sigma_max)])
    known = _host.noise_level(model_sampling, ends)
    low, high = (known.noise / known.signal).tolist()
    if not low * (1 - 1e-5) <= sigma <= high * (1 + 1e-5):
        raise ValueError(f"sigma is {sigma:g}, but this model knows noise from {low:.4g} to "
                         f"{high:.4g} only. Choose a sigma in between.")
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return flow_time(sigma, getattr(model_sampling, "noise_scale", 1.0))
    return sigma


def log_snr_curve(model_sampling) -> tuple[float, ...]:
    """The model's log SNR at percent 0, 1/64, ... 1, within [-10, 10]."""
    sigmas = torch.tensor([float(model_sampling.percent_to_sigma(i / (PERCENTS - 1)))
                           for i in range(PERCENTS)], dtype=torch.float64)
    sigmas = sigmas.clamp(float(model_sampling.sigma_min), float(model_sampling.sigma_max))
    return tuple(_host.noise_level(model_sampling, sigmas).log_snr.clamp(-10, 10).tolist())


class OneStep(comfy.samplers.Sampler):
    """A single evaluation of the model, whose answer x0-hat is the result."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None,
               denoise_mask=None, disable_pbar=False) -> Tensor:
        sampling = model_wrap.inner_model.model_sampling
        # Never the host's max_denoise, which makes x_t another one at the highest level.
        x_t = sampling.noise_scaling(sigmas[0], noise, latent_image, False)
        return model_wrap(x_t, sigmas[0] * x_t.new_ones(len(x_t)), **extra_args)


class HostDenoiser:
    """(x0, noise) -> x0-hat of a MODEL under a conditioning, with all its patches and wrappers.

    Latents `[batch, channels, ...]` as the sampler sees them.
    """

    def __init__(self, model, conditioning: list | None, sigma: float):
        self.model = model
        self.latent_format = model.get_model_object("latent_format")
        self.conditioning = [[None, {}]] if conditioning is None else conditioning
        self.lacks_conditioning = conditioning is None and not isinstance(model.model, AdmModel)
        level = host_sigma(model.get_model_object("model_sampling"), sigma)
        # Not down to 0: wrappers shall not take the answer for a finished image.
        self.sigmas = torch.tensor([level, level / 2])

    def __call__(self, latents: Tensor, noise: Tensor) -> Tensor:
        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(self.conditioning, self.conditioning)
        guider.set_cfg(1.0)
        start = self.latent_format.process_out(latents.clone())
        if not start.any():
            start = start + 1e-12  # the host does not shift a start that is all zero
        try:
            restored = guider.sample(noise, start, OneStep(), self.sigmas, disable_pbar=True,
                                     seed=0)
        except comfy.model_management.OOM_EXCEPTION:
            raise
        except Exception as error:
            if self.lacks_conditioning:
                raise ValueError(f"The model cannot be run without a conditioning ({error}). "
                                 "Connect one, such as an empty prompt.") from error
            raise
        return self.latent_format.process_in(restored).to(latents)
