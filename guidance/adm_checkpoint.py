"""Reads what an ADM checkpoint is from its tensors, or from the header of our own files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .adm import AdmConfig

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
