"""The noise-conditioned classifier of ADM: the encoder half of its U-Net, then attention pooling.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2105.05233), appendix H;
`EncoderUNetModel` of openai/guided-diffusion, in its tensor layout. The pooling is CLIP's
(2103.00020).

One deviation: the position table of the pooling is stretched to inputs of another size than the
training's; at that size nothing changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adm import AdmConfig, AdmTrunk, AttentionBlock, ResBlock

SIZES = ("small", "base", "paper")

# Widths of the levels by their number, as `create_classifier` has them for images of 64 to 512
# pixels, and `8: (1,)` of Um et al. (2301.12334, code); those for 16 and 32 continue the row.
MULTIPLIERS = {1: (1,), 2: (1, 2), 3: (1, 2, 3), 4: (1, 2, 3, 4), 5: (1, 1, 2, 3, 4),
               6: (1, 1, 2, 2, 4, 4), 7: (0.5, 1, 1, 2, 2, 4, 4)}
SMALL_MULTIPLIERS = {1: (2,), 2: (1, 2), 3: (1, 2, 2), 4: (1, 1, 2, 2), 5: (1, 1, 2, 2, 2),
                     6: (1, 1, 2, 2, 2, 2), 7: (1, 1, 1, 2, 2, 2, 2)}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(AdmConfig):
    """What fixes an ADM encoder; `out_channels` are its classes."""

    pool_size: tuple[int, int]  # height and width of what is pooled

    @property
    def classes(self) -> int:
        return self.out_channels


def encoder_config(size: str, channels: int, height: int, width: int, classes: int
                   ) -> EncoderConfig:
    """The encoder of a size of SIZES for latents `[channels, height, width]`.

    small: about half a million parameters, for a CPU. base: a quarter of the paper's width.
    paper: width, depth and levels of guided-diffusion's classifiers; what their presets lack
    follows their rule (pooling at about 8 x 8, attention at 32 x 32 and below).
    """
    if size not in SIZES:
        raise ValueError(f"The size is '{size}'; expected one of {', '.join(SIZES)}.")
    side = min(height, width)
    if side < 4:
        raise ValueError(f"The latents are {width} x {height}; a classifier needs at least 4 x 4. "
                         "Score larger images.")
    if size == "small":
        levels = min(7, 1 + int(math.log2(side / 4)))
        options: dict[str, Any] = {
            "model_channels": 32, "channel_mult": SMALL_MULTIPLIERS[levels], "num_res_blocks": 1,
            "num_head_channels": 32, "norm_groups": 8, "attention_levels": ()}
    else:
        levels = min(7, max(1, 1 + round(math.log2(side / 8))))
        options = {"model_channels": 128 if size == "paper" else 64,
                   "channel_mult": MULTIPLIERS[levels],
                   # 64x64_classifier.pt has 4, the larger ones 2.
                   "num_res_blocks": 4 if size == "paper" and levels <= 4 else 2,
                   "num_head_channels": 64 if size == "paper" else 32,
                   "norm_groups": 32 if size == "paper" else 16,
                   "attention_levels": tuple(i for i in range(levels) if side >> i <= 32)}
    shrink = 2 ** (levels - 1)
    return EncoderConfig(in_channels=channels, out_channels=classes,
                         pool_size=(height // shrink, width // shrink), **options)


def head_config(size: str, channels: int, height: int, width: int, classes: int) -> EncoderConfig:
    """The encoder that reads a frozen network's features `[channels, height, width]`.

    paper: the head of Um et al. for LSUN: one level, width 128, two residual blocks.
    """
    if size not in SIZES:
        raise ValueError(f"The size is '{size}'; expected one of {', '.join(SIZES)}.")
    width_, blocks = {"small": (32, 1), "base": (64, 2), "paper": (128, 2)}[size]
    return EncoderConfig(
        in_channels=channels, out_channels=classes, pool_size=(height, width),
        model_channels=width_, channel_mult=(1,), num_res_blocks=blocks, attention_levels=(0,),
        num_head_channels=64 if size == "paper" else 32,
        norm_groups=32 if size == "paper" else 8, resblock_updown=False)


class AttentionPool(nn.Module):
    """Attention over all positions, read at their mean; `[batch, channels, height, width]` ->
    `[batch, classes]`."""

    def __init__(self, config: EncoderConfig, channels: int):
        super().__init__()
        self.size = config.pool_size
        self.heads = config.heads(channels)
        positions = self.size[0] * self.size[1] + 1
        self.positional_embedding = nn.Parameter(
            torch.randn(channels, positions) / channels ** 0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, config.classes, 1)

    def _positions(self, size: torch.Size) -> Tensor:
        table = self.positional_embedding
        if tuple(size) == self.size:
            return table
        grid = table[:, 1:].unflatten(1, self.size)[None]
        stretched = F.interpolate(grid, tuple(size), mode="bilinear", antialias=True)
        return torch.cat([table[:, :1], stretched[0].flatten(1)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        positions = self._positions(x.shape[2:])
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1) + positions.to(x.dtype)
        # [batch, 3, heads, channels per head, positions]: the order that ADM calls new
        q, k, v = self.qkv_proj(x).view(batch, 3, self.heads, channels // self.heads, -1).unbind(1)
        mean = q[..., :1].transpose(-1, -2)  # only the mean's answer is read
        h = F.scaled_dot_product_attention(mean, k.transpose(-1, -2), v.transpose(-1, -2))
        return self.c_proj(h.transpose(-1, -2).reshape(batch, channels, 1))[..., 0]


class AdmEncoder(AdmTrunk):
    """ADM's classifier."""

    config: EncoderConfig

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        channels = config.widths[-1]
        self.out = nn.Sequential(nn.GroupNorm(config.norm_groups, channels), nn.SiLU(),
                                 AttentionPool(config, channels))

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Logits `[batch, classes]`; x: `[batch, in_channels, height, width]`, variance
        preserving; timesteps: `[batch]`."""
        return self.out(self.features(x, timesteps))

    def start_as_published(self) -> None:
        """Zeroes what guided-diffusion starts at zero: the end of each residual branch."""
        last: Any
        for module in self.modules():
            last = (module.out_layers[-1] if isinstance(module, ResBlock)
                    else module.proj_out if isinstance(module, AttentionBlock) else None)
            if last is not None:
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
