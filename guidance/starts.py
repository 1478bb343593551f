"""Tries starting noises until one leads to an image that is near nothing remembered.

Which image a noise leads to shows long before it is finished: distilled models settle it at their
first evaluation, others within a coarse run of a few Euler steps. Where a run goes on with another
noise, nothing is pushed, so the image stays one that the model would have drawn. It is a search
over noise as in Ma et al., "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising
Steps" (2501.09732), with novelty as its verifier. Taking the first that is novel, not the farthest
of all, costs less and keeps to what the model draws well: what lies farthest is often broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .early_push import EarlyPush
from .latent_space import LatentSpace
from .repulsion import ExactKernel, Samples

AUTO = 0  # in place of a number of candidates: what `affordable` allows, where one look is enough
PREVIEW_STEPS = 4
FAR = 1.2  # radii from all remembered samples, at which an image is new
# Between torch's seeds of one candidate and the next: the golden ratio's share of 2 ** 64.
SEEDS_APART = 0x9E3779B97F4A7C15
# By itself: 4 noises found a fifth more than one on a distilled model in 20 steps, at its quality,
# 8 broke more; in 4 steps each would add a quarter of the run.
MOST, SHARE = 4, 5

Model = Callable[[Tensor, Tensor], Tensor]
"""x_t `[batch, ...]` and sigma `[]` -> x0-hat, of the shape of x_t."""


@dataclass(frozen=True)
class Start:
    """noise: `[batch, ...]`, to start from; chosen: for each sample the number of its candidate, 0
    being the noise that was given; candidates: how many were tried; steps: of each preview."""

    noise: Tensor
    chosen: list[int]
    candidates: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class StartSearch:
    """repulsion: of the remembered samples, None where there are none; radius: distance below
    which two samples count as the same; batch: how much the samples of one batch count for each
    other, 0 to 1; candidates: noises to try at most, the given one among them; looks_only: whether
    one look at each is known to tell."""

    space: LatentSpace
    repulsion: Samples | None
    radius: float
    batch: float
    candidates: int
    looks_only: bool = False

    def choose(self, noise: Tensor, seed: int, start: Callable[[Tensor], Tensor], model: Model,
               sigmas: Tensor) -> Start:
        """noise: `[batch, ...]`; seed: of the run, which the other candidates are drawn from;
        start: makes x_t of noise; sigmas: the schedule of the run, `[steps + 1]`."""
        levels = sigmas[:1] if self.looks_only else preview_levels(sigmas)
        noises: list[Tensor] = []
        seen: list[Tensor] = []
        while True:
            noises.append(another(noise, seed, len(noises)) if noises else noise)
            preview = euler(model, start(noises[-1]), levels)
            embedding = self.space.embed(next(preview))
            if not seen and self._is_shown(embedding):
                levels = levels[:1]
            elif len(levels) > 1:
                embedding = self.space.embed(last(preview))
            seen.append(embedding)
            chosen, all_far = self._first_new(torch.stack(seen, dim=1))
            if all_far or len(seen) == self.candidates:
                return Start(torch.stack([noises[number][item]
                                          for item, number in enumerate(chosen)]),
                             chosen, len(seen), len(levels))

    def _is_shown(self, embedding: Tensor) -> bool:
        """Whether x0-hat lie about as far from the mean as images do."""
        early = None if self.repulsion is None else EarlyPush.away_from(self.repulsion)
        return early is not None and early.is_settled(embedding)

    def _first_new(self, embedding: Tensor) -> tuple[list[int], bool]:
        """`[batch, candidates, dim]` -> for each sample the first candidate that is far from
        everything, else the farthest; and whether all are far. One sample after the other, so that
        each also keeps away from those before it."""
        chosen: list[int] = []
        taken: list[Tensor] = []
        all_far = True
        for candidates in embedding:
            away = candidates.new_full((len(candidates),), torch.inf)
            if self.repulsion is not None:
                away = self.repulsion.distance(candidates)
            if taken and self.batch > 0:
                weight = torch.full((len(taken),), self.batch, device=away.device).log()
                mates = ExactKernel(torch.stack(taken), weight, self.radius)
                away = torch.minimum(away, mates.distance(candidates))
            away = away.nan_to_num(nan=0.0, posinf=torch.inf).tolist()
            far = [number for number, value in enumerate(away) if value > FAR]
            chosen.append(far[0] if far else away.index(max(away)))
            all_far = all_far and bool(far)
            taken.append(candidates[chosen[-1]])
        return chosen, all_far


def affordable(steps: int) -> int:
    """How many candidates a run of so many steps is to try by itself, at one evaluation each: so
    few that they add a fifth at most."""
    return max(1, min(MOST, steps // SHARE))


def another(noise: Tensor, seed: int, number: int) -> Tensor:
    """A candidate of the shape of `noise`, drawn as the host draws noise: on the CPU."""
    generator = torch.Generator().manual_seed((seed + number * SEEDS_APART) % 2 ** 63)
    return torch.randn(noise.shape, generator=generator).to(noise)


def preview_levels(sigmas: Tensor) -> Tensor:
    """At most PREVIEW_STEPS of a schedule's levels, its first one first, as far apart in steps."""
    steps = len(sigmas) - 1
    count = min(steps, PREVIEW_STEPS)
    return sigmas[[i * steps // count for i in range(count)]]


def euler(model: Model, x: Tensor, sigmas: Tensor) -> Iterator[Tensor]:
    """x0-hat at each noise level; from one to the next by a step of Euler's method."""
    for sigma, following in zip(sigmas, [*sigmas[1:], None], strict=True):
        denoised = model(x, sigma)
        yield denoised
        if following is not None:
            x = torch.lerp(denoised, x, following / sigma)


def last(values: Iterator[Tensor]) -> Tensor:
    *_, value = values
    return value
