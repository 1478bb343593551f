"""Novelty guidance as wrappers of the host's sampling: guides each evaluation, then records."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import comfy.model_management
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..guidance.latent_space import LatentSpace
from ..guidance.memory.bank import Remembered
from ..guidance.novelty import NoveltyRun, NoveltySettings
from ..guidance.novelty_memory import NoveltyMemory, Recorded
from ..guidance.prompt import log_similarity, prompt_embedding
from ..guidance.report import novelty_report
from . import _host

KEY = "uncommon.novelty"
log = logging.getLogger("uncommon")


@dataclass(frozen=True, kw_only=True)
class NoveltyOptions:
    """The widgets of Novelty Guidance; percents run from 0, pure noise, to 1."""

    strength: float
    start_percent: float
    end_percent: float
    radius: float
    repulsion: str
    prompt_aware: bool
    batch_repulsion: float
    record: bool


def latent_space(model) -> LatentSpace:
    """The feature space of a MODEL's latents."""
    latent_format = model.get_model_object("latent_format")
    return LatentSpace(type(latent_format).__name__, latent_format.latent_channels)


class NoveltyHooks:
    """Both wrappers of one Novelty Guidance node. Holds settings and ids, never tensors."""

    def __init__(self, memory: NoveltyMemory, options: NoveltyOptions, node_id: str):
        self.memory = memory
        self.options = options
        self.node_id = node_id

    def attach(self, model):
        """A clone of the MODEL with the wrappers; Raises FeatureSpaceError for another space."""
        self.memory.check_space(latent_space(model).id)
        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.outer_sample)
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.predict_noise)
        return patched

    def predict_noise(self, executor, x, timestep, model_options={}, seed=None):  # noqa: B006
        run = model_options["transformer_options"].get(KEY, {}).get(self)
        if run is None:
            return executor(x, timestep, model_options, seed)
        level = _host.noise_level(executor.class_obj.inner_model.model_sampling, timestep)
        return run.denoise(lambda x_t: executor(x_t, timestep, model_options, seed),
                           x, timestep, level)

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None,
                     callback=None, disable_pbar=False, seed=None, latent_shapes=None):
        guider = executor.class_obj

        def sample():
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback,
                            disable_pbar, seed, latent_shapes=latent_shapes)

        model = guider.model_patcher
        refusal = self._refusal(model, latent_shapes)
        if refusal:
            self._tell(refusal)
            return sample()

        space = latent_space(model)
        revision = self.memory.resolve()
        remembered = self.memory.bank.at(revision)
        encoded = _host.encoded_prompt(guider.conds) if self.options.prompt_aware else None
        prompt = None if encoded is None else prompt_embedding(encoded)
        runs = guider.model_options.setdefault("transformer_options", {}).setdefault(KEY, {})
        runs[self] = run = self._run(model, space, remembered, prompt)
        _host.note_in_metadata(self.node_id, {
            "memory": f"{self.memory.name}@{revision}", "strength": self.options.strength,
            "seed": seed})
        try:
            result = sample()
        finally:
            del runs[self]
        whole = float(sigmas[-1]) == 0
        recorded = None
        if whole and self.memory.learn and self.options.record:
            recorded = self._record(model, space, run, remembered, prompt, result, seed)
        self._tell(novelty_report(
            self.memory, revision, len(remembered), self.options.strength, self.options.record,
            whole, run.figures(), recorded))
        return result

    def _record(self, model, space: LatentSpace, run: NoveltyRun, remembered: Remembered,
                prompt: Tensor | None, result: Tensor, seed: int | None) -> Recorded:
        latents = model.model.process_latent_in(result)
        latent_format = model.get_model_object("latent_format")
        return self.memory.record(
            remembered, space.id, latents=result, embedding=space.embed(latents),
            trajectory=run.trajectory(), prompt=prompt, seed=seed or 0,
            settings={"strength": self.options.strength, "radius": self.options.radius,
                      "repulsion": self.options.repulsion},
            previews=[_host.preview(latent_format, latent) for latent in latents])

    def _tell(self, text: str) -> None:
        log.info("Novelty guidance: %s", text.replace("\n", "; "))
        _host.show_on_node(self.node_id, text)

    def _refusal(self, model, latent_shapes) -> str | None:
        """Why this run cannot be guided, if it cannot."""
        if latent_shapes is not None and len(latent_shapes) > 1:
            return ("Nothing pushed or recorded: this model samples several latents at once "
                    "(video with sound), which novelty guidance does not support yet.")
        if isinstance(model.get_model_object("model_sampling"), _host.NOT_DIFFUSION):
            return ("Nothing pushed or recorded: this model maps one image to another and does "
                    "not sample from noise. Bypass Novelty Guidance.")
        if comfy.model_management.in_training:
            return "Nothing pushed or recorded while a model is trained."
        return None

    def _run(self, model, space, remembered: Remembered, prompt: Tensor | None) -> NoveltyRun:
        options, sampling = self.options, model.get_model_object("model_sampling")
        repulsion = self.memory.repulsion(
            options.repulsion, remembered, log_similarity(prompt, remembered.prompt)
            if prompt is not None and len(remembered) else None,
            options.radius, model.load_device)
        return NoveltyRun(space, repulsion, NoveltySettings(
            strength=options.strength, radius=options.radius, batch=options.batch_repulsion,
            sigma_start=float(sampling.percent_to_sigma(options.start_percent)),
            sigma_end=float(sampling.percent_to_sigma(options.end_percent))))
