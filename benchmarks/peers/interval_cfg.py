"""CFG confined to an interval of noise levels; elsewhere the model follows the prompt alone.

Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution
Quality in Diffusion Models", 2404.07724. Authors' settings for EDM2 on ImageNet-512: sigma from
.28 to 2.9, and to 5.42 for the smaller model.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.hooks import Peer

LOWEST = 0.28


class IntervalCFG(Peer):
    """strength: the highest sigma with CFG (noise over signal)."""

    def denoised(self, guider, model, x: Tensor, step) -> Tensor:
        if LOWEST <= step.edm <= self.strength:
            return model(x)
        cfg, guider.cfg = guider.cfg, 1.0
        try:
            return model(x)
        finally:
            guider.cfg = cfg
