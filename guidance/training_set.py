"""What a minority classifier is trained on, how, and what is measured."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .adm_encoder import SIZES
from .time_conditioning import LOG_SNR_LIMIT


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """classes: 0 for as many as the images allow; size: of SIZES; validation_share: 0 to 0.5;
    flip: mirror half of the images."""

    classes: int = 0
    size: str = "small"
    iterations: int = 3000
    batch_size: int = 64
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    seed: int = 0
    validation_share: float = 0.05
    flip: bool = True

    def check(self) -> None:
        """ValueError for what cannot be."""
        if self.size not in SIZES:
            raise ValueError(f"The size is '{self.size}'; expected one of {', '.join(SIZES)}.")
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"The learning rate is {self.learning_rate}; expected a number "
                             "above 0, such as 0.0003.")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSet:
    """Scored latents, as the sampler sees them.

    latents: `[images, channels, height, width]`, or a function from indices `[k]` to
    `[k, channels, height, width]`; scores: `[images]`; log_snr: the model's, from its first
    timestep to its last, evenly (a list will do); identity: the same for the same images.
    """

    latents: Tensor | Callable[[Tensor], Tensor]
    scores: Tensor
    log_snr: Tensor
    space: str
    distance: str | None = None
    sigma: float | None = None
    identity: str = ""

    def __post_init__(self):
        table = torch.as_tensor(self.log_snr, dtype=torch.float32)
        if table.ndim != 1 or len(table) < 2 or table.isnan().any():
            raise ValueError("The noise levels of the model are not known with these scores. Run "
                             "Minority Score again.")
        limited = table.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        object.__setattr__(self, "log_snr", limited)

    def log_snr_at(self, percent: Tensor) -> Tensor:
        """Where in the model's timesteps, 0 to 1, `[batch]` -> log SNR `[batch]`."""
        place = percent * (len(self.log_snr) - 1)
        low = place.floor().long().clamp(max=len(self.log_snr) - 2)
        return torch.lerp(self.log_snr[low], self.log_snr[low + 1], place - low)

    def take(self, indices: Tensor) -> Tensor:
        """`[k, channels, height, width]`, float32."""
        taken = (self.latents[indices] if isinstance(self.latents, Tensor)
                 else self.latents(indices)).float()
        return taken.squeeze(2) if taken.ndim == 5 and taken.shape[2] == 1 else taken


@dataclass(frozen=True)
class Evaluation:
    """On validation images: mean cross-entropy; share of hits; mean distance of the guess from
    the class, as a share of all classes (a third by chance)."""

    iteration: int
    loss: float
    accuracy: float
    rank_error: float


@dataclass(frozen=True)
class Level:
    """Accuracy and rank error of validation images at one noise level."""

    log_snr: float
    accuracy: float
    rank_error: float


def generator_of(seed: int, number: int) -> torch.Generator:
    """Its own for each number, on the CPU, so that all devices draw the same."""
    mixed = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:7], "little"))
