"""The noise that a run under novelty guidance starts from, before the host's sampler begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.utils
from torch import Tensor

from ..guidance.antithetic_noise import independent
from ..guidance.evaluation import Evaluation
from ..guidance.latent_space import LatentSpace
from ..guidance.novelty import NoveltyRun
from ..guidance.starts import AUTO, preview_levels
from ._late_cfg import cfg_off
from ._sampling_hooks import with_new_cache

if TYPE_CHECKING:
    from ._novelty_run import NoveltyOptions


def starting_noise(run: NoveltyRun, options: NoveltyOptions, candidates: int, guider,
                   sigmas: Tensor, extra_args: dict[str, Any], noise: Tensor, latent_image: Tensor,
                   denoise_mask: Tensor | None, shared: Evaluation) -> tuple[Tensor, list[str]]:
    """The noise `[batch, ...]`, and what is set and has no use. candidates: noises to try."""
    sampling = guider.inner_model.model_sampling
    ignored = []
    if options.antithetic_noise and run.repels_mates(noise) and not shared.antithetic:
        reason = _not_antithetic(options, sampling, noise, sigmas)
        if reason:
            ignored.append(f"antithetic_noise, since {reason}.")
        else:
            noise, shared.antithetic = run.antithetic(noise), True
    if candidates > 1 and isinstance(run.space, LatentSpace):
        reason = _no_choice(run, sampling, noise, sigmas, denoise_mask)
        if not reason:
            noise = _chosen_noise(run, candidates, options.candidates == AUTO, guider, sigmas,
                                  extra_args, noise, latent_image, shared)
        elif options.candidates != AUTO:
            ignored.append(f"candidates, since {reason}.")
    return noise, ignored


def _not_antithetic(options: NoveltyOptions, sampling, noise: Tensor, sigmas: Tensor
                    ) -> str | None:
    """Why the noises of a batch stay as they are, if they do."""
    if float(sampling.percent_to_sigma(options.start_percent)) < float(sigmas[0]):
        return "start_percent leaves the start alone"
    if not noise.any():
        return "the noise is disabled"
    if not independent(noise):
        return "images of the batch share a noise"
    return None


def _no_choice(run: NoveltyRun, sampling, noise: Tensor, sigmas: Tensor,
               denoise_mask: Tensor | None) -> str | None:
    """Why a run is not to begin but from the noise that it was given, if it is not."""
    if not run.pushes(noise):
        return "there is nothing to stay away from"
    if len(sigmas) < 2:
        return "the run has no step"
    if denoise_mask is not None:
        return "the latent has a mask"
    if not is_pure_noise(sampling, sigmas):
        return "this pass does not start from pure noise"
    if run.settings.sigma_start < float(sigmas[0]):
        return "start_percent leaves the start alone"
    if not noise.any():
        return "the noise is disabled"
    return None


def is_pure_noise(sampling, sigmas: Tensor) -> bool:
    """As the host's samplers tell it."""
    return float(sigmas[0]) >= float(sampling.sigma_max) * (1 - 1e-5)


def _chosen_noise(run: NoveltyRun, candidates: int, looks_only: bool, guider, sigmas: Tensor,
                  extra_args: dict[str, Any], noise: Tensor, latent_image: Tensor,
                  shared: Evaluation) -> Tensor:
    """The noise to start from. The model follows the prompt alone, without CFG and without
    anyone's push, and the sampler's progress bar counts its evaluations."""
    sampling = guider.inner_model.model_sampling
    bar = comfy.utils.ProgressBar(candidates * (1 if looks_only else len(preview_levels(sigmas))))

    def start(one: Tensor) -> Tensor:
        return sampling.noise_scaling(sigmas[0], one, latent_image, True)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        denoised = guider(x, sigma.expand(len(x)), seed=extra_args["seed"],
                          model_options=with_new_cache(extra_args["model_options"]))
        bar.update(1)
        return denoised

    with cfg_off(guider):
        return shared.before(lambda: run.choose_start(candidates, noise, extra_args["seed"] or 0,
                                                      start, model, sigmas, looks_only))
