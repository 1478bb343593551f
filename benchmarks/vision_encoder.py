"""A small vision model for a benchmark: it knows a digit again that was turned and shifted.

There is no small CLIP. This is the host's CLIP vision class made small, trained on scikit-learn's
digits without their labels (Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", 2002.05709), a minute on one core. The judge of the benchmarks never sees it.
"""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors
from tqdm import trange

from demo.data import digits

NODE = "BenchmarkVision"
CONFIG = {"model_type": "clip_vision_model", "num_channels": 3, "hidden_act": "quick_gelu",
          "hidden_size": 64, "image_size": 32, "intermediate_size": 128, "num_attention_heads": 2,
          "num_hidden_layers": 3, "patch_size": 8, "projection_dim": 32}
STEPS, BATCH, TEMPERATURE = 400, 256, 0.2
MOST_TURNED, MOST_SHIFTED = math.radians(15), 0.25  # of half the width


def empty():
    """The host's CLIP_VISION, with weights that gradients pass through."""
    import comfy.clip_vision

    with torch.inference_mode(False):
        made = comfy.clip_vision.ClipVisionModel(CONFIG)
        made.model.float()
    return made


def embed(clip_vision, images: Tensor) -> Tensor:
    """Images `[batch, 3, height, width]` in [-1, 1] -> unit embeddings `[batch, dim]`."""
    import comfy.clip_model

    pixels = comfy.clip_model.clip_preprocess(
        (images.movedim(1, -1) + 1) / 2, size=clip_vision.image_size, mean=clip_vision.image_mean,
        std=clip_vision.image_std, crop=False).float()
    return F.normalize(clip_vision.model(pixel_values=pixels)[2], dim=1)


def turned_and_shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image `[batch, 3, height, width]` in its own way."""
    turn, right, down = torch.rand(3, len(images), generator=generator) * 2 - 1
    angle = MOST_TURNED * turn
    rows = (torch.stack([angle.cos(), -angle.sin(), MOST_SHIFTED * right], dim=1),
            torch.stack([angle.sin(), angle.cos(), MOST_SHIFTED * down], dim=1))
    grid = F.affine_grid(torch.stack(rows, dim=1), [*images.shape], align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1  # outside it is black


def train(file: Path) -> None:
    """Trains the vision model and writes its weights."""
    from demo.host.small_models import fill

    images, generator = digits()[0], torch.Generator().manual_seed(0)
    clip_vision = empty()
    fill(clip_vision.model, 0)
    weights = [weight.requires_grad_() for weight in clip_vision.model.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01)
    with trange(STEPS, desc="vision model") as bar:
        for _ in bar:
            some = images[torch.randint(len(images), (BATCH,), generator=generator)]
            optimiser.zero_grad()
            with allow_mutation_on_saved_tensors():  # the host's CLIP adds in place
                one, other = (embed(clip_vision, turned_and_shifted(some, generator))
                              for _ in range(2))
                loss = F.cross_entropy(one @ other.T / TEMPERATURE, torch.arange(BATCH))
                loss.backward()
            optimiser.step()
            bar.set_postfix(loss=f"{loss.item():.2f}")
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {name: weight.detach() for name, weight in clip_vision.model.state_dict().items()}
    save_file(state, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)


@functools.cache
def loaded(file: Path):
    """The trained CLIP_VISION."""
    clip_vision = empty()
    clip_vision.model.load_state_dict(load_file(file))
    clip_vision.model.requires_grad_(False)
    return clip_vision


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def register(file: Path) -> None:
    """Makes the node that loads it known to the host of this process."""
    import nodes

    class BenchmarkVision:
        """weights: their digest, so that the host's cache does not give others."""

        @classmethod
        def INPUT_TYPES(cls) -> dict:
            return {"required": {"weights": ("STRING", {"default": ""})}}

        RETURN_TYPES = ("CLIP_VISION",)
        FUNCTION = "load"
        CATEGORY = "benchmark"

        def load(self, weights: str):
            return (loaded(file),)

    nodes.NODE_CLASS_MAPPINGS[NODE] = BenchmarkVision
