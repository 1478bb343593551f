"""Novelty guidance as wrappers of the host's sampling: guides each evaluation, then records."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..guidance.feature_novelty import FeatureRun
from ..guidance.memory import Entry, RevisionGoneError
from ..guidance.memory.bank import Remembered
from ..guidance.memory.net_cache import Tick
from ..guidance.novelty import NoveltyRun
from ..guidance.novelty_memory import FEATURES, VISION, NoveltyMemory, Recorded, content_hashes
from ..guidance.prompt import prompt_embedding
from ..guidance.report import novelty_report
from . import _host, _notes
from ._feature_tap import is_compiled, tap_of, tapped
from ._images import previews_as_image
from ._late_cfg import LateCFG, without_cfg
from ._latents import memory_space
from ._novelty_run import SETTLED, NoveltyOptions, Space
from ._sampling_hooks import SHARED, running, unfit
from ._starts import is_pure_noise, starting_noise
from ._vision_encoder import vision_space

KEY = "uncommon.novelty"
log = logging.getLogger("uncommon")


@dataclass(frozen=True, kw_only=True)
class Guided:
    """A sampling run under guidance. revision, remembered: what guides it; earlier: the samples
    that it goes on with; note: what images made from here on carry of it; pure_noise: whether it
    starts from that; candidates: starting noises to try at most; ignored: what is set and has no
    use, and why."""

    model: Any
    space: Space
    revision: int
    remembered: Remembered
    prompt: Tensor | None
    earlier: list[Entry]
    note: dict
    run: NoveltyRun
    cfg: LateCFG
    pure_noise: bool
    candidates: int
    ignored: list[str]


class NoveltyHooks:
    """The wrappers of one Novelty Guidance node. Holds settings and ids, never tensors."""

    def __init__(self, memory: NoveltyMemory, options: NoveltyOptions, node_id: str,
                 clip_vision=None, vae=None):
        self.memory = memory
        self.options = options
        self.node_id = node_id
        self.clip_vision = clip_vision
        self.vae = vae

    def attach(self, model):
        """A clone of the MODEL with the wrappers. Raises FeatureSpaceError for another space."""
        self._space(model)
        patched = model.clone()
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.outer_sample)
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self.sampler_sample)
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self.predict_noise)
        return patched

    def predict_noise(self, executor, x, timestep, model_options={}, seed=None):  # noqa: B006
        options = model_options.get("transformer_options", {})
        guided = options.get(KEY, {}).get(self)

        def model(x_t):
            return executor(x_t, timestep, model_options, seed)

        if guided is None:
            return model(x)
        guider = executor.class_obj
        level = _host.noise_level(guider.inner_model.model_sampling, timestep)
        late = guided.cfg.evaluation(guider, timestep) if guided.run.pushes(x) else nullcontext()
        with late:
            return guided.run.denoise(model, x, timestep, level, options[SHARED])

    def sampler_sample(self, executor, guider, sigmas, extra_args, callback, noise,
                       latent_image=None, denoise_mask=None, disable_pbar=False):
        options = extra_args["model_options"].get("transformer_options", {})
        guided = options.get(KEY, {}).get(self)
        if guided is not None:
            noise, ignored = starting_noise(
                guided.run, self.options, guided.candidates, guider, sigmas, extra_args, noise,
                latent_image, denoise_mask, options[SHARED])
            guided.ignored.extend(ignored)
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask,
                        disable_pbar)

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, denoise_mask=None,
                     callback=None, disable_pbar=False, seed=None, latent_shapes=None):
        guider = executor.class_obj

        def sample():
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback,
                            disable_pbar, seed, latent_shapes=latent_shapes)

        refusal = unfit(guider.model_patcher, latent_shapes, noise)
        if refusal:
            self._tell(refusal)
            return sample()

        guided = self._begin(guider, latent_image, sigmas, seed)
        whole = len(sigmas) > 1 and float(sigmas[-1]) == 0  # uni_pc changes its sigmas later
        with running(guider, KEY, self, guided), self._inside(guider, guided):
            result = sample()
        try:
            self._end(guided, result, whole)
        except Exception as error:  # a full disk shall not cost the user the image
            log.exception("Novelty guidance: the image is made, but it is not remembered.")
            self._tell(f"The image is made, but it is not remembered: {error}")
        return result

    def _inside(self, guider, guided: Guided) -> AbstractContextManager[None]:
        """What lets a run in feature space read and move the model's activations."""
        if isinstance(guided.run, FeatureRun):
            return tapped(guider, tap_of(guided.model), guided.run.adapt)
        return nullcontext()

    def _space(self, model, ready: bool = False) -> Space:
        if self.memory.space == VISION:
            return vision_space(model, self.memory, self.clip_vision, self.vae, ready)
        return memory_space(model, self.memory)

    def _begin(self, guider, start: Tensor | None, sigmas: Tensor, seed: int | None) -> Guided:
        """Reads the memory. Raises FeatureSpaceError, StorageError or RevisionError."""
        model = guider.model_patcher
        space = self._space(model, ready=True)
        earlier = self._earlier_pass(model, space, start)
        revision = (min(entry.settings["revision"] for entry in earlier) if earlier
                    else self.memory.resolve())
        try:
            remembered = self.memory.bank.at(revision)
        except RevisionGoneError:
            if not earlier:
                raise
            # Recording the pass before made the memory drop some of what guided it.
            remembered = self.memory.bank.at(revision, left=True)
        encoded = _host.encoded_prompt(guider.conds)
        prompt = None if encoded is None else prompt_embedding(encoded)
        note = {"memory": f"{self.memory.name}@{revision}", "strength": self.options.strength,
                "seed": seed, "recorded": []}
        _notes.note(self.node_id, note)
        sampling = model.get_model_object("model_sampling")
        pure_noise, no_cfg = is_pure_noise(sampling, sigmas), without_cfg(guider)
        return Guided(model=model, space=space, revision=revision, remembered=remembered,
                      prompt=prompt, earlier=earlier, note=note,
                      run=self.options.run(self.memory, model, space, remembered, prompt, sigmas,
                                           pure_noise=pure_noise, without_cfg=no_cfg,
                                           tick=self._learning()),
                      cfg=LateCFG(sampling.percent_to_sigma(self.options.cfg_start_percent)),
                      pure_noise=pure_noise, candidates=self.options.starts(
                          self.memory, remembered, len(sigmas) - 1, without_cfg=no_cfg),
                      ignored=self._ignored(guider))

    def _learning(self) -> Tick:
        """Shows how far a net has come that has much to learn before the run."""
        progress = _host.progress()

        def tick(done: int, total: int) -> None:
            _host.show_on_node(self.node_id, f"Learning what is remembered: {done:,} of {total:,}")
            progress(done, total)

        return tick

    def _end(self, guided: Guided, result: Tensor, whole: bool) -> None:
        """Remembers the latents `[batch, ...]` of a run that went on to the end, and reports."""
        recorded = None
        if whole and self.memory.learn and self.options.record:
            recorded = self._record(guided, result)
            guided.note["recorded"] = [*range(recorded.first_revision, recorded.last_revision + 1)]
        figures = guided.run.figures()
        self._tell(novelty_report(
            self.memory, guided.revision, len(guided.remembered), self.options.strength,
            self.options.record, whole, figures, guided.cfg.skipped, recorded, guided.ignored,
            guided.run.settings.radius if self.options.fits_radius(self.memory) else None))
        _host.tell_memory_changed(
            self.memory, node=self.node_id, push=figures.mean_push if figures.pushed else 0.0,
            novelty=[] if recorded is None else recorded.novelty.tolist())

    def _ignored(self, guider) -> list[str]:
        """What is linked or set and has no use, and for what it is."""
        given = {"clip_vision": self.clip_vision, "vae": self.vae}
        names = [name for name, value in given.items() if value is not None]
        told = self.options.ignored(self.memory)
        if names and self.memory.space != VISION:
            told.insert(0, f"{' and '.join(names)}. It is for a memory with space vision.")
        if self.memory.space == FEATURES and is_compiled(guider):
            told.append("TorchCompileModel, since space features reads the model's activations.")
        return told

    def _earlier_pass(self, model, space: Space, start: Tensor | None) -> list[Entry]:
        """The remembered samples that this run goes on with, as a hires pass does.

        These are samples of this prompt from samplers that the latents come from, each the nearest
        to one of the latents `[batch, ...]` that the run starts from.
        """
        prompt_id, sampler_id = _host.running_node()
        pinned = self.memory.revision is not None
        if pinned or not prompt_id or start is None or not start.any():
            return []
        revisions = [revision for note in _notes.upstream(sampler_id, latents_only=True)
                     for revision in note.get("recorded", ())]
        found = self.memory.recorded_by(prompt_id, revisions) if revisions else []
        if not found:
            return []
        starts = model.model.process_latent_in(start)
        if self.memory.space == FEATURES:  # a latent by itself has none
            latent_format = model.get_model_object("latent_format")
            pictures = [_host.preview(latent_format, latent) for latent in starts]
            if None in pictures or any(entry.preview is None for entry in found):
                return found
            starts = previews_as_image(pictures).flatten(1)
            known = previews_as_image([entry.preview for entry in found]).flatten(1)
        else:
            starts = space.embed(starts).cpu()
            known = torch.stack([entry.embedding for entry in found])
        distance = torch.cdist(starts, known)
        return [found[i] for i in sorted(set(distance.argmin(dim=1).tolist()))]

    def _record(self, guided: Guided, result: Tensor) -> Recorded:
        latents = guided.model.model.process_latent_in(result)
        latent_format = guided.model.get_model_object("latent_format")
        prompt_id, sampler_id = _host.running_node()
        embedding = (guided.run.embedding() if isinstance(guided.run, FeatureRun)
                     else guided.space.embed(latents))
        settled = guided.run.is_settled() if guided.pure_noise else None
        return self.memory.record(
            guided.remembered, guided.space.id,
            hashes=content_hashes(result.to(comfy.model_management.intermediate_dtype())),
            embedding=embedding, prompt=guided.prompt,
            seed=guided.note["seed"] or 0,
            settings={"strength": self.options.strength, "radius": guided.run.settings.radius,
                      "repulsion": self.options.repulsion, "revision": guided.revision,
                      "prompt_id": prompt_id, "node": sampler_id}
            | ({} if settled is None else {SETTLED: settled}),
            previews=[_host.preview(latent_format, latent) for latent in latents],
            replaced=guided.earlier)

    def _tell(self, text: str) -> None:
        log.info("Novelty guidance: %s", text.replace("\n", "; "))
        _host.show_on_node(self.node_id, text)
