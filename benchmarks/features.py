"""The adapter inside the model: which block, which half of CFG, which steps, how it is pooled?

    python dev.py bench features [--jobs 2] [--report]

Draws chains of 128 images one after the other through the real KSampler, with a memory of space
features and all else as by default, but CFG at all noise levels, so that both halves are there, and
on the digits the radius that suits this. Each row changes one thing of the shipped design. Chains
that are drawn already are kept, so it can be stopped and run again at any time. Writes
benchmarks/results/features.json and .md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.chain_table import lines
from benchmarks.chains import GUIDANCE_NODE, Sampler
from benchmarks.designs import Change, DesignChain, draw_design, run
from benchmarks.models import DIGITS, MODELS
from benchmarks.results import RESULTS, circumstances, write_json
from benchmarks.workers import Place
from guidance.novelty import UNSCALED

COUNT = 128
DIT = "avatars-dit"
LABELS = {DIGITS: (0, 3, 8), DIT: (0, 1)}
FITTED = {"radius": 0.0}  # the radius comes from the memory
BASE = {DIGITS: {"cfg_start_percent": 0.0, "radius": 0.3},
        DIT: {"cfg_start_percent": 0.0} | FITTED}
LATENT_MEMORY = ("UncommonNoveltyMemory", {"name": "beside", "mode": "learn", "revision": -1,
                                           "max_megabytes": 1024})
SPACE, RUN = "guidance.feature_space", "guidance.feature_novelty"
TAP, HOOKS = "nodes._feature_tap", "nodes._novelty_hooks"
Adapt = Callable[[Tensor], Tensor]
Tapped = Callable[[Any, Any, Adapt], AbstractContextManager[None]]


@contextmanager
def _behind(block_of: Callable[[nn.Module], nn.Module], view: Callable[[Tensor], Tensor],
            guider, adapt: Adapt) -> Iterator[None]:
    """Reads and moves what leaves any module of the network, where the prompt is evaluated.

    view: of what leaves it, as an activation `[batch, width, height, width]`.
    """
    net = guider.model_patcher.get_model_object("diffusion_model")
    positive = {cond["uuid"] for cond in guider.conds["positive"]}
    call: dict[str, Any] = {}

    def begin(module, args, kwargs):
        call.update(kwargs["transformer_options"])

    def leave(module, args, out: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        first, *others = out if isinstance(out, tuple) else (out,)
        moved, uuids = first.clone(), call["uuids"]
        for part, uuid in zip(moved.chunk(len(uuids)), uuids, strict=True):
            if uuid in positive:
                activation = view(part)
                activation.copy_(adapt(activation.clone()))
        return (moved, *others) if isinstance(out, tuple) else moved

    hooks = (net.register_forward_pre_hook(begin, with_kwargs=True),
             block_of(net).register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def behind(block_of: Callable[[nn.Module], nn.Module],
           view: Callable[[Tensor], Tensor] = lambda activation: activation) -> Tapped:
    return lambda guider, tap, adapt: _behind(block_of, view, guider, adapt)


def _image_tokens(tokens: Tensor) -> Tensor:
    """The small DiT has 8 x 8 of them an image; in its single blocks the text comes before."""
    return tokens[:, -64:].transpose(1, 2).unflatten(2, (8, 8))


def _on_negative(activation: Tensor, call: dict, positive: set, adapt: Adapt) -> Tensor:
    uuids = call["uuids"]
    return torch.cat([part if uuid in positive else adapt(part) for part, uuid in
                      zip(activation.chunk(len(uuids)), uuids, strict=True)])


def _on_both(activation: Tensor, call: dict, positive: set, adapt: Adapt) -> Tensor:
    return torch.cat([adapt(part) for part in activation.chunk(len(call["uuids"]))])


@dataclass(frozen=True, kw_only=True)
class Design(Change):
    """with_latent: another node before it, with a memory of space latent."""

    with_latent: bool = False

    def chains(self, defaults: dict[str, Any]) -> list[DesignChain]:
        guidance = None if self.plain else defaults | BASE[self.model] | self.guidance
        beside = {**defaults, "cfg_start_percent": guidance["cfg_start_percent"],
                  "memory": ["beside", 0]} if guidance and self.with_latent else None
        return [DesignChain(sampler=Sampler("euler", 20), cfg=3.0, label=label, count=COUNT,
                            model=self.model, guidance=guidance,
                            memory=None if self.plain else {"space": "features"},
                            patches=((GUIDANCE_NODE, beside),) if beside else (),
                            more=(("beside", LATENT_MEMORY),) if beside else (),
                            design=self.changes)
                for label in LABELS[self.model]]


OUTPUT = {(HOOKS, "tapped"): behind(lambda net: net.output_blocks[0])}
FIRST_DOUBLE = {(HOOKS, "tapped"): behind(lambda net: net.double_blocks[0], _image_tokens)}
DESIGNS = (
    Design(what="seed change only", plain=True),
    Design(what="shipped"),
    Design(what="the radius from the memory", guidance=FITTED),
    Design(what="the same, CFG from .35: the defaults",
           guidance=FITTED | {"cfg_start_percent": 0.35}),
    Design(what="the defaults, and latent at its defaults", with_latent=True,
           guidance=FITTED | {"cfg_start_percent": 0.35}),
    Design(what="latent at its defaults as well", with_latent=True),
    Design(what="moved by at most a quarter of the activation",
           values={(RUN, "FRACTION"): 0.25 / UNSCALED}),
    Design(what="moved by at most all of the activation",
           values={(RUN, "FRACTION"): 1 / UNSCALED}),
    Design(what="on the half with the empty prompt", values={(TAP, "_on_positive"): _on_negative}),
    Design(what="on both halves", values={(TAP, "_on_positive"): _on_both}),
    Design(what="behind the last input block",
           values={(HOOKS, "tapped"): behind(lambda net: net.input_blocks[-1])}),
    Design(what="behind the first output block", values=OUTPUT),
    *(Design(what=f"behind the first output block, radius {radius}", values=OUTPUT,
             guidance={"radius": radius}) for radius in (0.2, 0.25)),
    Design(what="behind the first output block, the defaults", values=OUTPUT,
           guidance=FITTED | {"cfg_start_percent": 0.35}),
    Design(what="averaged over 2 x 2", values={(SPACE, "GRID"): 2}),
    Design(what="averaged over all of the image", values={(SPACE, "GRID"): 1}),
    Design(what="32 mixtures of the channels", values={(SPACE, "CHANNELS"): 32}),
    Design(what="16 mixtures of the channels", values={(SPACE, "CHANNELS"): 16}),
    Design(what="from start_percent .35 on", guidance={"start_percent": 0.35}),
    Design(what="up to end_percent .35", guidance={"end_percent": 0.35}),
    Design(what="up to end_percent .65", guidance={"end_percent": 0.65}),
    Design(what="compared with the embedding at sigma 4.5",
           values={(RUN, "REFERENCE_LOG_SNR"): -3}),
    Design(what="compared with the embedding at sigma 1", values={(RUN, "REFERENCE_LOG_SNR"): 0}),
    Design(what="compared with the embedding at sigma .47",
           values={(RUN, "REFERENCE_LOG_SNR"): 1.5}),
    Design(model=DIT, what="seed change only", plain=True),
    Design(model=DIT, what="shipped"),
    Design(model=DIT, what="CFG from .35: the defaults",
           guidance={"cfg_start_percent": 0.35}),
    *(Design(model=DIT, what=f"radius {radius}", guidance={"radius": radius})
      for radius in (0.05, 0.1, 0.15)),
    Design(model=DIT, what="on the half with the empty prompt",
           values={(TAP, "_on_positive"): _on_negative}),
    Design(model=DIT, what="on both halves", values={(TAP, "_on_positive"): _on_both}),
    Design(model=DIT, what="behind the first double block of 2", values=FIRST_DOUBLE),
    Design(model=DIT, what="behind the first double block of 2, the defaults",
           values=FIRST_DOUBLE, guidance={"cfg_start_percent": 0.35}),
    *(Design(model=DIT, what=f"behind single block {number + 1} of 4", values={
        (HOOKS, "tapped"): behind(lambda net, number=number: net.single_blocks[number],
                                  _image_tokens)}) for number in range(4)),
)


def draw_and_save(place: Place, chain: DesignChain) -> int:
    return draw_design(DESIGNS, place, chain)


def write_report(rows: Sequence[Mapping[str, Any]]) -> None:
    """benchmarks/results/features.json and .md."""
    write_json("features", {"rows": rows, **circumstances("python dev.py bench features")})
    (RESULTS / "features.md").write_text(text(rows), "utf-8")


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    found = ["# The adapter inside the model: one thing changed at a time", "",
             "`python dev.py bench features`", "",
             f"Of {COUNT} images of a class, one after the other, how many are good and unlike "
             "every good one before,", "and the share of good images in brackets; euler 20, CFG 3 "
             "at all noise levels, one set of seeds.", "Memory of space features; radius .3 on the "
             "digits, on the DiT from the memory. To history: mean", "distance to the nearest "
             "image before, in the features of an independent judge.", ""]
    for model, labels in LABELS.items():
        found += [f"## {MODELS[model].title}", "",
                  *lines([row for row in rows if row["model"] == model], labels), ""]
    return "\n".join(found)


def main() -> None:
    run("features", __doc__, DESIGNS, draw_and_save, write_report)


if __name__ == "__main__":
    main()
