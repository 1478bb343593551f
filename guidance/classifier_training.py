"""Trains a minority classifier on scored latents.

Um, Lee and Ye, "Don't Play Favorites" (2301.12334), 4.1, and the recipe of Dhariwal and Nichol
(2105.05233), appendix H: cross-entropy on noisy images, AdamW, learning rate annealed linearly to
0. Noise levels are uniform over the model's timesteps, and the network is told the log SNR.

Every iteration draws from a generator of its own, made of the seed and its number: a run that is
stopped and resumed ends with the weights of one that was not, bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .adm_encoder import AdmEncoder, encoder_config, head_config
from .minority_classifier import FrozenExtractor, MinorityClassifier, ordinary_copy
from .mixed_precision import mixed_precision
from .ordinal import (
    automatic_classes,
    check_scores,
    few_samples_warning,
    labels_of,
    quantile_thresholds,
    stratified_split,
)
from .time_conditioning import LogSnrTime
from .training_set import Evaluation, Level, TrainingSet, TrainingSettings, generator_of

EVALUATIONS = 20  # in a run, evenly
MOST_VALIDATED = 1000  # images an evaluation
NOISE_LEVELS = 10  # of the accuracy by noise level
EPOCH_SEEDS = 2 ** 40  # apart from those of the iterations
OVERFIT = 1.1  # a last validation loss so much above the lowest is worth a warning


class Diverged(ValueError):
    """A training that has come to weights, or to latents, of which no loss can be told."""


class ClassifierTraining:
    """A training that can stop after every iteration, and go on later.

    ValueError for settings and sets that no classifier can come of.
    """

    def __init__(self, data: TrainingSet, settings: TrainingSettings,
                 device: torch.device | str = "cpu", extractor: FrozenExtractor | None = None):
        settings.check()
        check_scores(data.scores)
        if settings.classes == 0:
            settings = replace(settings, classes=automatic_classes(len(data.scores)))
        self.data, self.settings, self.device = data, settings, torch.device(device)
        self.thresholds = quantile_thresholds(data.scores, settings.classes)
        self.labels = labels_of(data.scores, self.thresholds)
        self.training, self.validation = stratified_split(
            self.labels, settings.validation_share, settings.seed)
        warning = few_samples_warning(self.labels[self.training], settings.classes)
        self.warnings = [warning] if warning else []

        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)  # the CPU's alone
            self.extractor = None if extractor is None else ordinary_copy(extractor, device)
            self.net = self._new_net().to(self.device)
            self.time = LogSnrTime()
            self._optimizer = torch.optim.AdamW(
                self.net.parameters(), lr=settings.learning_rate,
                weight_decay=settings.weight_decay)
        self.iteration = 0
        self.losses: list[float] = []
        self.evaluations: list[Evaluation] = []
        self.levels: list[Level] = []
        self._epoch: tuple[int, Tensor] | None = None

    def _new_net(self) -> AdmEncoder:
        size, classes = self.settings.size, self.settings.classes
        latents = self.data.take(self.training[:1])
        if latents.ndim != 4:
            raise ValueError(f"The latents are {list(latents.shape[1:])}; a classifier takes "
                             "single images: channels, height, width.")
        self.shape = latents.shape[1:]
        of, shape = ((encoder_config, self.shape) if self.extractor is None else
                     (head_config, self._feature_shape(latents)))
        channels, height, width = shape
        net = AdmEncoder(of(size, channels, height, width, classes))
        net.start_as_published()
        return net

    def _feature_shape(self, latents: Tensor) -> torch.Size:
        config = self.extractor.trunk.config
        if self.shape[0] != config.in_channels:
            raise ValueError(f"The latents have {self.shape[0]} channels, but the extractor takes "
                             f"{config.in_channels}. Use the extractor of the model whose images "
                             "were scored.")
        smallest = 2 ** (len(config.widths) - 1)
        if min(self.shape[1:]) < smallest:
            raise ValueError(f"The latents are {self.shape[2]} x {self.shape[1]}, but the "
                             f"extractor needs at least {smallest} x {smallest}. Score larger "
                             "images, or train without an extractor.")
        with torch.no_grad():
            return self.extractor(latents.to(self.device),
                                  torch.zeros(1, device=self.device)).shape[1:]

    @property
    def key(self) -> str:
        """The same for the same settings, images, scores and extractor."""
        digest = hashlib.sha256(json.dumps(
            [asdict(self.settings), self.data.space, self.data.identity, list(self.shape),
             self.data.distance, self.data.sigma]).encode())
        tensors = [self.data.scores.double(), self.data.log_snr]
        if self.extractor is not None:
            digest.update(json.dumps([asdict(self.extractor.trunk.config),
                                      self.extractor.time.as_json()]).encode())
            tensors += self.extractor.trunk.state_dict().values()
        for tensor in tensors:
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:24]

    @property
    def finished(self) -> bool:
        return self.iteration >= self.settings.iterations

    def run(self) -> Iterator[None]:
        """Trains to the end; yields after every iteration, where it may be left."""
        every = max(1, self.settings.iterations // EVALUATIONS)
        while not self.finished:
            with torch.inference_mode(False), torch.enable_grad():
                self._step()
            if self.iteration % every == 0 or self.finished:
                self._evaluate()
            if self.finished:
                self._measure_levels()
            yield

    def _step(self) -> None:
        settings = self.settings
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - self.iteration / settings.iterations)
        generator = generator_of(settings.seed, self.iteration)
        indices = self._batch()
        x0 = self._latents(indices)
        if settings.flip:
            mirrored = torch.rand(len(x0), generator=generator) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        log_snr = self.data.log_snr_at(torch.rand(len(x0), generator=generator))
        logits = self._logits(x0, log_snr, generator)
        loss = F.cross_entropy(logits, self.labels[indices].to(self.device))
        if not math.isfinite(value := loss.item()):
            raise Diverged(
                f"The loss stopped being a finite number in iteration {self.iteration + 1}. Lower "
                f"the learning rate (it is {settings.learning_rate:g}); if that does not help, "
                "score the images again: some latents may be damaged.")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self.losses.append(value)
        self.iteration += 1

    def _batch(self) -> Tensor:
        """Indices of the next training images: each once in an order of chance, and again."""
        images, batch = len(self.training), self.settings.batch_size
        places = torch.arange(self.iteration * batch, (self.iteration + 1) * batch)
        chosen = []
        for epoch in range(int(places[0]) // images, int(places[-1]) // images + 1):
            if self._epoch is None or self._epoch[0] != epoch:
                order = torch.randperm(
                    images, generator=generator_of(self.settings.seed, EPOCH_SEEDS + epoch))
                self._epoch = epoch, order
            chosen.append(self._epoch[1][places[places // images == epoch] % images])
        return self.training[torch.cat(chosen)]

    def _latents(self, indices: Tensor) -> Tensor:
        x0 = self.data.take(indices)
        if x0.shape[1:] != self.shape:
            raise ValueError(f"The latents are of different sizes: {list(self.shape)} and "
                             f"{list(x0.shape[1:])}. Score images of one size.")
        return x0

    def _logits(self, x0: Tensor, log_snr: Tensor, generator: torch.Generator) -> Tensor:
        """Of x0 with fresh noise, float32."""
        noise = torch.randn(x0.shape, generator=generator)
        signal, scale = (torch.sigmoid(sign * log_snr).sqrt()[:, None, None, None]
                         for sign in (1, -1))
        x_vp = (signal * x0 + scale * noise).to(self.device)
        log_snr = log_snr.to(self.device)
        with mixed_precision(self.device):
            if self.extractor is not None:
                with torch.no_grad():
                    x_vp = self.extractor(x_vp, log_snr).float()
            return self.net(x_vp, self.time(log_snr)).float()

    def _answers(self, indices: Tensor, percent: Tensor) -> Tensor:
        """Logits of validation images at these noise levels, with the same noise each time."""
        found = []
        with torch.inference_mode():
            for start in range(0, len(indices), self.settings.batch_size):
                part = slice(start, start + self.settings.batch_size)
                generator = generator_of(self.settings.seed, 2 * EPOCH_SEEDS + start)
                found.append(self._logits(self._latents(indices[part]),
                                          self.data.log_snr_at(percent[part]), generator).cpu())
        return torch.cat(found)

    def _validated(self) -> Tensor:
        order = torch.randperm(len(self.validation), generator=generator_of(
            self.settings.seed, 3 * EPOCH_SEEDS))
        return self.validation[order[:MOST_VALIDATED]]

    def _evaluate(self) -> None:
        if not len(self.validation):
            return
        indices = self._validated()
        percent = (torch.arange(len(indices)) + 0.5) / len(indices)
        logits, labels = self._answers(indices, percent), self.labels[indices]
        loss = F.cross_entropy(logits, labels).item()
        self.evaluations.append(Evaluation(self.iteration, loss, *self._hits(logits, labels)))

    def _measure_levels(self) -> None:
        """Fills `levels`, from the first timestep to the last."""
        indices = self._validated()[:MOST_VALIDATED // 2]
        if not len(indices):
            return
        for i in range(NOISE_LEVELS):
            percent = torch.full((len(indices),), (i + 0.5) / NOISE_LEVELS)
            hits = self._hits(self._answers(indices, percent), self.labels[indices])
            self.levels.append(Level(self.data.log_snr_at(percent[:1]).item(), *hits))
        lowest = min(self.evaluations, key=lambda one: one.loss)
        if self.evaluations[-1].loss > OVERFIT * lowest.loss:
            self.warnings.append(
                f"The validation loss was lowest after {lowest.iteration} iterations "
                f"({lowest.loss:.3f}) and rose to {self.evaluations[-1].loss:.3f}: the classifier "
                "learnt images by heart. Better: fewer iterations, fewer classes, or more images.")

    def _hits(self, logits: Tensor, labels: Tensor) -> tuple[float, float]:
        guess = logits.argmax(dim=1)
        return ((guess == labels).float().mean().item(),
                (guess - labels).abs().float().mean().item() / self.settings.classes)

    def state(self) -> dict:
        """Everything that `resume` needs: tensors and plain values."""
        return {"key": self.key, "iteration": self.iteration, "net": self.net.state_dict(),
                "optimizer": None if self.finished else self._optimizer.state_dict(),
                "losses": self.losses, "warnings": self.warnings,
                "evaluations": [astuple(one) for one in self.evaluations],
                "levels": [astuple(one) for one in self.levels]}

    def resume(self, state: dict) -> None:
        """Goes on from a `state` of a training of the same key; ValueError for another's."""
        if state.get("key") != self.key:
            raise ValueError("This checkpoint belongs to another training.")
        with torch.inference_mode(False), torch.no_grad():
            self.net.load_state_dict(state["net"])
            if state["optimizer"] is not None:
                # Copied out of inference mode, in which the tensors may have been read.
                self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.iteration, self.losses = state["iteration"], list(state["losses"])
        self.warnings = list(state["warnings"])
        self.evaluations = [Evaluation(*one) for one in state["evaluations"]]
        self.levels = [Level(*one) for one in state["levels"]]

    def classifier(self) -> MinorityClassifier:
        """What it has learnt so far, on the CPU."""
        settings = self.settings
        figures: dict[str, Any] = {
            "images": len(self.labels), "training_images": len(self.training),
            "iterations": self.iteration, "loss": round(_mean(self.losses[-100:]), 5)}
        if self.evaluations:
            last = self.evaluations[-1]
            figures |= {"validation_images": len(self.validation),
                        "validation_loss": round(last.loss, 5),
                        "validation_accuracy": round(last.accuracy, 5),
                        "validation_rank_error": round(last.rank_error, 5)}
        figures |= {name: getattr(settings, name) for name in
                    ("size", "batch_size", "learning_rate", "weight_decay", "seed", "flip")}
        figures["by_log_snr"] = [[round(value, 4) for value in astuple(one)]
                                 for one in self.levels]
        low, high = self.data.log_snr.min().item(), self.data.log_snr.max().item()
        return MinorityClassifier(
            net=self.net, time=self.time, space=self.data.space, channels=self.shape[0],
            log_snr_range=(low, high), extractor=self.extractor, thresholds=self.thresholds,
            distance=self.data.distance, sigma=self.data.sigma, training=figures).on("cpu")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
