"""ProCreate's kind of energy: away from the nearest reference.

Lu et al., "ProCreate, Don't Reproduce! Propulsive Energy Diffusion for Creative Generation",
2408.02226: E = gamma cos(F(x0-hat), F(nearest reference)), eps += sqrt(1 - abar) grad E, the
gradient's elements within gamma and its length within .3 to .5 gamma. Authors' gamma: 100 to 250.

Adaptations. F is DreamSim, a network of 100 million weights for photographs; here it is x0-hat
itself, pooled by 2, without its mean. The references are the earlier images and, in a batch, the
others of it. The gradient is taken at x0-hat, with r^2 in place of the network's Jacobian. Gamma
is a length in latents of 16,384 elements, so it goes with the square root of their number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.bank import with_mates
from benchmarks.peers.hooks import Peer

LENGTH = 0.4
ELEMENTS = 4 * 64 * 64


def features(images: Tensor) -> Tensor:
    """`[batch, channels, height, width]` -> `[batch, dim]`, of length 1."""
    pooled = F.avg_pool2d(images, 2).flatten(1)
    return F.normalize(pooled - pooled.mean(dim=1, keepdim=True), dim=1)


def energy_gradient(image: Tensor, references: Tensor) -> Tensor:
    """Gradient at an image `[channels, height, width]` of its cosine to the nearest reference."""
    with torch.inference_mode(False), torch.enable_grad():
        at = image.clone().requires_grad_()
        nearest = (features(references.clone()) @ features(at[None])[0]).max()
        return torch.autograd.grad(nearest, at)[0]


def limited(gradient: Tensor, gamma: float) -> Tensor:
    """gamma times the gradient, within the authors' limits."""
    gradient = (gamma * gradient).clamp(-gamma, gamma)
    most = LENGTH * gamma * (gradient.numel() / ELEMENTS) ** 0.5
    return gradient * (most / gradient.norm().clamp(min=most))


class ProCreate(Peer):
    """strength: the authors' gamma."""

    def denoised(self, guider, model, x: Tensor, step) -> Tensor:
        denoised = model(x)
        flat = denoised.flatten(1)
        earlier = flat[:0] if self.bank is None else self.bank.finished(x)
        if len(earlier) + len(x) < 2:
            return denoised
        shifts = [limited(energy_gradient(
            one, with_mates(earlier, flat, i).unflatten(1, one.shape)), self.strength)
            for i, one in enumerate(denoised)]
        return denoised - step.r2 * torch.stack(shifts)
