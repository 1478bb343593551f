"""Where a MODEL's activations can be read and moved: the host's patch points, by architecture."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import comfy.ldm.flux.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ldm.qwen_image.model
import comfy.ldm.wan.model
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import TORCH_COMPILE_KWARGS
from torch import Tensor

from ..guidance.feature_space import FeatureSpace
from ..guidance.memory import FeatureSpaceError
from ._adm_model import AdmNet
from ._sampling_hooks import SHARED

INPUT_SHAPE = "uncommon.input_shape"  # of the latents in a call of the model, in its options
MIDDLE = "middle_block_after_patch"
SUPPORTED = "SD 1.5, SD 2, SDXL and other U-Nets of this kind, ADM, SD3, Flux, Wan and Qwen-Image"

Adapt = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tap:
    """A place in a model. block: index of a transformer block, None for a U-Net's middle block;
    width: channels of its activation; patch: latent pixels a token, height and width; last:
    whether the image's tokens come last."""

    net: str
    block: int | None
    width: int
    patch: tuple[int, int] = (1, 1)
    last: bool = False

    def space(self, latent_format: str) -> FeatureSpace:
        block = "middle" if self.block is None else f"block{self.block}"
        return FeatureSpace(f"{self.net}/{latent_format}", block, self.width)


def tap_of(model) -> Tap:
    """Where a MODEL is tapped. Raises FeatureSpaceError where it cannot be."""
    net = model.get_model_object("diffusion_model")
    name = type(net).__name__
    if isinstance(net, AdmNet):
        return Tap(name, None, net.config.widths[-1])
    if isinstance(net, comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel):
        return Tap(name, None, net.model_channels * net.channel_mult[-1])
    if isinstance(net, comfy.ldm.flux.model.Flux) and len(net.double_blocks):
        return Tap(name, len(net.double_blocks) - 1, net.hidden_size, (net.patch_size,) * 2)
    if isinstance(net, comfy.ldm.modules.diffusionmodules.mmdit.MMDiT):
        width = net.x_embedder.proj.weight.shape[0]
        return Tap(name, len(net.joint_blocks) // 2, width, net.x_embedder.patch_size)
    if isinstance(net, comfy.ldm.wan.model.WanModel):
        return Tap(name, len(net.blocks) // 2, net.dim, net.patch_size[1:],
                   last=net.ref_conv is not None)
    if isinstance(net, comfy.ldm.qwen_image.model.QwenImageTransformer2DModel):
        return Tap(name, len(net.transformer_blocks) // 2, net.inner_dim, (net.patch_size,) * 2)
    raise FeatureSpaceError(
        f"Novelty Memory is set to space features, but the activations of this model ({name}) "
        f"cannot be read. Supported are {SUPPORTED}. Set space to latent, with a memory of its "
        "own.")


def is_compiled(guider) -> bool:
    """Whether a node like TorchCompileModel is in the graph."""
    return guider.model_options.get(TORCH_COMPILE_KWARGS) is not None


@contextmanager
def tapped(guider, tap: Tap, adapt: Adapt) -> Iterator[None]:
    """Within, `adapt` is called with the activation `[batch, width, (frames,) height, width]` of
    each area that the positive prompt is evaluated at, and what it returns takes its place.

    It comes after all patches that other nodes have put on the same block. A compiled model runs
    uncompiled within: the host has torch.compile not look at what patches there are, so compiled
    code has those of the run that it was made in. Where the host splits the work between devices,
    with a thread for each, the calls come one by one and are on the device of the sampler.
    """
    device, one_by_one = guider.model_patcher.load_device, threading.Lock()
    options = guider.model_options.setdefault("transformer_options", {})
    conds = guider.conds.get("positive") or next(iter(guider.conds.values()), [])
    positive = {cond.get("uuid") for cond in conds}

    def adapted(activation: Tensor, call: dict) -> Tensor:
        if SHARED not in call:  # an evaluation beside the sampler's own
            return activation
        with one_by_one:
            return _on_positive(activation, call, positive, on_device)

    def on_device(activation: Tensor) -> Tensor:
        there = activation.to(device)
        moved = adapt(there)
        return activation if moved is there else moved.to(activation.device)

    with ExitStack() as within:
        if is_compiled(guider):
            within.enter_context(torch.compiler.set_stance("force_eager"))
        within.enter_context(_middle(options, adapted) if tap.block is None
                             else _block(options, tap, adapted))
        yield


@contextmanager
def _middle(options: dict, adapted: Callable[[Tensor, dict], Tensor]) -> Iterator[None]:
    """A patch behind a U-Net's middle block."""
    def patch(args: dict) -> dict:
        return {**args, "h": adapted(args["h"], args["transformer_options"])}

    patches = options.setdefault("patches", {})
    others = patches.get(MIDDLE, [])
    patches[MIDDLE] = [*others, patch]
    try:
        yield
    finally:
        patches[MIDDLE] = others


@contextmanager
def _block(options: dict, tap: Tap, adapted: Callable[[Tensor, dict], Tensor]) -> Iterator[None]:
    """A replacement of a transformer block, around the one that is there."""
    place = ("double_block", tap.block)
    replaced = options.setdefault("patches_replace", {}).setdefault("dit", {})
    other = replaced.get(place)

    def patch(args: dict, extra: dict) -> dict:
        out = extra["original_block"](args) if other is None else other(args, extra)
        call = args.get("transformer_options") or {}
        if INPUT_SHAPE not in call:
            return out
        tokens = out["img"]
        grid = _grid(call[INPUT_SHAPE], tap.patch)
        first = tokens.shape[1] - math.prod(grid) if tap.last else 0
        image = slice(first, first + math.prod(grid))
        activation = tokens[:, image].transpose(1, 2).unflatten(2, grid)
        moved = adapted(activation, call)
        if moved is not activation:
            tokens = tokens.clone()
            tokens[:, image] = moved.flatten(2).transpose(1, 2)
            out = {**out, "img": tokens}
        return out

    told = options.setdefault("wrappers", {}).setdefault(WrappersMP.APPLY_MODEL, {})
    told[INPUT_SHAPE] = [_tell_shape]
    replaced[place] = patch
    try:
        yield
    finally:
        del replaced[place]
        if other is not None:
            replaced[place] = other
        told.pop(INPUT_SHAPE, None)


def _grid(shape: torch.Size, patch: tuple[int, int]) -> tuple[int, int, int]:
    """Tokens of latents `[batch, channels, (frames,) height, width]`: frames, height, width."""
    height, width = (-(-size // of) for size, of in zip(shape[-2:], patch, strict=True))
    return shape[2] if len(shape) > 4 else 1, height, width


def _on_positive(activation: Tensor, call: dict, positive: set, adapt: Adapt) -> Tensor:
    """`adapt` on those parts of a call's batch that belong to the positive prompt."""
    uuids = call.get("uuids", [])
    if not positive.intersection(uuids):
        return activation
    parts = list(activation.chunk(len(uuids)))
    moved = [adapt(part) if uuid in positive else part
             for part, uuid in zip(parts, uuids, strict=True)]
    if all(new is old for new, old in zip(moved, parts, strict=True)):
        return activation
    return torch.cat(moved)


def _tell_shape(executor, x, t, c_concat=None, c_crossattn=None, control=None,
                transformer_options={}, **kwargs):  # noqa: B006
    """Around the host's `apply_model`: lets the patches know what the model is called with."""
    options = {**transformer_options, INPUT_SHAPE: x.shape}
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
