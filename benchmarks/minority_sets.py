"""Sets of avatars, drawn in batches through the host's own KSampler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.chains import WORK, write_arrays
from demo.avatars import AVATARS_SIZE
from demo.host import InProcessHost, Prompt
from dev import ROOT

MODELS = ROOT / "demo" / "models"
MODEL = MODELS / "avatars.safetensors"
SHIPPED = "avatars_minority"
BATCH = 100
STEPS = 50
CANDIDATES = 4000  # plain images, of which "top k" keeps the rarest quarter
SEED = 1_000_000  # item i of a set has the seed SEED + i; all sets have the same

GUIDANCE, SELF, BOOST = ("UncommonMinorityGuidance", "UncommonSelfGuidedMinority",
                         "UncommonBoostAndSkip")

Inputs = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A node between the model and the sampler. classifier: a file's name without its ending."""

    node: str
    inputs: Inputs = field(default_factory=dict)
    classifier: str | None = None


@dataclass(frozen=True, kw_only=True)
class Set:
    """`count` images in batches of 100, by an ancestral sampler as in the paper, and 50 steps."""

    name: str
    patch: Patch | None = None
    count: int = 1000
    steps: int = STEPS
    sampler: str = "euler_ancestral"
    scheduler: str = "normal"

    @property
    def is_possible(self) -> bool:
        """Whether the classifier that it needs is trained."""
        name = None if self.patch is None else self.patch.classifier
        return name is None or classifier_file(name).is_file()

    @property
    def key(self) -> str:
        """Its name in the results, by everything but name and count, the model, and the shipped
        classifier; one that this benchmark trains need not be there, so it counts by its name."""
        settings = asdict(replace(self, name="", count=0)) | {"model": content_hash(MODEL)}
        if self.patch is not None and self.patch.classifier == SHIPPED:
            settings["weights"] = content_hash(classifier_file(SHIPPED))
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def file(self) -> Path:
        """Where the images go; of classifiers that this benchmark trains, by their weights too."""
        classifier = None if self.patch is None else self.patch.classifier
        trained = ("" if classifier in (None, SHIPPED)
                   else f"-{content_hash(classifier_file(classifier))[:8]}")
        return WORK / "minority" / f"{self.key}{trained}.npz"


def content_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def classifier_file(name: str) -> Path:
    """The shipped classifier, or one that this benchmark trained."""
    shipped = MODELS / f"{name}.safetensors"
    return shipped if shipped.is_file() else WORK / "minority" / f"{name}.safetensors"


def load(wanted: Set) -> Tensor | None:
    """What is there of a set, up to its count: `[count, 3, size, size]` in [-1, 1]; None if
    nothing is."""
    if not (wanted.is_possible and wanted.file.is_file()):
        return None
    with np.load(wanted.file) as file:
        return torch.from_numpy(file["pixels"][:wanted.count]).float() / 127.5 - 1


def save(wanted: Set, images: Tensor) -> None:
    """As a saved picture has them: in 8 bits."""
    pixels = (images.clamp(-1, 1) + 1) * 127.5
    write_arrays(wanted.file, pixels=pixels.round().byte().numpy())


def is_drawn(wanted: Set) -> bool:
    images = load(wanted)
    return images is not None and len(images) >= wanted.count


def graph(wanted: Set, item: int, size: int) -> Prompt:
    """The graph of one batch, in the API format."""
    nodes: dict[str, tuple[str, Mapping[str, Any]]] = {
        "model": ("UncommonLoadADM", {"model_name": MODEL.stem}),
        "none": ("UncommonClassConditioning", {"class_number": -1}),
        "latent": ("EmptyLatentImage",
                   {"width": AVATARS_SIZE, "height": AVATARS_SIZE, "batch_size": size}),
        "sampled": ("KSampler", {
            "model": ["model" if wanted.patch is None else "guided", 0], "positive": ["none", 0],
            "negative": ["none", 0], "latent_image": ["latent", 0], "seed": SEED + item,
            "steps": wanted.steps, "cfg": 1.0, "sampler_name": wanted.sampler,
            "scheduler": wanted.scheduler, "denoise": 1.0}),
        "shown": ("PreviewAny", {"source": ["sampled", 0]}),
    }
    if wanted.patch is not None:
        inputs = {"model": ["model", 0], **wanted.patch.inputs}
        if wanted.patch.classifier is not None:
            name = wanted.patch.classifier
            nodes["classifier"] = ("UncommonLoadMinorityClassifier", {
                "classifier_name": name if name == SHIPPED else classifier_file(name).name})
            inputs["classifier"] = ["classifier", 0]
        nodes["guided"] = (wanted.patch.node, inputs)
    return {name: {"class_type": kind, "inputs": dict(inputs)}
            for name, (kind, inputs) in nodes.items()}


def draw(host: InProcessHost, wanted: Set) -> int:
    """Draws what is missing of a set, batch by batch, each kept at once; how many images."""
    found = load(replace(wanted, count=10 ** 9))
    images = [] if found is None else list(found.split(BATCH))
    new = 0
    for item in range(len(images), -(-wanted.count // BATCH)):
        run = host.run(graph(wanted, item, BATCH))
        images.append(run.outputs["sampled"][0]["samples"].float().cpu())
        new += BATCH
        save(wanted, torch.cat(images))
    return new
