"""Feature space `latent`: x0-hat averaged over a fixed grid; free, and made for any model.

Every distance in this space is the root mean square difference of the pooled latents, so one
radius means the same for every resolution and channel count.
"""

from __future__ import annotations

import torch
from torch import Tensor

GRID = 8


def pooling_matrix(size: int, bins: int) -> Tensor:
    """`[bins, size]`: row i averages the cells of bin i (bins overlap where size < bins)."""
    matrix = torch.zeros(bins, size)
    for i in range(bins):
        first, last = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


class LatentSpace:
    """Embeds latents `[batch, channels, ..., height, width]` as `[batch, dim]`.

    Video frames are averaged. The map is linear, so its derivative is the same everywhere.
    """

    def __init__(self, latent_format: str, channels: int):
        self.channels = channels
        self.dim = channels * GRID * GRID
        self.id = f"latent-{GRID}x{GRID}/1/{latent_format}/{channels}"

    def _matrices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = (pooling_matrix(size, GRID).to(x) for size in x.shape[-2:])
        return rows, columns

    def embed(self, x0: Tensor) -> Tensor:
        """`[batch, channels, (frames,) height, width]` -> `[batch, dim]`."""
        frames = x0.float().flatten(2, -3).mean(2) if x0.ndim > 4 else x0.float()
        rows, columns = self._matrices(frames)
        pooled = rows @ frames @ columns.T  # [batch, channels, GRID, GRID]
        return pooled.flatten(1) / self.dim ** 0.5

    def pullback(self, gradient: Tensor, x0: Tensor) -> Tensor:
        """Transposed derivative of `embed`: gradient `[batch, dim]` -> the shape of x0."""
        rows, columns = self._matrices(gradient.new_empty(x0.shape[-2:]))
        pooled = gradient.view(-1, self.channels, GRID, GRID) / self.dim ** 0.5
        frame = rows.T @ pooled @ columns
        while frame.ndim < x0.ndim:
            frame = frame.unsqueeze(2)
        return frame.expand_as(x0) / (x0[0, 0].numel() // frame[0, 0].numel())
