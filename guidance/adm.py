"""The U-Net of ADM, in the tensor layout of its published checkpoints.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (2105.05233), and Nichol and
Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2102.09672). State dicts of
openai/guided-diffusion and openai/improved-diffusion load without renaming.

One deviation: label -1 means "no class" and adds nothing to the time embedding, so one network
serves both halves of classifier-free guidance without an additional embedding row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NO_CLASS = -1


@dataclass(frozen=True, kw_only=True)
class AdmConfig:
    """What fixes an ADM U-Net. `attention_levels` counts from 0, the full resolution."""

    image_size: int | None = None  # of the training images, where known; the net takes any
    in_channels: int = 3
    out_channels: int = 3
    model_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    num_classes: int | None = None
    num_heads: int = 1
    num_head_channels: int | None = None  # channels per head; wins over num_heads
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    new_attention_order: bool = False
    dropout: float = 0.0
    norm_groups: int = 32  # fewer for narrow models: one channel a group would hide its amplitude

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [int(mult * self.model_channels) for mult in self.channel_mult]

    def heads(self, channels: int) -> int:
        """Attention heads for so many channels; ValueError where these do not divide."""
        heads = self.num_heads
        if self.num_head_channels is not None:
            heads = max(1, channels // self.num_head_channels)
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared out to {heads} attention heads "
                             "of one size. Choose another number of heads.")
        return heads


def class_embedding(label: int, dim: int = 64) -> Tensor:
    """A class as a prompt embedding, to be compared with others: `[dim]`, of norm 1, nearly at
    right angles to that of any other class; zeros for NO_CLASS."""
    if label == NO_CLASS:
        return torch.zeros(dim)
    return F.normalize(torch.randn(dim, generator=torch.Generator().manual_seed(label)), dim=0)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding, cosine half first: `[batch]` -> `[batch, dim]` (2102.09672, code)."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    args = timesteps[:, None].float() * torch.exp(-math.log(max_period) * exponent)
    embedding = torch.cat([args.cos(), args.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


class ResBlock(nn.Module):
    """Residual block that takes the time embedding; `resample` is None, "down" or "up"."""

    def __init__(self, config: AdmConfig, in_channels: int, out_channels: int,
                 resample: str | None, ops):
        super().__init__()
        self.scale_shift_norm = config.scale_shift_norm
        self.resample = resample
        embed_channels = 4 * config.model_channels
        self.in_layers = nn.Sequential(
            ops.GroupNorm(config.norm_groups, in_channels), nn.SiLU(),
            ops.Conv2d(in_channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(
            nn.SiLU(), ops.Linear(embed_channels, out_channels * (1 + config.scale_shift_norm)))
        self.out_layers = nn.Sequential(
            ops.GroupNorm(config.norm_groups, out_channels), nn.SiLU(), nn.Dropout(config.dropout),
            ops.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else ops.Conv2d(in_channels, out_channels, 1)

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest")

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = activation(norm(x))
        if self.resample:
            h, x = self._resample(h), self._resample(x)
        h = conv(h)
        shift = self.emb_layers(embedding).to(h.dtype)[:, :, None, None]
        if self.scale_shift_norm:
            scale, shift = shift.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + shift)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels.

    `qkv` holds [heads][q, k, v] channels in the legacy order and [q, k, v][heads] in the new one;
    the weights do not tell which.
    """

    def __init__(self, config: AdmConfig, channels: int, ops):
        super().__init__()
        self.heads = config.heads(channels)
        self.new_order = config.new_attention_order
        self.norm = ops.GroupNorm(config.norm_groups, channels)
        self.qkv = ops.Conv1d(channels, 3 * channels, 1)
        self.proj_out = ops.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *spatial = x.shape
        flat = x.reshape(batch, channels, -1)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = qkv.reshape(batch, 3, self.heads, channels // self.heads, -1).unbind(1)
        else:
            q, k, v = qkv.reshape(batch, self.heads, 3, channels // self.heads, -1).unbind(2)
        # [batch, heads, pixels, channels per head]
        h = F.scaled_dot_product_attention(*(t.transpose(-1, -2) for t in (q, k, v)))
        h = h.transpose(-1, -2).reshape(batch, channels, -1)
        return (flat + self.proj_out(h)).reshape(batch, channels, *spatial)


class Downsample(nn.Module):
    """Strided convolution (improved-diffusion)."""

    def __init__(self, channels: int, ops):
        super().__init__()
        self.op = ops.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a convolution (improved-diffusion)."""

    def __init__(self, channels: int, ops):
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Block(nn.ModuleList):
    """Layers applied in turn; residual blocks also take the time embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class AdmTrunk(nn.Module):
    """The half of an ADM U-Net from its input to its middle block, with the time embedding.

    `ops` supplies the weighted layers: `torch.nn`, or a host's drop-in replacement of it.
    """

    def __init__(self, config: AdmConfig, ops=nn):
        super().__init__()
        self.config = config
        width = config.model_channels
        embed = 4 * width
        self.time_embed = nn.Sequential(
            ops.Linear(width, embed), nn.SiLU(), ops.Linear(embed, embed))
        if config.num_classes is not None:
            self.label_emb = ops.Embedding(config.num_classes, embed)

        widths = config.widths
        channels = widths[0]
        self.input_blocks = nn.ModuleList(
            [Block([ops.Conv2d(config.in_channels, channels, 3, padding=1)])])
        self._skip_channels = [channels]  # of each input block, for a decoder
        for level, level_width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(
                    Block(self._residual(channels, level_width, level, ops)))
                channels = level_width
                self._skip_channels.append(channels)
            if level < len(widths) - 1:
                down = (ResBlock(config, channels, channels, "down", ops)
                        if config.resblock_updown else Downsample(channels, ops))
                self.input_blocks.append(Block([down]))
                self._skip_channels.append(channels)

        self.middle_block = Block([ResBlock(config, channels, channels, None, ops),
                                   AttentionBlock(config, channels, ops),
                                   ResBlock(config, channels, channels, None, ops)])

    def _residual(self, in_channels: int, out_channels: int, level: int, ops) -> list[nn.Module]:
        layers: list[nn.Module] = [ResBlock(self.config, in_channels, out_channels, None, ops)]
        if level in self.config.attention_levels:
            layers.append(AttentionBlock(self.config, out_channels, ops))
        return layers

    def embed(self, timesteps: Tensor, labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Timesteps and labels (int, NO_CLASS for none), each `[batch]`, -> `[batch, 4 width]`."""
        waves = timestep_embedding(timesteps, self.config.model_channels)
        embedding = self.time_embed(waves.to(dtype))
        if self.config.num_classes is not None and labels is not None:
            label = self.label_emb(labels.clamp(min=0)).to(embedding.dtype)
            embedding = embedding + label * (labels != NO_CLASS)[:, None]
        return embedding

    def features(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """What leaves the middle block: x `[batch, in_channels, height, width]` ->
        `[batch, widths[-1], height / 2^(levels - 1), width / 2^(levels - 1)]`, rounded down."""
        embedding = self.embed(timesteps, None, x.dtype)
        for block in self.input_blocks:
            x = block(x, embedding)
        return self.middle_block(x, embedding)


class AdmUNet(AdmTrunk):
    """ADM U-Net.

    `ops` supplies the weighted layers: `torch.nn`, or a host's drop-in replacement of it.
    """

    def __init__(self, config: AdmConfig, ops=nn):
        super().__init__(config, ops)
        widths, skips = config.widths, self._skip_channels
        channels = widths[-1]
        self.output_blocks = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            for i in range(config.num_res_blocks + 1):
                layers = self._residual(channels + skips.pop(), level_width, level, ops)
                channels = level_width
                if level > 0 and i == config.num_res_blocks:
                    layers.append(ResBlock(config, channels, channels, "up", ops)
                                  if config.resblock_updown else Upsample(channels, ops))
                self.output_blocks.append(Block(layers))

        self.out = nn.Sequential(ops.GroupNorm(config.norm_groups, channels), nn.SiLU(),
                                 ops.Conv2d(channels, config.out_channels, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor | None = None,
                after_middle: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        """Predicted noise for scaled noisy images: `[batch, out_channels, height, width]`.

        x: `[batch, in_channels, height, width]`; timesteps: `[batch]`, steps of the training
        schedule; after_middle: maps (middle-block activation, embedding) to a new activation.
        Where out_channels is twice in_channels, the second half is the learned variance.
        """
        embedding = self.embed(timesteps, labels, x.dtype)
        skips = []
        h = x
        for block in self.input_blocks:
            h = block(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        if after_middle is not None:
            h = after_middle(h, embedding)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h)
