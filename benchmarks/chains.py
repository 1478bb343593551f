"""Chains of queue items, drawn one after the other through the host's own KSampler."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.models import DIGITS, MODELS
from benchmarks.peers.bank import bank
from demo.host import InProcessHost, Prompt
from demo.workflow import widget_defaults
from dev import ROOT
from guidance.starts import AUTO, affordable

WORK = ROOT / "benchmarks" / "work"
MODEL = MODELS[DIGITS].file
GUIDANCE_NODE = "UncommonNoveltyGuidance"
GUIDING = ("guidance/antithetic_noise", "guidance/batch_mates", "guidance/early_push",
           "guidance/evaluation", "guidance/feature_novelty", "guidance/feature_space",
           "guidance/fitted_radius", "guidance/latent_space", "guidance/limiter",
           "guidance/noise_level", "guidance/novelty", "guidance/novelty_memory",
           "guidance/novelty_net", "guidance/overfull_net", "guidance/prompt",
           "guidance/repulsion", "guidance/starts",
           "nodes/_late_cfg", "nodes/_novelty_hooks", "nodes/_novelty_run", "nodes/_starts")
SEEDS_APART = 1_000_000  # between the first seeds of two seed sets
PEERS = ROOT / "benchmarks" / "peers"
REPORTING = ("command", "fronts", "methods", "plan", "report", "rows")  # they draw nothing
EARLY = "early_push"
CANDIDATES = "candidates"
ANTITHETIC = "antithetic_noise"
BANK = "bank"  # a patch's input that names what it keeps from one queue item to the next
ALWAYS = ("seeds", "count", "guidance")  # part of a chain's file name also where not given


@dataclass(frozen=True)
class Sampler:
    """What KSampler is set to."""

    name: str
    steps: int
    scheduler: str = "normal"

    def __str__(self) -> str:
        return f"{self.name} {self.steps}"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """`count` images of one class, in queue items of one batch; item i has the i-th seed of the
    seed set.

    guidance: the inputs of Novelty Guidance, all of them; None: the node is not there. memory:
    inputs of Novelty Memory other than here by default. patches: other nodes on the MODEL, as
    (type, inputs); one with a bank keeps the queue items before it in mind. more: other nodes that
    inputs are linked to, as (id, (type, inputs)).
    """

    sampler: Sampler
    cfg: float
    label: int
    seeds: int = 0
    count: int = 128
    guidance: dict[str, Any] | None = None
    model: str = DIGITS
    batch: int = 1
    memory: dict[str, Any] | None = None
    patches: tuple[tuple[str, dict[str, Any]], ...] = ()
    more: tuple[tuple[str, tuple[str, dict[str, Any]]], ...] = ()

    @property
    def remembers(self) -> bool:
        """Whether an image depends on those before it."""
        return self.guidance is not None or any(inputs.get(BANK) for _, inputs in self.patches)

    @property
    def _early(self) -> bool:
        """Whether the guidance's early_push, at auto, has any effect."""
        return self.cfg == 1 and self.guidance["repulsion"] != "ball" and self.memory is None

    @property
    def _searches(self) -> bool:
        """Whether more than one starting noise is tried."""
        candidates = self.guidance.get(CANDIDATES, 1)
        if candidates == AUTO:
            return (self._early and self.guidance[EARLY] != "off" and self.guidance["record"]
                    and affordable(self.sampler.steps) > 1)
        return candidates > 1 and self.memory is None

    @property
    def file(self) -> Path:
        """Where the images go. It depends on the model, and on everything but the count."""
        values = asdict(replace(self, count=0))
        settings = {one.name: values[one.name] for one in fields(self)
                    if one.name in ALWAYS or getattr(self, one.name) != one.default}
        if self.guidance is not None:
            useless = {EARLY: not self._early, CANDIDATES: not self._searches,
                       ANTITHETIC: self.batch == 1 or not self.guidance.get(ANTITHETIC)}
            settings["guidance"] = {name: value for name, value in self.guidance.items()
                                    if not useless.get(name)}
        settings["model"] = MODELS[self.model].hash
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return WORK / "novelty" / f"class{self.label}-{digest[:16]}.npz"


@dataclass(frozen=True)
class Drawn:
    """images: `[count, 3, size, size]` in [-1, 1]; seconds: of each queue item; code: the
    guidance code that drew them, see `code_hash`."""

    images: Tensor
    seconds: Tensor
    code: str

    def save(self, chain: Chain) -> None:
        """Writes the chain's file, whole or not at all."""
        write_arrays(chain.file, images=self.images.half().numpy(), code=self.code,
                     seconds=self.seconds.numpy(), chain=json.dumps(asdict(chain)))


def write_arrays(file: Path, **arrays: Any) -> None:
    """Writes an .npz file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("wb") as target:
        np.savez_compressed(target, **arrays)
    unfinished.replace(file)


def load(chain: Chain) -> Drawn | None:
    """What is there of a chain, as long as its file is; None if nothing is."""
    if not chain.file.is_file():
        return None
    with np.load(chain.file) as file:
        return Drawn(torch.from_numpy(file["images"]).float(), torch.from_numpy(file["seconds"]),
                     str(file["code"]))


def is_drawn(chain: Chain) -> bool:
    drawn = load(chain)
    return drawn is not None and len(drawn.images) >= chain.count


def code_hash(patches: Sequence = ()) -> str:
    """Of the code that decides how images are pushed; a change of it is told, not redone."""
    files = [ROOT / f"{name}.py" for name in GUIDING]
    if patches:
        files += sorted(file for file in PEERS.glob("*.py") if file.stem not in REPORTING)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def prompt(chain: Chain, item: int) -> Prompt:
    """The graph of one queue item, in the API format."""
    model = MODELS[chain.model]
    nodes = {
        **model.nodes(chain.label), **dict(chain.more),
        "latent": ("EmptyLatentImage",
                   {"width": model.size, "height": model.size, "batch_size": chain.batch}),
        "sampled": ("KSampler", {
            "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0],
            "seed": SEEDS_APART * chain.seeds + item, "steps": chain.sampler.steps,
            "cfg": chain.cfg, "sampler_name": chain.sampler.name,
            "scheduler": chain.sampler.scheduler, "denoise": 1.0}),
        "shown": ("PreviewAny", {"source": ["sampled", 0]}),
    }
    patched = "model"
    for number, (kind, inputs) in enumerate(chain.patches):
        nodes[f"patch{number}"] = (kind, {"model": [patched, 0], **inputs})
        patched = f"patch{number}"
    if chain.guidance is not None:
        nodes["memory"] = ("UncommonNoveltyMemory", {
            "name": "benchmark", "mode": "learn", "revision": -1, "max_megabytes": 1024,
            **(chain.memory or {})})
        nodes["guided"] = (GUIDANCE_NODE,
                           {"model": [patched, 0], "memory": ["memory", 0], **chain.guidance})
        patched = "guided"
    nodes["sampled"][1]["model"] = [patched, 0]
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def draw(host: InProcessHost, chain: Chain) -> Drawn:
    """Draws a chain, with a new memory that is closed and reopened half-way.

    A chain without a memory goes on from its file if that has the first images already; no chain
    becomes shorter than its file was.
    """
    drawn = load(chain)
    count = max(chain.count, 0 if drawn is None else len(drawn.images))
    images, seconds = ([], []) if drawn is None or chain.remembers else (
        list(drawn.images.split(chain.batch)), drawn.seconds.tolist())
    bank.cache_clear()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, \
            host.user_directory(Path(folder)):
        items = count // chain.batch
        for item in range(len(images), items):
            if item == items // 2:
                reopen(host)
            started = time.perf_counter()
            run = host.run(prompt(chain, item))
            seconds.append(time.perf_counter() - started)
            images.append(run.outputs["sampled"][0]["samples"].float())
        reopen(host)
    return Drawn(torch.cat(images), torch.tensor(seconds), code_hash(chain.patches))


def reopen(host: InProcessHost) -> None:
    """Forgets all that this process knows of memories, as closing ComfyUI does."""
    for shared in vars(host.pack("guidance.novelty_memory")).values():
        if hasattr(shared, "cache_clear"):
            shared.cache_clear()
    host.restart()


def start_host(folder: Path, threads: int, *, cpu: bool = True) -> InProcessHost:
    """A host for chains."""
    torch.set_num_threads(threads)
    host = InProcessHost(folder, cpu=cpu)
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False  # a bar per image would hide that of the benchmark
    host.load_extra("nodes_preview_any")
    return host


def guidance_defaults(host: InProcessHost) -> dict[str, Any]:
    """The widgets of Novelty Guidance with the values that the page gives them, but for what is of
    use to space vision alone."""
    values = widget_defaults(host.pack_nodes[GUIDANCE_NODE].GET_NODE_INFO_V1())
    return {name: value for name, value in values.items() if not name.startswith("vision_")}
