"""Temporal Score Rescaling, for batches: the host's own node, which chains use, takes only one.

2510.01184, eq. 6: the score is multiplied by r = (snr sigma^2 + 1) / (snr sigma^2 / k + 1), which
makes x0-hat (x - r (x - a x0-hat)) / a. The host's defaults: k .95, sigma 1. Below 1, k flattens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.hooks import Peer


class TSR(Peer):
    """strength: k; 1 changes nothing."""

    def denoised(self, guider, model, x: Tensor, step) -> Tensor:
        denoised = model(x)
        if self.strength == 1 or step.a == 0:
            return denoised
        snr = (step.a / step.s) ** 2
        return torch.lerp(x / step.a, denoised, (snr + 1) / (snr / self.strength + 1))
