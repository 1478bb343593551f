"""Pushes away from remembered samples: the exact kernel, and SPELL's ball.

Both work in a feature space's units and share one contract with the novelty net, whose oracles
they are: a repulsion maps embeddings `[batch, dim]` to a Repelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

# Radii to a kernel's bandwidth. With 2, P adds up over many samples that are farther than the
# radius: it pushes where nothing is near, the more so the longer the history (docs/novelty.md).
SHARPNESS = 3.0
EDGE = SHARPNESS ** 2 / 2  # log of what a sample adds to the odds of P where it lies


class Repelled(NamedTuple):
    """push: `[batch, dim]`, the wanted displacement of the embedding; probability: `[batch]`,
    P(already generated | embedding)."""

    push: Tensor
    probability: Tensor


class Repulsion(Protocol):
    """What pushes embeddings away from the memory.

    through_model: whether the model's input is shifted (see novelty.py), or its x0-hat; radius:
    distance below which two samples count as the same.
    """

    through_model: ClassVar[bool]
    radius: float

    def __call__(self, embedding: Tensor) -> Repelled: ...


def squared_distance(a: Tensor, b: Tensor, norms: Tensor | None = None) -> Tensor:
    """`[n, dim]`, `[m, dim]` -> `[n, m]`; one matrix product, no `[n, m, dim]` in between.

    norms: `[m]`, the squared norms of b, where they are known."""
    norms = b.square().sum(1) if norms is None else norms
    return torch.addmm(a.square().sum(1)[:, None] + norms, a, b.T, alpha=-2).clamp(min=0)


def away(embedding: Tensor, centre: Tensor) -> Tensor:
    """Unit vectors from `centre` to `embedding`, both `[batch, dim]`; zero where they coincide."""
    difference = embedding - centre
    length = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
    return difference / length.clamp(min=torch.finfo(length.dtype).tiny)


def log_mixture_weight(centres: Tensor, log_weight: Tensor, bandwidth: float) -> Tensor:
    """log w_j - |e_j|^2 / 2h^2, of the shape of log_weight: what of a mixture no query changes."""
    return log_weight - centres.square().sum(dim=1) / (2 * bandwidth ** 2)


def gaussian_mixture(embedding: Tensor, centres: Tensor, log_weight: Tensor, bandwidth: float
                     ) -> tuple[Tensor, Tensor]:
    """f(e) = log sum_j w_j exp(-|e - e_j|^2 / 2h^2), and its mean-shift point.

    centres: `[n, dim]`; log_weight: `[n]` or `[batch, n]`, from log_mixture_weight; bandwidth: h.
    Returns f `[batch]` and m `[batch, dim]`, with which the gradient of f is (m - e) / h^2.
    """
    exponent = torch.addmm(log_weight, embedding, centres.T, alpha=bandwidth ** -2)
    share = exponent.softmax(dim=1)
    f = exponent.amax(dim=1) - share.amax(dim=1).log()  # logsumexp, in fewer operations
    f = torch.sub(f, embedding.square().sum(dim=1), alpha=1 / (2 * bandwidth ** 2))
    return f, share @ centres


@dataclass(frozen=True)
class Samples:
    """What is remembered, seen from its mean: far from the origin, squares would cost precision.

    centres: `[n, dim]` with n >= 1; log_weight: `[n]` or `[batch, n]`, by similarity of the prompts
    and, where a centre stands for several samples, by their number.
    """

    centres: Tensor
    log_weight: Tensor
    radius: float

    @cached_property
    def origin(self) -> Tensor:
        return self.centres.mean(dim=0)

    @cached_property
    def centred(self) -> Tensor:
        return self.centres - self.origin

    def distance(self, embedding: Tensor) -> Tensor:
        """`[batch, dim]` -> `[batch]`: in radii, to the nearest; what weighs less counts as farther
        away, by as much as makes P the same."""
        squared = squared_distance(embedding - self.origin, self.centred) / self.radius ** 2
        return (squared - self.log_weight / EDGE).amin(dim=1).clamp(min=0).sqrt()


@dataclass(frozen=True)
class ExactKernel(Samples):
    """Kernel memory: P is a half at `radius` from a lone sample, and .99 at the sample.

    Ascends log(1 - P), whose gradient is -P grad f: the push points away from the samples that
    are near, and is P radii long.
    """

    through_model: ClassVar[bool] = True

    @cached_property
    def _weight(self) -> Tensor:
        return log_mixture_weight(self.centred, self.log_weight, self.radius / SHARPNESS)

    def __call__(self, embedding: Tensor) -> Repelled:
        embedding = embedding - self.origin
        f, mean = gaussian_mixture(embedding, self.centred, self._weight, self.radius / SHARPNESS)
        probability = torch.sigmoid(f + EDGE)
        push = (probability * self.radius)[:, None] * away(embedding, mean)
        return Repelled(push, probability)


@dataclass(frozen=True)
class Ball(Samples):
    """SPELL (Kirchhof et al., 2410.06025, eq. 8): x0 leaves the balls around remembered samples.

    push = overcompensation * sum_j w_j relu(radius / |e - e_j| - 1) (e - e_j); the authors'
    overcompensation is 1.6. P is 1 inside a ball, else 0.
    """

    through_model: ClassVar[bool] = False
    overcompensation: float = 1.6

    @cached_property
    def _norms(self) -> Tensor:
        return self.centred.square().sum(dim=1)

    def __call__(self, embedding: Tensor) -> Repelled:
        embedding = embedding - self.origin
        distance = squared_distance(embedding, self.centred, self._norms).sqrt()
        distance = distance.clamp(min=1e-6 * self.radius)
        weight = self.log_weight.exp() * (self.radius / distance - 1).clamp(min=0)
        push = weight.sum(1, keepdim=True) * embedding - weight @ self.centred
        return Repelled(self.overcompensation * push, (weight > 0).any(1).to(embedding.dtype))


# The net is a kernel memory too: its centres are its units, or samples that it finds.
REPULSIONS: dict[str, type] = {"net": ExactKernel, "exact": ExactKernel, "ball": Ball}
