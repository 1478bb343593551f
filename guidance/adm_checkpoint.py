"""Reads what an ADM checkpoint is from its tensors, or from the header of our own files.

Layouts: openai/guided-diffusion (2105.05233), openai/improved-diffusion (2102.09672), and ours,
which is theirs with a header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .adm import AdmConfig, AdmUNet

ADM_HEADER = "uncommon.adm"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A discrete DDPM noise schedule.

    kind: "linear" (Ho et al. 2020: betas from `start` to `end`, both for 1000 steps and rescaled
    to `steps`), "scaled_linear" (linear in the square root of beta, Stable Diffusion) or "cosine"
    (2102.09672, eq. 17; `start` and `end` unused).
    embedding_steps: the range that the network's timestep embedding was trained on, 1000 where
    the training rescaled its timesteps (improved-diffusion), else `steps`.
    """

    kind: str = "linear"
    start: float = 1e-4
    end: float = 2e-2
    steps: int = 1000
    embedding_steps: int | None = None

    @property
    def timestep_scale(self) -> float:
        """A step of the schedule times this is what the network's embedding expects."""
        return (self.embedding_steps or self.steps) / self.steps

    def betas(self) -> Tensor:
        """`[steps]`, float64."""
        if self.kind == "linear":
            scale = 1000 / self.steps
            return torch.linspace(scale * self.start, scale * self.end, self.steps,
                                  dtype=torch.float64)
        if self.kind == "scaled_linear":
            return torch.linspace(self.start ** 0.5, self.end ** 0.5, self.steps,
                                  dtype=torch.float64) ** 2
        if self.kind == "cosine":
            t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
            alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # eq. 17
            return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
        raise ValueError(f"The noise schedule is '{self.kind}'; known are linear, scaled_linear "
                         "and cosine. Choose one of these.")

    def alphas_cumprod(self) -> Tensor:
        """`[steps]`, float64."""
        return torch.cumprod(1 - self.betas(), dim=0)

    def sigmas(self) -> Tensor:
        """`[steps]`, float64, rising; noise over signal: x_t = x0 + sigma * n."""
        alphas_cumprod = self.alphas_cumprod()
        return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


@dataclass(frozen=True, kw_only=True)
class AdmChoices:
    """What weights cannot tell; None leaves it to the header or to the table of PUBLISHED."""

    num_heads: int | None = None
    num_head_channels: int | None = None
    new_attention_order: bool | None = None
    schedule: str | None = None
    steps: int | None = None
    rescaled_timesteps: bool | None = None

    def apply(self, config: AdmConfig, schedule: Schedule) -> tuple[AdmConfig, Schedule]:
        """Both with every choice that is made in place of what they said."""
        if self.num_heads is not None or self.num_head_channels is not None:
            config = replace(config, num_heads=self.num_heads or 1,
                             num_head_channels=self.num_head_channels)
        if self.new_attention_order is not None:
            config = replace(config, new_attention_order=self.new_attention_order)
        schedule = replace(schedule, kind=self.schedule or schedule.kind,
                           steps=self.steps or schedule.steps)
        if self.rescaled_timesteps is not None:
            schedule = replace(schedule, embedding_steps=1000 if self.rescaled_timesteps else None)
        return config, schedule

    def missing(self) -> list[str]:
        """The choices without which an unknown checkpoint cannot be read."""
        heads = self.num_heads or self.num_head_channels
        asked = {"attention heads": heads, "attention order": self.new_attention_order,
                 "noise schedule": self.schedule}
        return [name for name, value in asked.items() if value is None]


def _unet(image_size: int, width: int, mult: tuple[float, ...], blocks: int,
          attention_levels: tuple[int, ...], **options) -> AdmConfig:
    return AdmConfig(image_size=image_size, model_channels=width, channel_mult=mult,
                     num_res_blocks=blocks, attention_levels=attention_levels, **options)


_GUIDED = {"num_head_channels": 64}
_IMPROVED = {"num_heads": 4, "resblock_updown": False}

# The flags of the READMEs of both repositories, and of the papers named. Class count and learned
# variance are not compared, so class-conditional, unconditional and fine-tuned siblings match.
PUBLISHED: tuple[tuple[AdmConfig, Schedule], ...] = (
    # guided-diffusion: 64x64_diffusion; CelebA 64 of Um et al. (2301.12334)
    (_unet(64, 192, (1, 2, 3, 4), 3, (1, 2, 3), new_attention_order=True, **_GUIDED),
     Schedule(kind="cosine")),
    # 128x128_diffusion
    (_unet(128, 256, (1, 1, 2, 3, 4), 2, (2, 3, 4), num_heads=4), Schedule()),
    # 256x256_diffusion, 256x256_diffusion_uncond, lsun_bedroom, lsun_cat, lsun_horse
    (_unet(256, 256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), **_GUIDED), Schedule()),
    # 512x512_diffusion
    (_unet(512, 256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6), **_GUIDED), Schedule()),
    # ffhq_10m (2209.14687) and the models of P2 weighting (2204.00227)
    (_unet(256, 128, (1, 1, 2, 2, 4, 4), 1, (4,), **_GUIDED), Schedule()),
    # improved-diffusion: cifar10_uncond_50M_500K, cifar10_uncond_vlb_50M_500K
    (_unet(32, 128, (1, 2, 2, 2), 3, (1, 2), **_IMPROVED),
     Schedule(kind="cosine", steps=4000, embedding_steps=1000)),
    # imagenet64_uncond_100M_1500K, imagenet64_uncond_vlb_100M_1500K
    (_unet(64, 128, (1, 2, 3, 4), 3, (2, 3), **_IMPROVED),
     Schedule(kind="cosine", steps=4000, embedding_steps=1000)),
    # imagenet64_cond_270M_250K
    (_unet(64, 192, (1, 2, 3, 4), 3, (2, 3), **_IMPROVED), Schedule(kind="cosine", steps=4000)),
    # lsun_uncond_100M_1200K_bs128, lsun_uncond_100M_2400K_bs64
    (_unet(256, 128, (1, 1, 2, 2, 4, 4), 2, (4,), resblock_updown=False, scale_shift_norm=False),
     Schedule()),
)


def without_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the `module.` that distributed training puts before their names."""
    return {str(name).removeprefix("module."): value for name, value in state_dict.items()}


def read_adm(state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None,
             choices: AdmChoices | None = None) -> tuple[AdmConfig, Schedule]:
    """What network and schedule a checkpoint (names `without_prefix`) holds.

    Taken from our header if there is one, else detected from the tensors; what these cannot tell
    comes from the published checkpoint of the same shape; `choices` override both. A checkpoint
    that is no ADM U-Net for RGB images raises ValueError, and so does one of unknown shape as long
    as `choices` leaves open what must be known.
    """
    choices = choices or AdmChoices()
    if metadata and ADM_HEADER in metadata:
        config, schedule = _from_header(metadata[ADM_HEADER])
    else:
        config, schedule = _complete(_detect(state_dict), choices)
    config, schedule = choices.apply(config, schedule)
    _check_fit(config, state_dict)
    return config, schedule


def _from_header(header: str) -> tuple[AdmConfig, Schedule]:
    try:
        parts = json.loads(header)
        lists = {k: tuple(v) for k, v in parts["config"].items() if isinstance(v, list)}
        return AdmConfig(**parts["config"] | lists), Schedule(**parts["schedule"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The header '{ADM_HEADER}' of this file cannot be read ({error}). If a "
                         "newer version of this pack wrote the file, update the pack.") from error


def _complete(detected: AdmConfig, choices: AdmChoices) -> tuple[AdmConfig, Schedule]:
    """Adds what the tensors did not tell, from PUBLISHED or from its repository's defaults."""
    for known, schedule in PUBLISHED:
        blank = replace(known, image_size=None, num_heads=1, num_head_channels=None,
                        new_attention_order=False, out_channels=detected.out_channels,
                        num_classes=detected.num_classes)
        if blank == detected:
            return replace(known, out_channels=detected.out_channels,
                           num_classes=detected.num_classes), schedule
    if missing := choices.missing():
        raise ValueError(
            f"This is an ADM U-Net of a shape that none of the published checkpoints has (width "
            f"{detected.model_channels}, channel_mult {detected.channel_mult}, "
            f"{detected.num_res_blocks} residual blocks a level), and its weights do not tell how "
            f"it was trained. Set these inputs, as the training's flags say: {', '.join(missing)}.")
    # improved-diffusion (convolutions resample) rescales its timesteps unless told otherwise.
    return detected, Schedule(embedding_steps=None if detected.resblock_updown else 1000)


def _detect(state_dict: Mapping[str, Tensor]) -> AdmConfig:
    """The configuration as far as tensors tell it; the rest at the defaults of AdmConfig."""

    def shape(name: str) -> torch.Size:
        if name not in state_dict:
            raise _unfit(state_dict, f"it has no tensor '{name}'")
        return state_dict[name].shape

    def count(blocks: str) -> int:
        indexes = [int(name.split(".")[1]) for name in state_dict if name.startswith(blocks + ".")]
        return max(indexes, default=-1) + 1

    width = shape("time_embed.0.weight")[1]
    in_channels = shape("input_blocks.0.0.weight")[1]
    blocks = count("output_blocks")
    if not blocks:
        raise ValueError("This is an ADM classifier (an encoder without decoder), but a diffusion "
                         "model is expected here. Choose the checkpoint of the diffusion model.")
    if in_channels == 6:
        raise ValueError("This is an ADM super-resolution model: it takes 6 channels, the noisy "
                         "image and a small one to enlarge. Choose a model that takes 3 channels.")
    shape("middle_block.1.qkv.weight")

    def resampling(layer: str) -> int:
        return sum(f"output_blocks.{i}.{place}.{layer}.weight" in state_dict
                   for i in range(blocks) for place in (1, 2))

    conv_ups, residual_ups = resampling("conv"), resampling("in_layers.0")
    levels = 1 + conv_ups + residual_ups
    num_res_blocks = blocks // levels - 1
    firsts = [1 + level * (num_res_blocks + 1) for level in range(levels)]
    widths = [shape(f"input_blocks.{i}.0.out_layers.3.weight")[0] for i in firsts]
    label_table = state_dict.get("label_emb.weight")
    return AdmConfig(
        in_channels=in_channels, out_channels=shape("out.2.weight")[0], model_channels=width,
        channel_mult=tuple(w // width if w % width == 0 else w / width for w in widths),
        num_res_blocks=num_res_blocks,
        attention_levels=tuple(level for level, i in enumerate(firsts)
                               if f"input_blocks.{i}.1.qkv.weight" in state_dict),
        num_classes=None if label_table is None else len(label_table),
        scale_shift_norm=shape("input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0],
        resblock_updown=not conv_ups)


def _check_fit(config: AdmConfig, state_dict: Mapping[str, Tensor]) -> None:
    """ValueError unless names and shapes are just those of a network that predicts RGB noise."""
    if config.in_channels != 3 or config.out_channels not in (3, 6):
        raise ValueError(f"This model maps {config.in_channels} channels to {config.out_channels}; "
                         "3 to 3, or to 6 with a learned variance, is expected. Choose a model "
                         "that was trained on RGB images.")
    with torch.device("meta"):
        expected = AdmUNet(config).state_dict()
    for name in sorted(expected.keys() | state_dict.keys()):
        if name not in expected:
            raise _unfit(state_dict, f"it has an additional tensor '{name}'")
        if name not in state_dict:
            raise _unfit(state_dict, f"it has no tensor '{name}'")
        found, wanted = tuple(state_dict[name].shape), tuple(expected[name].shape)
        if found != wanted:
            raise _unfit(state_dict, f"tensor '{name}' is {found} where {wanted} fits")


def _unfit(state_dict: Mapping[str, Tensor], reason: str) -> ValueError:
    examples = ", ".join(f"'{name}'" for name in list(state_dict)[:3])
    return ValueError(
        f"This file is not the U-Net of an ADM model: {reason} (found {len(state_dict)} entries, "
        f"such as {examples}). Choose a checkpoint of openai/guided-diffusion, of "
        "openai/improved-diffusion, or of this pack; Stable Diffusion and other models have "
        "loaders of their own in ComfyUI.")
