"""Novelty guidance of one sampling run: away from everything that was generated before.

After Gwern, "Novelty Nets: Classifier Anti-Guidance" (2024): the sample climbs log(1 - P), with P
the probability that it was generated already.

The gradient of log(1 - P(x0-hat(x_t))) with respect to x_t is J^T g, with g taken at x0-hat and J
the Jacobian of the denoiser D. J is symmetric, (a / s^2) Cov[x0 | x_t], so to first order

    D(x_t + delta) = D(x_t) + J delta

has exactly that direction: shifting the *input* of the model by the wanted displacement and taking
what it answers applies J without backpropagation. What J cannot express, the model's own idea of an
image does not contain, and it falls away; a shift added to x0-hat itself would leave it in. The
wanted displacement comes from the x0-hat of the evaluation before, so the model runs no more often.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .antithetic_noise import antithetic
from .batch_mates import BatchMates
from .early_push import EARLY, EarlyPush
from .evaluation import Evaluation
from .feature_space import FeatureSpace
from .latent_space import LatentSpace
from .limiter import limit, per_sample_norm
from .noise_level import NoiseLevel
from .repulsion import Repelled, Repulsion, Samples
from .starts import Model, Start, StartSearch
from .vision_space import VisionSpace

# The strength at which the displacement is the repulsion's own, P radii long.
UNSCALED = 0.3
NEAR = 0.05  # P from which on a sample counts as pushed


@dataclass(frozen=True, kw_only=True)
class NoveltySettings:
    """strength: scales the push, which is the repulsion's own at .3; also the most that it may be,
    as a fraction of the noise that the step removes, |x_t / a - x0|; sigma_start, sigma_end: the
    pushed range of noise levels, both included; radius: distance below which two samples count as
    the same; batch: how strongly the samples of one batch push each other, 0 to 1; fits_batch:
    whether they take their radius from the batch where it is settled; early: whether pushes reach
    as far at high noise as at low, one of EARLY (auto: where the image is settled); look: whether
    to ask the model once more before the first push, so that there is a first one, where the run
    begins inside the range; sigma_first: at which it begins, infinite where nobody tells.
    """

    strength: float
    radius: float
    sigma_start: float
    sigma_end: float
    batch: float = 1.0
    fits_batch: bool = False
    early: str = EARLY[-1]
    look: bool = False
    sigma_first: float = math.inf

    @property
    def closed(self) -> bool:
        """Whether no noise level of the run is pushed."""
        return self.sigma_end > min(self.sigma_start, self.sigma_first)


@dataclass(frozen=True)
class PushFigures:
    """What the pushes of a run came to.

    possible: whether there was anything to push away from; evaluations: of the model, at which a
    push was computed; within: those inside the window; pushed: share of the samples of
    these with P above .05; mean_push: mean of |shift| over the noise removed, inside the window;
    dropped: shifts that were NaN or infinite; of: what mean_push is a share of; gradients: passes
    backward through another model, and gradient_share: their share of the run's time; looked:
    whether the model was asked once more; early: at how many evaluations a push reached at
    least twice as far as by itself, because the image was settled at high noise; start: where the
    run began, if there were others to choose from; fits_batch: whether the samples of the batch
    took their radius from it where it was settled; antithetic: whether they started from
    antithetic noises; closed: whether the window left out the whole run.
    """

    possible: bool
    evaluations: int
    within: int
    pushed: float
    mean_push: float
    dropped: int
    of: str = "noise removed"
    gradients: int = 0
    gradient_share: float = 0.0
    looked: bool = False
    early: int = 0
    start: Start | None = None
    fits_batch: bool = False
    antithetic: bool = False
    closed: bool = False


class NoveltyRun:
    """The state of one sampling run.

    `repulsion` is None where the memory is empty; then only batch mates push each other.
    """

    of = "noise removed"  # what a push is a share of

    def __init__(self, space: LatentSpace | FeatureSpace | VisionSpace,
                 repulsion: Repulsion | None, settings: NoveltySettings):
        self.space = space
        self.repulsion = repulsion
        self.settings = settings
        self._through_model = repulsion is None or repulsion.through_model
        self._scale = settings.strength / UNSCALED if self._through_model else 1.0
        self._early = (EarlyPush.away_from(repulsion, always=settings.early == "on")
                       if settings.early != "off" and isinstance(repulsion, Samples) else None)
        self._evaluations: list[tuple[Tensor, ...]] = []  # each [batch], on the device
        self._far: list[Tensor] = []  # likewise: whether a push reached twice as far or farther
        self._opening: Tensor | None = None  # embedding [batch, dim] of the first x0-hat
        self._alone = Evaluation()
        self._mates = False  # whether the samples of the batch push each other
        self._from_mates = BatchMates(settings.radius, settings.fits_batch)
        self._looked = False
        self._start: Start | None = None
        self._antithetic = False

    def antithetic(self, noise: Tensor) -> Tensor:
        """Antithetic noises in place of those of the batch, `[batch, ...]`."""
        self._antithetic = True
        return antithetic(noise, self.settings.batch)

    def choose_start(self, candidates: int, noise: Tensor, seed: int,
                     start: Callable[[Tensor], Tensor], model: Model, sigmas: Tensor,
                     looks_only: bool = False) -> Tensor:
        """The noise to start from, see StartSearch: at most `candidates` are tried, the given one
        among them. For space latent."""
        assert isinstance(self.space, LatentSpace)
        search = StartSearch(
            space=self.space, radius=self.settings.radius, batch=self.settings.batch,
            repulsion=self.repulsion if isinstance(self.repulsion, Samples) else None,
            candidates=candidates, looks_only=looks_only)
        self._start = search.choose(noise, seed, start, model, sigmas)
        return self._start.noise

    def denoise(self, model: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor,
                level: NoiseLevel, shared: Evaluation | None = None) -> Tensor:
        """x0-hat of `model` at x `[batch, ...]`, led towards the new.

        sigma: `[batch]`, the host's numbers for the noise level, compared with the window; shared:
        with the other guidance of the run, if there is any.
        """
        at = self._alone if shared is None else shared
        return at.run(x, lambda: self._denoise(model, x, sigma, level, at))

    def _denoise(self, model: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor,
                 level: NoiseLevel, at: Evaluation) -> Tensor:
        active = self.pushes(x) and not at.looking
        if active and self._through_model:
            previous = at.previous
            if previous is None and self.settings.look and (
                    self.settings.sigma_first <= self.settings.sigma_start):
                previous, self._looked = at.looked(model), True
            if previous is not None:
                x = x + self._shift(at.x, previous, sigma, level)
            return at.answered(model(x))
        denoised = at.answered(model(x))
        if active:
            shift = self._shift(at.x, at.plain, sigma, level)
            signal = level.like(level.signal, x).to(shift.dtype)
            denoised = denoised + shift / signal.clamp(min=torch.finfo(shift.dtype).tiny)
        return denoised

    def pushes(self, x: Tensor) -> bool:
        """Whether there is anything to push samples x `[batch, ...]` away from."""
        self._mates = self.repels_mates(x)
        return self._mates or self.repulsion is not None and self._acts

    def repels_mates(self, x: Tensor) -> bool:
        """Whether the samples x `[batch, ...]` push each other."""
        return len(x) > 1 and self.settings.batch > 0 and self._acts

    @property
    def _acts(self) -> bool:
        return self.settings.strength > 0 and not self.settings.closed

    def _shift(self, x: Tensor, denoised: Tensor, sigma: Tensor, level: NoiseLevel) -> Tensor:
        """The limited shift of x_t, `[batch, ...]`."""
        wanted, probability = self._wanted(x, denoised, sigma, level)
        removed = per_sample_norm(
            torch.addcmul(x, level.like(level.signal, x), denoised, value=-1))
        within = (sigma >= self.settings.sigma_end) & (sigma <= self.settings.sigma_start)
        limited = limit(wanted, within * self.settings.strength * removed)
        self._evaluations.append((within, probability, limited.norm / removed, limited.finite))
        return limited.shift.to(denoised.dtype)

    def _wanted(self, x: Tensor, denoised: Tensor, sigma: Tensor, level: NoiseLevel
                ) -> tuple[Tensor, Tensor]:
        """The wanted shift of x_t, of its shape, and P(already generated) `[batch]`."""
        embedding = self.space.embed(denoised)
        push, probability = self._push(embedding)
        shift = level.signal[:, None] * push
        if self._early is not None:
            self._opening = embedding if self._opening is None else self._opening
            noise = level.noise * self.space.noise_scale(x)
            extra = self._early.extra(embedding, level, noise)
            shift = shift + self._early.turned(self.space.embed(x), extra[:, None] * push, level,
                                               noise, self.settings.strength)
            self._far.append(extra > level.signal)
        return self.space.lift(shift, denoised), probability

    def _push(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """-grad log(1 - P) adds up over independent memories: the log's and the batch's own."""
        found = [] if self.repulsion is None else [self.repulsion(embedding)]
        if self._mates:
            mates = self._from_mates(embedding)
            found.append(Repelled(*(self.settings.batch * part for part in mates)))
        push, probability = found[0]
        for more, again in found[1:]:
            push, probability = push + more, 1 - (1 - probability) * (1 - again)
        return self._scale * push, probability

    def is_settled(self) -> bool | None:
        """Whether the images were decided at the first x0-hat that was looked at; None where
        early_push has no use, and so nobody knows. Waits for the device."""
        if self._early is None or self._opening is None:
            return None
        return self._early.is_settled(self._opening)

    def figures(self) -> PushFigures:
        """To be read when the run has ended: it waits for the device."""
        possible = self.repulsion is not None or self._mates
        if not self._evaluations:
            return PushFigures(possible, 0, 0, 0.0, 0.0, 0, self.of, start=self._start,
                               antithetic=self._antithetic, closed=self.settings.closed)
        within, probability, push, finite = (
            torch.stack(column).cpu() for column in zip(*self._evaluations, strict=True))
        count = int(within.sum())
        near = (probability > NEAR) & within
        far = torch.stack(self._far).cpu() if self._far else torch.zeros_like(near)
        return PushFigures(
            possible=possible, evaluations=len(within), within=int(within.any(dim=1).sum()),
            pushed=int(near.sum()) / max(count, 1),
            mean_push=float(push[within & finite].nan_to_num().sum()) / max(count, 1),
            dropped=int((~finite & within).sum()), of=self.of, looked=self._looked,
            early=int((near & far).any(dim=1).sum()), start=self._start,
            fits_batch=self._mates and self.settings.fits_batch, antithetic=self._antithetic)
