"""A node's guidance as wrappers of the host's sampling: state of a run, noise level, report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..guidance.evaluation import Evaluation
from ..guidance.noise_level import NoiseLevel
from ..guidance.step_window import StepWindow
from . import _host, _notes

KEYS = "uncommon."  # what the keys of this pack's runs begin with, in the host's options
SHARED = KEYS + "evaluation"
log = logging.getLogger("uncommon")


class Reading:
    """A number on its way from the device. Asked for before the model runs and read after it was
    told to run, it keeps the device busy: only what came before must have ended."""

    def __init__(self, value: Tensor):
        self._value, self._arrived = value, None
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def number(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value.item()


class SamplingHooks:
    """A node's wrappers. Holds settings and ids; what a run needs lives in the run's options."""

    title: str
    key: str

    def __init__(self, options, node_id: str):
        self.options = options
        self.node_id = node_id

    def attach(self, model):
        """A clone of the MODEL with the wrappers."""
        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, self.key, self.outer_sample)
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, self.key, self.predict_noise)
        return patched

    def predict_noise(self, executor, x, timestep, model_options={}, seed=None):  # noqa: B006
        options = model_options.get("transformer_options", {})
        run = options.get(self.key, {}).get(self)
        if run is None or options[SHARED].looking:
            return executor(x, timestep, model_options, seed)
        at = options[SHARED]

        def guided() -> Tensor:
            sigma = Reading(timestep[0])
            denoised = at.answered(executor(x, timestep, model_options, seed))
            pushed = self._guide(run, executor, at.x, timestep, model_options, seed, at.plain,
                                 sigma.number())
            if pushed is at.plain:
                return denoised
            return pushed if denoised is at.plain else denoised + (pushed - at.plain)

        return at.run(x, guided)

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None,
                     callback=None, disable_pbar=False, seed=None, latent_shapes=None):
        guider = executor.class_obj

        def sample():
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback,
                            disable_pbar, seed, latent_shapes=latent_shapes)

        refusal = unfit(guider.model_patcher, latent_shapes, noise) or self._refusal(noise)
        if refusal:
            self._tell(refusal)
            return sample()
        run = self._begin(guider.model_patcher, noise, latent_image, sigmas, seed)
        if run.idle:
            result = sample()
        else:
            with running(guider, self.key, self, run):
                result = sample()
        self._tell(self._report(run))
        return result

    def _refusal(self, noise: Tensor) -> str | None:
        return None

    def _note(self, note: dict) -> None:
        _notes.note(self.node_id, note)

    def _tell(self, text: str) -> None:
        log.info("%s: %s", self.title, text.replace("\n", "; "))
        _host.show_on_node(self.node_id, text)

    def _window(self, sampling, sigmas: Tensor, every: int) -> StepWindow:
        return StepWindow(
            schedule=tuple(sigmas.tolist()), every=every,
            sigma_start=float(sampling.percent_to_sigma(self.options.start_percent)),
            sigma_end=float(sampling.percent_to_sigma(self.options.end_percent)))


@contextmanager
def running(guider, key: str, hooks, run) -> Iterator[None]:
    """Within, the evaluations of a sampling run find the run of a node, and what it shares."""
    options = guider.model_options.setdefault("transformer_options", {})
    options.setdefault(SHARED, Evaluation())
    runs = options.setdefault(key, {})
    runs[hooks] = run
    try:
        yield
    finally:
        del runs[hooks]


def with_new_cache(model_options: dict) -> dict:
    """The options for evaluations beside the sampler's own: with a new cache in place of that of
    EasyCache and LazyCache, which would take them for steps."""
    transformer = dict(model_options.get("transformer_options", {}))
    if "easycache" in transformer:
        transformer["easycache"] = transformer["easycache"].clone()
    return {**model_options, "transformer_options": transformer}


def levels(guider, timestep: Tensor, sigma: float) -> tuple[NoiseLevel, float]:
    """The noise level `[batch]` on the device, and its log SNR as a number."""
    sampling = guider.inner_model.model_sampling
    log_snr = _host.noise_level(sampling, torch.tensor([sigma], dtype=torch.float64)).log_snr
    return _host.noise_level(sampling, timestep), log_snr.item()


def unfit(model, latent_shapes, noise: Tensor | None = None) -> str | None:
    """Why a run cannot be guided by any of these nodes, if it cannot. noise: where latents must be
    images or video."""
    if latent_shapes is not None and len(latent_shapes) > 1:
        return ("Nothing done: this model samples several latents at once (video with sound), "
                "which this node does not support yet.")
    if isinstance(model.get_model_object("model_sampling"), _host.NOT_DIFFUSION):
        return ("Nothing done: this model maps one image to another and does not sample from "
                "noise. Bypass this node.")
    config = getattr(getattr(model.model, "model_config", None), "unet_config", None) or {}
    if config.get("use_temporal_attention"):
        return ("Nothing done: this model samples the frames of one video as a batch of images, "
                "which would be driven apart. Bypass this node.")
    if noise is not None and noise.ndim not in (4, 5):
        return (f"Nothing done: this model's latents have the shape {list(noise.shape)}; they are "
                "neither images nor video (sound, perhaps, or 3D shapes). Bypass this node.")
    if comfy.model_management.in_training:
        return "Nothing done while a model is trained."
    return None
