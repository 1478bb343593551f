"""What the pack asks of the host, beyond the nodes' own schema."""

from __future__ import annotations

import io as bytes_io
from pathlib import Path

import comfy.model_sampling
import folder_paths
import latent_preview
import torch
from comfy_execution.progress import get_progress_state
from torch import Tensor

from ..guidance.noise_level import NoiseLevel

NOT_DIFFUSION = (comfy.model_sampling.IMG_TO_IMG, comfy.model_sampling.IMG_TO_IMG_FLOW)
PREVIEW_SIZE = 64


def default_database() -> str:
    """SQLAlchemy URL of the SQLite file in the host's user folder."""
    folder = Path(folder_paths.get_system_user_directory("uncommon"))
    return f"sqlite:///{(folder / 'novelty.sqlite').as_posix()}"


def noise_level(model_sampling, sigma: Tensor) -> NoiseLevel:
    """The host's sigma `[batch]` in the terms of its model family."""
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return NoiseLevel.flow(sigma, getattr(model_sampling, "noise_scale", 1.0))
    return NoiseLevel.variance_exploding(sigma)


def encoded_prompt(conds: dict) -> Tensor | None:
    """The pooled positive conditioning `[width]`, its tokens' mean where none is pooled, or None."""
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
    """Shows a text on a node of the page, if there is a page."""
    from server import PromptServer

    send = getattr(getattr(PromptServer, "instance", None), "send_progress_text", None)
    if send is not None:
        send(text, node_id)


def note_in_metadata(node_id: str, note: dict) -> None:
    """Puts a note beside a node of the running prompt, which saved images carry."""
    dynprompt = get_progress_state().dynprompt
    prompt = dynprompt.get_original_prompt() if dynprompt is not None else {}
    if node_id in prompt:
        prompt[node_id].setdefault("_meta", {})["uncommon"] = note
