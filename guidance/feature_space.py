"""Feature space `features`: what a block of the model itself has computed, averaged over a grid.

An embedding is a direction: the activation's channels mixed into at most CHANNELS by fixed random
signs (Achlioptas, "Database-friendly random projections", 2003), averaged over a grid and divided
by its root mean square. So one radius means the same for every model, block and resolution.

Activations change with the noise level far more than from image to image, so samples are compared
at one level: what is remembered of an image is its embedding at REFERENCE_LOG_SNR.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .latent_space import pooling_matrix, spreading_matrix

GRID = 4
CHANNELS = 64
REFERENCE_LOG_SNR = -1.5  # sigma 2.1; of 20 steps about the ninth
# Length of every embedding. With it the radius that suits `latent` suits here: .22 is 0.73 of the
# activation, and on `digits` the nearest of 48 images of a class is 0.48 away.
LENGTH = 0.3


class FeatureSpace:
    """Embeds activations `[batch, width, (frames,) height, width]` as `[batch, dim]`.

    Video frames are averaged. Lives for one run: it keeps the matrices of the sizes it met.
    """

    def __init__(self, model: str, block: str, width: int):
        self.width = width
        self.channels = min(width, CHANNELS)
        self.dim = self.channels * GRID * GRID
        self.id = f"features-{GRID}x{GRID}/1/{model}/{block}/{width}"
        self._matrices: dict[tuple, tuple[Tensor, Tensor]] = {}
        self._signs: dict[torch.device, Tensor] = {}

    def embed(self, activation: Tensor) -> Tensor:
        """`[batch, dim]`, float32."""
        return self.direction(self.pooled(activation))

    def direction(self, pooled: Tensor) -> Tensor:
        """The embedding `[batch, dim]` of a pooled activation."""
        mixed = pooled
        if self.width > CHANNELS:
            mixed = torch.einsum("mc,bchw->bmhw", self._mixing(pooled.device), pooled)
        return LENGTH * torch.nn.functional.normalize(mixed.flatten(1), dim=1)

    def push(self, activation: Tensor, pooled: Tensor, embedding_push: Tensor) -> Tensor:
        """A displacement of the embedding `[batch, dim]` -> one of the activation, of its shape.

        It points where the embedding's displacement does, and is to the pooled activation, which
        is given as well, what that is to the embedding.
        """
        grid = embedding_push.view(-1, self.channels, GRID, GRID)
        if self.width > CHANNELS:
            grid = torch.einsum("mc,bmhw->bchw", self._mixing(grid.device), grid)
        share = torch.linalg.vector_norm(embedding_push, dim=1) / LENGTH
        length = torch.linalg.vector_norm(grid.flatten(1), dim=1)
        whole = torch.linalg.vector_norm(pooled.flatten(1), dim=1)
        scale = share * whole / length.clamp(min=torch.finfo(length.dtype).tiny)
        (_, rows), (_, columns) = (self._matrices_for(n, grid.device)
                                   for n in activation.shape[-2:])
        frame = rows @ (scale.view(-1, 1, 1, 1) * grid) @ columns.T
        between = [1] * (activation.ndim - 4)
        return frame.view(*frame.shape[:2], *between, *frame.shape[-2:]).expand_as(activation)

    def pooled(self, activation: Tensor) -> Tensor:
        """`[batch, width, GRID, GRID]`, float32."""
        frame = activation.float()
        if frame.ndim > 4:
            frame = frame.flatten(2, -3).mean(2)
        (rows, _), (columns, _) = (self._matrices_for(n, frame.device) for n in frame.shape[-2:])
        return rows @ frame @ columns.T

    def _matrices_for(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if (size, device) not in self._matrices:
            self._matrices[size, device] = (pooling_matrix(size, GRID).to(device),
                                            spreading_matrix(GRID, size).to(device))
        return self._matrices[size, device]

    def _mixing(self, device: torch.device) -> Tensor:
        """`[channels, width]`, the same on every machine."""
        if device not in self._signs:
            generator = torch.Generator().manual_seed(self.width)
            signs = 2 * torch.randint(0, 2, (self.channels, self.width), generator=generator) - 1
            self._signs[device] = (signs / self.channels ** 0.5).to(device)
        return self._signs[device]
