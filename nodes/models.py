"""Loads ADM diffusion models, and makes the conditioning that tells them a class."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io
from safetensors import safe_open

from ..guidance.adm import NO_CLASS, class_embedding
from ..guidance.adm_checkpoint import ADM_HEADER, AdmChoices
from ._adm_model import CLASS_KEY, load_adm

CATEGORY = "uncommon/models"
SHIPPED = Path(__file__).parent.parent / "demo" / "models"
FOLDERS = ("diffusion_models", "checkpoints")
EXTENSIONS = (".safetensors", ".pt", ".pth", ".ckpt")

# What the choices of the node mean; "auto" leaves them to the header or the published checkpoints.
HEADS = {
    "auto": {},
    "1 head": {"num_heads": 1},
    "2 heads": {"num_heads": 2},
    "4 heads": {"num_heads": 4},
    "8 heads": {"num_heads": 8},
    "32 channels per head": {"num_head_channels": 32},
    "64 channels per head": {"num_head_channels": 64},
    "128 channels per head": {"num_head_channels": 128},
}
ORDERS = {"auto": {}, "legacy": {"new_attention_order": False},
          "new": {"new_attention_order": True}}
SCHEDULES = {"auto": {}, "linear": {"schedule": "linear"}, "cosine": {"schedule": "cosine"}}
TIMESTEPS = {"auto": {}, "as they are": {"rescaled_timesteps": False},
             "rescaled to 1000": {"rescaled_timesteps": True}}


def shipped_models() -> dict[str, str]:
    """Name -> path of the ADM models in this pack, `digits` first."""
    paths = sorted(SHIPPED.glob("*.safetensors"), key=lambda p: (p.stem != "digits", p.stem))
    return {path.stem: str(path) for path in paths if _has_adm_header(path)}


def _has_adm_header(path: Path) -> bool:
    with safe_open(path, framework="pt") as file:
        return ADM_HEADER in (file.metadata() or {})


def model_names() -> list[str]:
    """The shipped models, then every file in the host's folders as "folder/file"."""
    return [*shipped_models(), *(f"{folder}/{name}" for folder in FOLDERS
                                 for name in folder_paths.get_filename_list(folder)
                                 if name.lower().endswith(EXTENSIONS))]


def model_path(name: str) -> str:
    """Path of one of `model_names`; FileNotFoundError if it is gone."""
    folder, _, file = name.partition("/")
    return shipped_models().get(name) or folder_paths.get_full_path_or_raise(folder, file)


class LoadADM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonLoadADM",
            display_name="Load ADM Diffusion Model",
            category=CATEGORY,
            description="Loads a pixel-space diffusion model of the ADM family: the small ones of "
                        "this pack (no set-up), and checkpoints of OpenAI's guided-diffusion and "
                        "improved-diffusion. Sample with Empty Latent Image (its width and height "
                        "are the image's) and decode with VAE `pixel_space`.",
            search_aliases=["ADM", "guided diffusion", "improved diffusion", "digits",
                            "unconditional", "pixel space", "load diffusion model"],
            inputs=[
                io.Combo.Input(
                    "model_name", options=model_names(), display_name="model",
                    tooltip="`digits`, `avatars` and `avatars_64` ship with this pack. Others are "
                            "found in the models folders diffusion_models and checkpoints."),
                io.Combo.Input(
                    "attention_heads", options=list(HEADS), default="auto", optional=True,
                    advanced=True, display_name="attention heads",
                    tooltip="How attention was split in training (flags num_heads, "
                            "num_head_channels). Weights cannot tell; `auto` knows the published "
                            "checkpoints and this pack's files."),
                io.Combo.Input(
                    "attention_order", options=list(ORDERS), default="auto", optional=True,
                    advanced=True, display_name="attention order",
                    tooltip="Flag use_new_attention_order of guided-diffusion; improved-diffusion "
                            "is always legacy. `auto` knows the published checkpoints."),
                io.Combo.Input(
                    "noise_schedule", options=list(SCHEDULES), default="auto", optional=True,
                    advanced=True, display_name="noise schedule",
                    tooltip="The schedule it was trained on (flag noise_schedule). `auto` knows "
                            "the published checkpoints."),
                io.Int.Input(
                    "noise_steps", default=0, min=0, max=100000, optional=True, advanced=True,
                    display_name="noise steps",
                    tooltip="Steps of that schedule (flag diffusion_steps). 0 = auto: those of the "
                            "published checkpoint, else 1000."),
                io.Combo.Input(
                    "timesteps", options=list(TIMESTEPS), default="auto", optional=True,
                    advanced=True,
                    tooltip="Whether training gave the model its steps as they are or rescaled to "
                            "1000 (flag rescale_timesteps). `auto` knows the published "
                            "checkpoints; for others it takes the repository's default."),
            ],
            outputs=[io.Model.Output(tooltip="The model, for KSampler and every other sampler.")],
        )

    @classmethod
    def execute(cls, model_name: str, attention_heads: str = "auto", attention_order: str = "auto",
                noise_schedule: str = "auto", noise_steps: int = 0,
                timesteps: str = "auto") -> io.NodeOutput:
        choices = AdmChoices(steps=noise_steps or None, **HEADS[attention_heads],
                             **ORDERS[attention_order], **SCHEDULES[noise_schedule],
                             **TIMESTEPS[timesteps])
        return io.NodeOutput(load_adm(model_path(model_name), choices))


class ClassConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonClassConditioning",
            display_name="Class Conditioning",
            category=CATEGORY,
            description="What a prompt is to other models: the number of a class, for models of "
                        "Load ADM Diffusion Model. Use class -1 (no class) as the negative, and "
                        "for models without classes.",
            search_aliases=["class label", "label conditioning", "empty conditioning",
                            "unconditional", "digits"],
            inputs=[io.Int.Input(
                "class_number", default=NO_CLASS, min=NO_CLASS, max=99999,
                display_name="class number",
                tooltip="0 to 9 for `digits`. -1: no class, the negative for `digits`. Models that "
                        "always saw a class in training (OpenAI's class-conditional ones) do "
                        "badly without: sample these at CFG 1.")],
            outputs=[io.Conditioning.Output(
                tooltip="Positive or negative for a sampler. Models without classes ignore it.")],
        )

    @classmethod
    def execute(cls, class_number: int) -> io.NodeOutput:
        embedding = class_embedding(class_number)
        options = {"pooled_output": embedding[None], CLASS_KEY: class_number}
        return io.NodeOutput([[embedding[None, None], options]])


NODES = [LoadADM, ClassConditioning]
