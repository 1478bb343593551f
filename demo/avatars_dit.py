"""A small DiT that draws the faces of demo/avatars.py by class: the host's own Flux class.

Classes 0 to 7 are the combinations of the three attributes, see `class_of` of demo/avatars.py.
Import this module when the host is there, after an `InProcessHost` was made, and give it the nodes:

    from demo import avatars_dit
    avatars_dit.register()

Then graphs may use `AvatarsDitLoader` (no inputs) -> MODEL, and `AvatarsDitClass` (class_number,
-1 = no class, for the negative) -> CONDITIONING. Latents are the host's Empty Latent Image with
width and height 24, or zeros `[batch, 3, 24, 24]`; the VAE `pixel_space` decodes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.ldm.flux.layers
import comfy.ldm.flux.model
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from demo.avatars import ATTRIBUTES

DIT_FILE = Path(__file__).parent / "models" / "avatars_dit.safetensors"
DIT_HEADER = "uncommon.avatars_dit"
CLASSES = 2 ** len(ATTRIBUTES)
NO_CLASS = -1
WIDTH = 64  # of a class's row of the table, which is both its token and its pooled vector
NET, TABLE = "net.", "classes.weight"  # in the file: what the weights of the net begin with, rows

FLUX = {"image_model": "flux", "in_channels": 3, "out_channels": 3, "vec_in_dim": WIDTH,
        "context_in_dim": WIDTH, "hidden_size": 128, "mlp_ratio": 3.0, "num_heads": 4, "depth": 2,
        "depth_single_blocks": 4, "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 3,
        "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": []}


class ClassDit(nn.Module):
    """The net and its table of classes, as they are trained and kept in the file."""

    def __init__(self, config: Mapping[str, Any] = FLUX):
        super().__init__()
        self.net = comfy.ldm.flux.model.Flux(**config, dtype=torch.float32, operations=LAYERS)
        self.classes = nn.Embedding(CLASSES + 1, config["vec_in_dim"])
        net = self.net
        for stem in (net.img_in, net.txt_in):  # what the blocks add up stays in full precision
            stem.register_forward_hook(lambda _, inputs, output: output.float())
        # The positions are the same for every image of a batch.
        net.pe_embedder.register_forward_hook(lambda _, inputs, output: output[:1])
        modulations = [m.lin for m in net.modules()
                       if isinstance(m, comfy.ldm.flux.layers.Modulation)]
        for linear in (*modulations, net.final_layer.adaLN_modulation[1], net.final_layer.linear):
            nn.init.zeros_(linear.weight)  # each block begins as the identity (2212.09748)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Velocity n - x0 at x = (1 - t) * x0 + t * n, `[batch, 3, 24, 24]`; label: `[batch]`."""
        row = self.classes(label % (CLASSES + 1))
        return self.net(x, t, row[:, None], row)


class _LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clone())  # the host's blocks then change x in place


class _RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


LAYERS = SimpleNamespace(Linear=nn.Linear, LayerNorm=_LayerNorm, RMSNorm=_RMSNorm)


@contextmanager
def training() -> Iterator[None]:
    """Lets gradients pass through the host's positions, by attention that is quick to train with
    few tokens."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        comfy.model_management.in_training = before


class AvatarsDitConfig(comfy.supported_models.Flux):
    """What the host must know of the model."""

    latent_format = comfy.latent_formats.ChromaRadiance  # RGB images in [-1, 1]

    def __init__(self, config: Mapping[str, Any], schedule: Mapping[str, float]):
        super().__init__(dict(config))
        self.sampling_settings.update(schedule)
        self.set_inference_dtype(torch.float32, None)


@dataclass(frozen=True)
class AvatarsDitFile:
    """config: of the Flux class; schedule: of the sampling; table: `[9, 64]`, the rows of the
    classes and then of no class."""

    config: dict
    schedule: dict
    table: Tensor

    @classmethod
    def read(cls, path: Path = DIT_FILE) -> AvatarsDitFile:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()[DIT_HEADER])
            return cls(header["config"], header["schedule"], file.get_tensor(TABLE).float())


def load(path: Path = DIT_FILE) -> comfy.model_patcher.ModelPatcher:
    """The MODEL, as the host's loaders give it."""
    file = AvatarsDitFile.read(path)
    base = AvatarsDitConfig(file.config, file.schedule).get_model(
        {}, device=torch.device("cpu"))
    base.load_model_weights(comfy.utils.load_torch_file(str(path)), NET)
    return comfy.model_patcher.CoreModelPatcher(
        base, load_device=comfy.model_management.get_torch_device(),
        offload_device=torch.device("cpu"))


def conditioning(class_number: int, path: Path = DIT_FILE) -> list:
    """A CONDITIONING, as text encoders give it: one token, and the same as the pooled vector."""
    row = AvatarsDitFile.read(path).table[class_number]  # -1: the last
    return [[row[None, None], {"pooled_output": row[None]}]]


class AvatarsDitLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="AvatarsDitLoader", display_name="Load Avatars DiT",
                         category="demo", inputs=[], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load())


class AvatarsDitClass(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="AvatarsDitClass", display_name="Avatars Class", category="demo",
                         inputs=[io.Int.Input("class_number", default=NO_CLASS, min=NO_CLASS,
                                              max=CLASSES - 1)],
                         outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, class_number: int) -> io.NodeOutput:
        return io.NodeOutput(conditioning(class_number))


def register() -> None:
    """Gives the host of this process the nodes AvatarsDitLoader and AvatarsDitClass."""
    import nodes

    for node in (AvatarsDitLoader, AvatarsDitClass):
        nodes.NODE_CLASS_MAPPINGS[node.GET_SCHEMA().node_id] = node
