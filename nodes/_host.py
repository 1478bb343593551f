"""What the pack asks of the host, beyond the nodes' own schema."""

from __future__ import annotations

import io as bytes_io
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.model_sampling
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.sampler_helpers import convert_cond
from comfy_api.latest import ui
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..guidance.noise_level import NoiseLevel
from ..guidance.novelty_memory import NoveltyMemory

NOT_DIFFUSION = (comfy.model_sampling.IMG_TO_IMG, comfy.model_sampling.IMG_TO_IMG_FLOW)
PREVIEW_SIZE = 64
MEMORY_CHANGED = "uncommon.memory"  # the event's name


def default_database() -> str:
    """SQLAlchemy URL of the SQLite file in the host's user folder."""
    folder = Path(folder_paths.get_system_user_directory("uncommon"))
    return f"sqlite:///{(folder / 'novelty.sqlite').as_posix()}"


def noise_level(model_sampling, sigma: Tensor) -> NoiseLevel:
    """The host's sigma `[batch]` in the terms of its model family."""
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return NoiseLevel.flow(sigma, getattr(model_sampling, "noise_scale", 1.0))
    return NoiseLevel.variance_exploding(sigma)


def encoded_conditioning(conditioning: list | None) -> Tensor | None:
    """`encoded_prompt` of a CONDITIONING as it is on a wire."""
    return encoded_prompt({"positive": convert_cond(conditioning)}) if conditioning else None


def encoded_prompt(conds: dict) -> Tensor | None:
    """The pooled positive conditioning `[width]`, its tokens' mean where none is pooled."""
    positive = conds.get("positive") or next(iter(conds.values()), [])
    found = []
    for cond in positive:
        pooled, tokens = cond.get("pooled_output"), cond.get("cross_attn")
        if pooled is not None:
            found.append(pooled.float().flatten(0, -2).mean(0).cpu())
        elif tokens is not None:
            found.append(tokens.float().flatten(0, -2).mean(0).cpu())
    same = [vector for vector in found if vector.shape == found[0].shape]
    return torch.stack(same).mean(0) if same else None


def preview(latent_format, latent: Tensor) -> bytes | None:
    """A small PNG of one latent `[channels, ...]` in model space, where the format has factors."""
    if latent_format.latent_rgb_factors is None:
        return None
    previewer = latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias,
        latent_format.latent_rgb_factors_reshape)
    image = previewer.decode_latent_to_preview(latent[None])
    image.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
    file = bytes_io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def show_on_node(node_id: str, text: str) -> None:
    """Shows a text on a node of the page that queued the running prompt, if there is a page."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        # The name of a file need not be UTF-8.
        server.send_progress_text(text.encode(errors="replace").decode(), node_id,
                                  server.client_id)


def shown(cls, report: str) -> dict:
    """Shows a report on a node that runs; what the page needs to show it again later."""
    show_on_node(cls.hidden.unique_id, report)
    return ui.PreviewText(report).as_dict()


def progress() -> Callable[[int, int], None]:
    """Shows how far a node has come, (done, total), and ends it where the user stops it."""
    bar = comfy.utils.ProgressBar(1)

    def tick(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return tick


def tell_memory_changed(memory: NoveltyMemory, **more: object) -> None:
    """Tells every open page that a memory has a new revision, and the page that queued the running
    prompt what `more` a run has to tell: another's nodes may have the same ids."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        stats = memory.log.stats()
        told = {
            "memory": memory.name, "shared": memory.url != default_database(),
            "revision": stats.revision, "samples": stats.live_samples, "bytes": stats.live_bytes}
        server.send_sync(MEMORY_CHANGED, told)
        if more and server.client_id:
            server.send_sync(MEMORY_CHANGED, told | more, server.client_id)


def running_node() -> tuple[str, str]:
    """Ids of the prompt and of the node that run now, empty outside a prompt."""
    context = get_executing_context()
    return (context.prompt_id, context.node_id) if context is not None else ("", "")
