"""Trains minority classifiers inside a prompt: what is kept of a training, and what is shown."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..guidance.adm_checkpoint import Schedule
from ..guidance.classifier_training import ClassifierTraining, Diverged
from ..guidance.minority_checkpoint import frozen_part
from ..guidance.minority_classifier import FrozenExtractor, MinorityClassifier
from ..guidance.scored_set import ScoredImages
from ..guidance.time_conditioning import ScheduleTime
from ..guidance.training_set import TrainingSet, TrainingSettings
from . import _host
from ._adm_model import HOST_SCHEDULES, AdmModel
from ._curves import draw_training

log = logging.getLogger("uncommon")

SECONDS_BETWEEN_SAVES = 60
SECONDS_BETWEEN_TEXTS = 2
MOST_FINISHED = 10  # trainings that are kept after their end
IN_MEMORY = 2 ** 30  # bytes of latents that are read once; more are read batch by batch
CHUNK = 512
DEVICE_MEMORY = 2 * 2 ** 30  # asked of the host for a training


def train(scored: ScoredImages, settings: TrainingSettings, resume: bool,
          extractor: MinorityClassifier | None, model, node_id: str) -> ClassifierTraining:
    """A training that has ended. If it is stopped or fails, what it has learnt is kept, unless
    it diverged."""
    started = time.monotonic()
    device = comfy.model_management.get_torch_device()
    comfy.model_management.free_memory(DEVICE_MEMORY, device)
    frozen = _extractor(extractor, model, scored.settings.space)
    training = ClassifierTraining(training_set(scored), settings, device, frozen)
    kept = KeptTraining(training)
    note = kept.resume() if resume else ""
    progress = comfy.utils.ProgressBar(settings.iterations, node_id)
    progress.update_absolute(training.iteration, preview=_preview(training))
    first = training.iteration
    saved = shown = time.monotonic()
    try:
        for _ in training.run():
            comfy.model_management.throw_exception_if_processing_interrupted()
            evaluated = (training.evaluations
                         and training.evaluations[-1].iteration == training.iteration)
            progress.update_absolute(training.iteration,
                                     preview=_preview(training) if evaluated else None)
            now = time.monotonic()
            if now - shown > SECONDS_BETWEEN_TEXTS:
                shown = now
                pace = (now - started) / (training.iteration - first)
                _host.show_on_node(node_id, _text(training, note, pace))
            if now - saved > SECONDS_BETWEEN_SAVES:
                saved = now
                kept.save()
    except Diverged:
        raise  # with nothing to go on from
    except BaseException:  # the host's interrupt as well: what was learnt stays
        kept.save()
        _host.show_on_node(node_id, _text(training, "Stopped. The same settings go on from here."))
        raise
    if training.iteration > first:
        kept.save()
    text = _text(training, note)
    log.info("Minority classifier: %s", text.replace("\n", "; "))
    _host.show_on_node(node_id, text)
    return training


def training_set(scored: ScoredImages) -> TrainingSet:
    """The scored images as what a training takes, their latents in memory if they are few."""
    settings = scored.settings
    latents = scored.latents
    if len(scored):
        size = scored.latents([0]).numel() * torch.half.itemsize * len(scored)
        latents = _read(scored) if size <= IN_MEMORY else latents
    return TrainingSet(
        latents=latents, scores=scored.scores, log_snr=settings.log_snr, space=settings.space,
        distance=settings.distance, sigma=settings.sigma,
        identity=hashlib.sha256("\n".join(scored.hashes).encode()).hexdigest())


def _read(scored: ScoredImages) -> Tensor:
    """All latents, in half precision as they are on disk."""
    chunks = []
    for start in range(0, len(scored), CHUNK):
        comfy.model_management.throw_exception_if_processing_interrupted()
        chunks.append(scored.latents(range(start, min(start + CHUNK, len(scored)))).half())
    sizes = sorted({tuple(chunk.shape[1:]) for chunk in chunks})
    if len(sizes) > 1:
        raise ValueError(f"The scored images have latents of different sizes: {list(sizes[0])} and "
                         f"{list(sizes[-1])}. Set width and height in Minority Score.")
    return torch.cat(chunks)


def _extractor(classifier: MinorityClassifier | None, model, space: str) -> FrozenExtractor | None:
    """The frozen network to build on, of a classifier or of an ADM model."""
    if classifier is not None and model is not None:
        raise ValueError("Both extractor and model are connected, but a classifier can be built on "
                         "one frozen network only. Disconnect one of them.")
    if classifier is not None:
        classifier.check_space(space)
        return classifier.extractor or frozen_part(
            classifier.net.state_dict(), classifier.net.config, classifier.time)
    if model is None:
        return None
    if not isinstance(model.model, AdmModel):
        raise ValueError("The connected model is not of the ADM kind, and only such a model's "
                         "encoder can be built on. Disconnect model to train from scratch.")
    latent_format = model.get_model_object("latent_format")
    own = f"{type(latent_format).__name__}/{latent_format.latent_channels}"
    if own != space:
        raise ValueError(f"The images were scored as latents of the space {space}, but the "
                         f"connected model's are of the space {own}. Connect the model that they "
                         "were scored for.")
    net = model.model.diffusion_model
    weights = {name: value.to("cpu") for name, value in net.state_dict().items()}
    return frozen_part(weights, net.config, ScheduleTime(_schedule(model.model.model_config)))


def _schedule(host_config) -> Schedule:
    """What an ADM model was trained on: the inverse of how the host is told."""
    told = host_config.sampling_settings
    kinds = {name: kind for kind, name in HOST_SCHEDULES.items()}
    kind, steps = kinds[told["beta_schedule"]], told["timesteps"]
    scale = 1000 / steps if kind == "linear" else 1
    return Schedule(kind=kind, start=told["linear_start"] / scale, end=told["linear_end"] / scale,
                    steps=steps, embedding_steps=round(host_config.timestep_scale * steps))


class KeptTraining:
    """A training's file in the host's user folder."""

    def __init__(self, training: ClassifierTraining):
        self.training = training
        self.folder = Path(folder_paths.get_system_user_directory("uncommon"),
                           "classifier_training")
        self.unfinished = self.folder / f"{training.key}.pt"
        self.finished = self.folder / f"{training.key}.finished.pt"

    def resume(self) -> str:
        """Goes on from the file, if there is one; what it did, for people."""
        file = next((one for one in (self.finished, self.unfinished) if one.is_file()), None)
        if file is None:
            return ""
        try:
            self.training.resume(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:
            log.warning("The checkpoint %s cannot be used: %s", file, error)
            return "The checkpoint of the earlier run is damaged; the training began anew."
        if self.training.finished:
            return "This training had ended before; nothing to do. (Turn resume off to repeat it.)"
        return f"Went on after iteration {self.training.iteration}."

    def save(self) -> None:
        """Keeps what was learnt; a failure is logged and no reason to stop."""
        if not self.training.iteration:
            return
        file = self.finished if self.training.finished else self.unfinished
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, unready = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            os.close(handle)
            try:
                torch.save(self.training.state(), unready)
                os.replace(unready, file)
            finally:
                Path(unready).unlink(missing_ok=True)
            if self.training.finished:
                self.unfinished.unlink(missing_ok=True)
                self._drop_oldest()
        except (OSError, RuntimeError) as error:
            log.warning("The training could not be kept in %s: %s", file, error)

    def _drop_oldest(self) -> None:
        ended = sorted(self.folder.glob("*.finished.pt"), key=lambda one: one.stat().st_mtime)
        for file in ended[:-MOST_FINISHED]:
            file.unlink(missing_ok=True)


def _preview(training: ClassifierTraining) -> tuple:
    return "PNG", draw_training(training), None


def _text(training: ClassifierTraining, note: str = "", seconds: float | None = None) -> str:
    """Where the training stands, for the node; seconds: an iteration takes."""
    settings = training.settings
    lines = [note] if note else []
    line = f"{training.iteration} of {settings.iterations} iterations, {settings.classes} classes"
    if seconds is not None:
        left = seconds * (settings.iterations - training.iteration)
        line += f", {seconds:.2g} s each, {_duration(left)} left"
    lines.append(line)
    if training.losses:
        recent = training.losses[-100:]
        lines.append(f"Loss {sum(recent) / len(recent):.3f}")
    if training.evaluations:
        last = training.evaluations[-1]
        lines.append(
            f"Validation: loss {last.loss:.3f}; {100 * last.accuracy:.1f} % hits (by chance "
            f"{100 / settings.classes:.1f} %); off by {100 * last.rank_error:.1f} % of the classes "
            "(by chance 33 %)")
    return "\n".join(lines + [f"Warning: {warning}" for warning in training.warnings])


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
