"""Feature space `latent`: x0-hat averaged over a fixed grid; free, and made for any model.

Every distance in this space is the root mean square difference of the pooled latents, so one
radius means the same for every resolution and channel count.
"""

from __future__ import annotations

from functools import cache

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


@cache
def kept_variance(size: int, bins: int) -> float:
    """What averaging leaves of the variance of noise."""
    return pooling_matrix(size, bins).square().sum(dim=1).mean().item()


def spreading_matrix(bins: int, size: int) -> Tensor:
    """`[size, bins]`: linear interpolation between the bins' centres, flat beyond the outermost."""
    position = ((torch.arange(size) + 0.5) * bins / size - 0.5).clamp(0, bins - 1)
    distance = (position[:, None] - torch.arange(bins)).abs()
    return (1 - distance).clamp(min=0)


class LatentSpace:
    """Embeds latents `[batch, channels, (frames,) height, width]` as `[batch, dim]`.

    Video frames are averaged. Lives for one run: it keeps the matrices of the sizes it met.
    """

    def __init__(self, latent_format: str, channels: int):
        self.channels = channels
        self.dim = channels * GRID * GRID
        self.id = f"latent-{GRID}x{GRID}/1/{latent_format}/{channels}"
        self._matrices: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def _matrices_for(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if (size, device) not in self._matrices:
            self._matrices[size, device] = (pooling_matrix(size, GRID).to(device),
                                            spreading_matrix(GRID, size).to(device))
        return self._matrices[size, device]

    def embed(self, x0: Tensor) -> Tensor:
        """x0 -> embedding `[batch, dim]`, float32."""
        frame = x0.float()
        if frame.ndim > 4:
            frame = frame.flatten(2, -3).mean(2)
        (rows, _), (columns, _) = (self._matrices_for(n, x0.device) for n in x0.shape[-2:])
        return (rows @ frame @ columns.T).flatten(1) / self.dim ** 0.5

    def noise_scale(self, x0: Tensor) -> float:
        """Root mean square of the embedding of noise of variance 1 and of the shape of x0."""
        rows, columns = (kept_variance(n, GRID) for n in x0.shape[-2:])
        frames = x0[0, 0].numel() // (x0.shape[-1] * x0.shape[-2])
        return (rows * columns / frames) ** 0.5

    def lift(self, push: Tensor, x0: Tensor) -> Tensor:
        """A displacement of the embedding `[batch, dim]` -> a smooth one of x0, of its shape."""
        grid = push.view(-1, self.channels, GRID, GRID) * self.dim ** 0.5
        (_, rows), (_, columns) = (self._matrices_for(n, x0.device) for n in x0.shape[-2:])
        frame = rows @ grid @ columns.T
        return frame.view(*frame.shape[:2], *[1] * (x0.ndim - 4), *frame.shape[-2:]).expand_as(x0)
