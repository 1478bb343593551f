"""Reads what an ADM classifier is from its tensors; layout of openai/guided-diffusion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .adm_checkpoint import Schedule
from .adm_encoder import MULTIPLIERS, AdmEncoder, EncoderConfig

HEAD_CHANNELS = 64  # `create_classifier` knows no other


def detect_encoder(state_dict: Mapping[str, Tensor]) -> EncoderConfig:
    """The configuration of a classifier with attention pooling (names `without_prefix`).

    ValueError for anything else, and for a shape that more than one configuration would explain.
    """

    def shape(name: str) -> torch.Size:
        if name not in state_dict:
            raise unfit(state_dict, f"it has no tensor '{name}'")
        return state_dict[name].shape

    if any(name.startswith("output_blocks.") for name in state_dict):
        raise ValueError("This is a diffusion model, but a classifier (an encoder without decoder) "
                         "is expected here. Load it with Load ADM Diffusion Model, or choose "
                         "another file.")
    width = shape("time_embed.0.weight")[1]
    in_channels = shape("input_blocks.0.0.weight")[1]
    if "out.2.positional_embedding" not in state_dict:
        raise unfit(state_dict, "it does not pool by attention (classifier_pool attention)")
    side = math.isqrt(shape("out.2.positional_embedding")[1] - 1)
    common = {
        "in_channels": in_channels, "out_channels": shape("out.2.c_proj.weight")[0],
        "model_channels": width, "pool_size": (side, side),
        "num_head_channels": HEAD_CHANNELS,
        "scale_shift_norm": shape("input_blocks.1.0.emb_layers.1.weight")[0]
        == 2 * shape("input_blocks.1.0.out_layers.3.weight")[0],
        "resblock_updown": not any(name.endswith(".0.op.weight") for name in state_dict)}
    found = [config for config in _candidates(state_dict, common) if _fits(config, state_dict)]
    published = [config for config in found
                 if config.channel_mult == MULTIPLIERS.get(len(config.channel_mult))]
    for choice in (published, found):
        if len(choice) == 1:
            return choice[0]
    raise unfit(state_dict, "its blocks form no encoder that can be told from others"
                if found else "its tensors form no encoder")


def _candidates(state_dict: Mapping[str, Tensor], common: dict) -> Iterator[EncoderConfig]:
    """Every way to share the input blocks out to levels."""
    blocks = 1 + max(int(name.split(".")[1]) for name in state_dict
                     if name.startswith("input_blocks."))
    width = common["model_channels"]
    for levels in range(1, blocks // 2 + 1):
        if blocks % levels:
            continue
        depth = blocks // levels - 1
        firsts = [1 + level * (depth + 1) for level in range(levels)]
        convs = [f"input_blocks.{i}.0.out_layers.3.weight" for i in firsts]
        if not all(name in state_dict for name in convs):
            continue
        widths = [state_dict[name].shape[0] for name in convs]
        yield EncoderConfig(
            channel_mult=tuple(w // width if w % width == 0 else w / width for w in widths),
            num_res_blocks=depth, attention_levels=tuple(
                level for level, i in enumerate(firsts)
                if f"input_blocks.{i}.1.qkv.weight" in state_dict),
            # A head of one level never downsamples; the published one was set up without.
            **common | ({"resblock_updown": False} if levels == 1 else {}))


def _fits(config: EncoderConfig, state_dict: Mapping[str, Tensor]) -> bool:
    try:
        with torch.device("meta"):
            expected = AdmEncoder(config).state_dict()
    except ValueError:
        return False
    return {name: tuple(t.shape) for name, t in expected.items()} == {
        name: tuple(t.shape) for name, t in state_dict.items()}


def published_schedule(config: EncoderConfig) -> Schedule:
    """What guided-diffusion trained it on: cosine at 64 x 64, else linear."""
    image_size = config.pool_size[0] << (len(config.channel_mult) - 1)
    return Schedule(kind="cosine" if image_size == 64 else "linear")


def fill(module: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Puts tensors into a module made on the meta device, in float32; ValueError if they do not
    fit."""
    expected = module.state_dict()
    for name in sorted(expected.keys() | state_dict.keys()):
        if name not in expected:
            raise ValueError(f"{what} has an additional tensor '{name}'.")
        if name not in state_dict:
            raise ValueError(f"{what} lacks the tensor '{name}'.")
        found, wanted = tuple(state_dict[name].shape), tuple(expected[name].shape)
        if found != wanted:
            raise ValueError(f"{what}: tensor '{name}' is {found} where {wanted} fits.")
    module.load_state_dict({name: value.detach().clone().float()
                            for name, value in state_dict.items()}, assign=True)
    module.eval().requires_grad_(False)


def unfit(state_dict: Mapping[str, Tensor], reason: str) -> ValueError:
    examples = ", ".join(f"'{name}'" for name in list(state_dict)[:3])
    return ValueError(
        f"This file is no classifier of ADM's kind: {reason} (found {len(state_dict)} entries, "
        f"such as {examples}). Choose a classifier of this pack or of openai/guided-diffusion.")
