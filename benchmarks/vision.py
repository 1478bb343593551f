"""Novelty by what a vision model sees: how often it looks, how far it pushes, and from where on.

    python dev.py bench vision [--jobs 2] [--report]

Trains a small vision model on the digits without labels (a minute, once), then draws chains of 128
images one after the other through the real KSampler, with a memory of space vision. Each row
changes what it names of the defaults, but that CFG is at all noise levels; so do the last rows with
CFG where it is by default. Chains that are drawn already are kept, so it can be stopped and run
again at any time. Writes benchmarks/results/vision.json and .md.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import vision_encoder
from benchmarks.chain_table import Table, lines
from benchmarks.chains import GUIDANCE_NODE, WORK, Chain, Sampler, draw
from benchmarks.measures import DigitsMeasure
from benchmarks.models import DIGITS, MODELS
from benchmarks.novelty import ALWAYS, LATE_CFG
from benchmarks.results import RESULTS, circumstances, command_line, write_json
from benchmarks.workers import Place, add_arguments, draw_all, worker_host, workers
from demo.digits_distilled import load_model, normal_sigmas
from demo.host import InProcessHost
from demo.workflow import widget_defaults
from guidance.adm import NO_CLASS

ENCODER = WORK / "vision" / "encoder.safetensors"
COUNT = 128
LABELS = (0, 3, 8)
SAMPLER, CFG = Sampler("euler", 20), 3.0
PICTURES = 48  # of a class, among which one is to be known again


@dataclass(frozen=True, kw_only=True)
class Row:
    """guidance: inputs of Novelty Guidance in place of its defaults; None: it is not there."""

    what: str
    guidance: Mapping[str, Any] | None
    space: str = "vision"

    def chains(self, defaults: dict[str, Any]) -> list[Chain]:
        if self.guidance is None:
            return [Chain(sampler=SAMPLER, cfg=CFG, label=label, count=COUNT) for label in LABELS]
        guidance, more = defaults | self.guidance, ()
        if self.space == "vision":
            guidance |= {"clip_vision": ["vision", 0], "vae": ["vae", 0]}
            more = (("vision", (vision_encoder.NODE,
                                {"weights": vision_encoder.digest(ENCODER)})),
                    ("vae", ("VAELoader", {"vae_name": "pixel_space"})))
        else:
            guidance = {name: value for name, value in guidance.items()
                        if not name.startswith("vision_")}
        return [Chain(sampler=SAMPLER, cfg=CFG, label=label, count=COUNT, guidance=guidance,
                      memory=None if self.space == "latent" else {"space": self.space}, more=more)
                for label in LABELS]


ROWS = (
    Row(what="seed change only", guidance=None),
    Row(what="every 2nd step", guidance=ALWAYS),
    Row(what="every step", guidance=ALWAYS | {"vision_every_n_steps": 1}),
    Row(what="every 4th step", guidance=ALWAYS | {"vision_every_n_steps": 4}),
    *(Row(what=f"radius {radius}", guidance=ALWAYS | {"radius": radius})
      for radius in (0.1, 0.14, 0.22, 0.26)),
    Row(what="start_percent .01", guidance=ALWAYS | {"start_percent": 0.01}),
    Row(what="start_percent .35", guidance=ALWAYS | {"start_percent": 0.35}),
    Row(what="end_percent .5", guidance=ALWAYS | {"end_percent": 0.5}),
    Row(what="strength .9", guidance=ALWAYS | {"strength": 0.9}),
    Row(what="CFG from .35, no push", guidance=LATE_CFG, space="latent"),
    Row(what="CFG from .35, every 2nd step: the defaults", guidance={}),
    Row(what="CFG from .35, space latent", guidance={}, space="latent"),
    Row(what="CFG from .35, space features", guidance={}, space="features"),
)


@functools.cache
def host_with_vision(place: Place) -> InProcessHost:
    """That of a worker process, with the vision model, which is trained once."""
    host = worker_host(place)
    if not ENCODER.is_file():
        vision_encoder.train(ENCODER)
    vision_encoder.register(ENCODER)
    return host


def draw_and_save(place: Place, chain: Chain) -> int:
    """Draws one chain; returns how many images it has."""
    drawn = draw(host_with_vision(place), chain)
    drawn.save(chain)
    return len(drawn.images)


def shipped_defaults(place: Place) -> dict[str, Any]:
    return widget_defaults(
        host_with_vision(place).pack_nodes[GUIDANCE_NODE].GET_NODE_INFO_V1())


@torch.no_grad()
def recognition(place: Place) -> list[dict[str, float]]:
    """At each step: how often, of PICTURES of a class, the finished image that is nearest to what
    one is heading for is its own, as the vision model sees it; mean over the classes."""
    host_with_vision(place)
    clip_vision = vision_encoder.loaded(ENCODER)
    net, config, schedule = load_model(MODELS[DIGITS].file)
    sigmas, steps = normal_sigmas(schedule, SAMPLER.steps)
    found = torch.zeros(SAMPLER.steps)
    shape = (PICTURES, config.in_channels, config.image_size, config.image_size)
    for label in LABELS:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(label))
        heading = []
        x = noise * (1 + sigmas[0] ** 2).sqrt()
        labels = torch.tensor([label, NO_CLASS]).repeat_interleave(PICTURES)
        for sigma, following, step in zip(sigmas, sigmas[1:], steps, strict=False):
            asked, free = net((x / (1 + sigma ** 2).sqrt()).repeat(2, 1, 1, 1),
                              step.expand(len(labels)), labels).chunk(2)
            predicted = free + CFG * (asked - free)
            heading.append(x - sigma * predicted)
            x = x + (following - sigma) * predicted
        finished = vision_encoder.embed(clip_vision, x.clamp(-1, 1))
        found += torch.stack([known_again(vision_encoder.embed(clip_vision, one.clamp(-1, 1)),
                                          finished) for one in heading]) / len(LABELS)
    return [{"sigma": round(sigma.item(), 2), "share": round(share.item(), 3)}
            for sigma, share in zip(sigmas, found, strict=False)]


def known_again(seen: Tensor, finished: Tensor) -> Tensor:
    """Unit embeddings `[n, dim]` each -> the share of the first whose nearest is their own."""
    return ((seen @ finished.T).argmax(dim=1) == torch.arange(len(seen))).float().mean()


def write_report(table: Table, defaults: dict[str, Any], known: Sequence[Mapping[str, float]]
                 ) -> None:
    """benchmarks/results/vision.json and .md, of what is drawn."""
    measure = DigitsMeasure()
    rows = [one for row in ROWS for one in table.row(row.what, row.chains(defaults), measure)]
    write_json("vision", {"recognition": known, "rows": rows,
                          **circumstances(command_line("vision"))})
    (RESULTS / "vision.md").write_text(text(rows, known), "utf-8")


def text(rows: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, float]]) -> str:
    return "\n".join([
        "# Novelty by what a vision model sees", "", "`python dev.py bench vision`", "",
        f"Digits, {SAMPLER}, CFG {CFG:g} at all noise levels where nothing else is said; {COUNT} "
        "images of a class, one after", "the other, one set of seeds. How many are good and unlike "
        "every good one before, the share of good images in", "brackets; to history: mean distance "
        "to the nearest image before, in the features of an independent judge.", "",
        *lines(rows, LABELS), "",
        "## How early it knows an image", "",
        f"Of {PICTURES} images of a class: how often the finished image nearest to what one is "
        "heading for is its own.", f"Chance is {1 / PICTURES:.2f}.", "",
        "| sigma | " + " | ".join(f"{one['sigma']:g}" for one in known) + " |",
        "|---" * (len(known) + 1) + "|",
        "| share | " + " | ".join(f"{one['share']:.2f}" for one in known) + " |", ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench vision", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    with workers(arguments.jobs) as (pool, place):
        defaults = pool.submit(shipped_defaults, place).result()
        known = pool.submit(recognition, place).result()
        table = Table("vision")
        if not arguments.report:
            draw_all(pool, functools.partial(draw_and_save, place), "vision", table.missing(
                chain for row in ROWS for chain in row.chains(defaults)))
    write_report(table, defaults, known)


if __name__ == "__main__":
    main()
