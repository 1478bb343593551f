"""Starting noises of a batch that are as unlike one another as they can be.

After Jia et al., "Antithetic Noise in Diffusion Models" (2506.06185): images made from the noises z
and -z differ more than images of independent noises, whatever the model, and each of them is as
good as any, since -z is as likely as z. For more than two noises this is a simplex around their
mean: each by itself is standard normal still, and any two are correlated by -1 / (n - 1), less than
which n vectors cannot be all at once. It costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALIKE = 0.5  # correlation from which on two noises were not drawn independently


def antithetic(noise: Tensor, amount: float) -> Tensor:
    """`[batch, ...]` with batch >= 2, independent and standard normal -> of the same shape, each
    standard normal, any two correlated by -amount / (batch - 1); amount: 0 to 1."""
    count = len(noise)
    shared = amount / (count - 1 + amount)  # of the variance, which goes with part of the mean
    part = 1 - (1 - count * shared) ** 0.5
    z = noise.float()
    return ((z - part * z.mean(dim=0)) / (1 - shared) ** 0.5).to(noise.dtype)


def independent(noise: Tensor) -> bool:
    """Whether no two of `[batch, ...]` are alike, as where a batch shares one seed."""
    unit = torch.nn.functional.normalize(noise.flatten(1).float(), dim=1)
    return bool(((unit @ unit.T).fill_diagonal_(0) < ALIKE).all())
