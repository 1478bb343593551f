"""SPARKE: a bank of samples, and steps in latent space that raise a conditional Renyi entropy.

Jalali et al., "SPARKE: Scalable Prompt-Aware Diversity and Novelty Guidance in Diffusion Models
via RKE Score", 2506.10173: the order-2 Renyi kernel entropy of n samples is 1 / |K / n|_F^2, with
K's entries the product of an image and a prompt kernel (conditional RKE, section 4); of the new
sample only the terms with itself change, so each step costs O(n). Gaussian image kernel of width
.8 on unit-length latents; the gradient is scaled to the length of the latent and a share of it
added, every tenth of fifty steps, that is, five times in a run. The bank holds clean latents, to
which the noisy one is compared, as in the authors' code.

Authors' setting: a share of .4 (README); on larger models others found .01 to .14 to be the useful
range (2603.28762), so .4 is at the upper end of the sweep. All prompts of a chain are equal, so
the prompt kernel is 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.bank import with_mates
from benchmarks.peers.hooks import Peer, as_if_moved

WIDTH = 0.8
TIMES = 5  # pushes in a run


def similarity(z: Tensor, bank: Tensor) -> Tensor:
    """What |K|_F^2 gains by z `[elements]`: mean_j k(z, z_j)^2, bank: `[samples, elements]`."""
    squared = (F.normalize(z, dim=0) - F.normalize(bank, dim=1)).square().sum(dim=1)
    return torch.exp(-squared / (2 * WIDTH ** 2)).square().mean()


def entropy_direction(z: Tensor, bank: Tensor) -> Tensor:
    """-grad of `similarity` at z, `[elements]`, at right angles to z."""
    unit = F.normalize(z, dim=0)
    away = unit - F.normalize(bank, dim=1)
    kernel = torch.exp(-away.square().sum(dim=1) / WIDTH ** 2)
    gradient = (2 / WIDTH ** 2 * kernel[:, None] * away).mean(dim=0)
    return (gradient - unit * (unit @ gradient)) / z.norm()


class Sparke(Peer):
    """strength: length of a push, as a share of that of the latent."""

    def denoised(self, guider, model, x: Tensor, step) -> Tensor:
        flat = x.flatten(1)
        earlier = flat[:0] if self.bank is None else self.bank.finished(x)
        if step.index % max(1, round(step.steps / TIMES)) or len(earlier) + len(x) < 2:
            return model(x)
        pushes = [self.strength * one.norm()
                  * F.normalize(entropy_direction(one, with_mates(earlier, flat, i)), dim=0)
                  for i, one in enumerate(flat)]
        moved = torch.stack(pushes).view_as(x)
        return as_if_moved(model(x + moved), moved, step)
