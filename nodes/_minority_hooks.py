"""Minority Guidance, and Boost and Skip, as wrappers of the host's sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..guidance import boost_and_skip, minority
from ..guidance.minority_report import boost_report, minority_report
from . import _host
from ._adm_model import PixelSpace
from ._latents import feature_space
from ._sampling_hooks import KEYS, SamplingHooks, levels, running, unfit


@dataclass(frozen=True, kw_only=True)
class MinorityOptions:
    """The widgets of Minority Guidance; percents run from 0, pure noise, to 1."""

    rarity: float
    scale: float
    start_percent: float
    end_percent: float
    mode: str
    beta: float
    class_number: int
    every_n_steps: int
    form: str

    @property
    def weight(self) -> float:
        return self.scale if self.mode == "class" else self.beta


class MinorityHooks(SamplingHooks):
    """Both wrappers of one Minority Guidance node."""

    title, key = "Minority guidance", KEYS + "minority"

    def __init__(self, classifier, options: MinorityOptions, node_id: str):
        super().__init__(options, node_id)
        self.classifier = classifier
        self.target = None
        if options.mode == "class":
            self.target = minority.checked_class(options.class_number, options.rarity,
                                                 classifier.classes)
        else:
            minority.checked_thresholds(classifier.thresholds)

    def attach(self, model):
        """A clone of the MODEL with the wrappers. ValueError where the classifier is for latents of
        another space."""
        self.classifier.check_space(feature_space(model)[0])
        return super().attach(model)

    def _refusal(self, noise: Tensor) -> str | None:
        if noise.ndim == 5 and noise.shape[2] > 1:
            return ("Nothing pushed: this model samples video, and minority classifiers know "
                    "single images. Use a length of one frame.")
        return None

    def _begin(self, model, noise, latent_image, sigmas, seed) -> minority.MinorityRun:
        self.classifier.check_space(feature_space(model)[0])
        note = {"class": self.target, "classes": self.classifier.classes,
                "mode": self.options.mode, "scale": self.options.weight}
        self._note({key: value for key, value in note.items() if value is not None})
        classifier = self.classifier
        if self.options.weight != 0:
            with torch.inference_mode(False):
                classifier = classifier.on(model.load_device)
        return minority.MinorityRun(classifier, minority.MinoritySettings(
            target=self.target, weight=self.options.weight, mean=self.options.form == "mean",
            window=self._window(model.get_model_object("model_sampling"), sigmas,
                                self.options.every_n_steps)))

    def _guide(self, run, executor, x, timestep, model_options, seed, denoised, sigma) -> Tensor:
        level, log_snr = levels(executor.class_obj, timestep, sigma)
        after = torch.full_like(timestep[:1], run.settings.window.after(sigma))
        after = _host.noise_level(executor.class_obj.inner_model.model_sampling, after)
        return run.guide(x, denoised, level, after, sigma, log_snr)

    def _report(self, run) -> str:
        return minority_report(self.target, self.classifier.classes, self.options.weight,
                               run.figures())


class BoostHooks(SamplingHooks):
    """The wrappers of one Boost and Skip node."""

    title, key = "Boost and skip", KEYS + "boost_and_skip"

    def __init__(self, gamma: float, skip: int, clip: bool, node_id: str):
        super().__init__(None, node_id)
        self.gamma = gamma
        self.skip = skip
        self.clip = clip

    def _guide(self, run, executor, x, timestep, model_options, seed, denoised, sigma) -> Tensor:
        return denoised.clamp(-1, 1)

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None,
                     callback=None, disable_pbar=False, seed=None, latent_shapes=None):
        guider = executor.class_obj
        model = guider.model_patcher
        sampling = model.get_model_object("model_sampling")
        neutral = self.gamma == 1 and self.skip == 0
        text = unfit(model, latent_shapes) or (None if neutral else boost_and_skip.refusal(
            noise, len(sigmas) - 1, self.skip, sigmas[:1].tolist(), float(sampling.sigma_max),
            denoise_mask is not None))
        changed = text is None and not neutral
        clips = (changed and self.clip
                 and isinstance(model.get_model_object("latent_format"), PixelSpace))
        if text is None:
            text = boost_report(self.gamma, self.skip, clips, sigmas[:1].tolist(),
                                sigmas[self.skip:self.skip + 1].tolist())
        if changed:
            self._note({"gamma": self.gamma, "skip": self.skip, "clip": clips})
            level = (_host.noise_level(sampling, sigmas[self.skip:self.skip + 1].cpu())
                     if self.skip else None)
            noise = boost_and_skip.boost(noise, self.gamma, level)
            if self.skip and latent_image is not None:  # it would shine through at less noise
                latent_image = torch.zeros_like(latent_image)
            sigmas = sigmas[self.skip:]
        with running(guider, self.key, self, clips or None):
            result = executor(noise, latent_image, sampler, sigmas, denoise_mask, callback,
                              disable_pbar, seed, latent_shapes=latent_shapes)
        self._tell(text)
        return result
