"""The data that the demo models learn: scikit-learn's handwritten digits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DIGITS_SIZE = 16


def digits() -> tuple[Tensor, Tensor]:
    """All 1,797 digits as images `[1797, 3, 16, 16]` in [-1, 1], and labels `[1797]`.

    The 8 x 8 grey originals are enlarged bicubically to the smallest size that the host's Empty
    Latent Image makes, and repeated over three channels so that the host can decode and preview.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    grey = torch.from_numpy(data.images).float()[:, None] / 8 - 1
    large = F.interpolate(grey, size=(DIGITS_SIZE, DIGITS_SIZE), mode="bicubic")
    return large.clamp(-1, 1).repeat(1, 3, 1, 1), torch.from_numpy(data.target).long()


def split(count: int, held_out: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Disjoint training and held-out indices of `count` items, the same at every call."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    cut = round(count * held_out)
    return order[cut:], order[:cut]
