"""What a set of generated images is worth, in the features of an independent judge."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from prdc import compute_prdc
from torch import Tensor

from demo.data import digits
from demo.judge import Judge

MANIFOLD_K = 5


@dataclass(frozen=True)
class Reference:
    """Real images in a judge's features.

    features: `[real, dim]`; labels: `[real]`; radius: `[real]`, distance to the k-th nearest other
    real image (the manifold's balls, Kynkaanniemi et al. 2019); tau: `[classes]`, the median
    nearest-neighbour distance among the real images of a class.
    """

    features: Tensor
    labels: Tensor
    radius: Tensor
    tau: Tensor


class Measure(ABC):
    """Measures sets of images of one class against real ones, in the features of a judge."""

    @abstractmethod
    def real_of(self, label: int) -> Tensor:
        """The real images of a class, `[real, dim]`."""

    @abstractmethod
    def manifold(self, label: int) -> tuple[Tensor, Tensor]:
        """Centres `[real, dim]` and radii `[real]` of the balls that good images lie in."""

    @abstractmethod
    def tau(self, label: int) -> Tensor:
        """Distance from which two images of a class count as different."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Images `[batch, 3, size, size]` in [-1, 1] -> `[batch, dim]`."""

    @abstractmethod
    def hits_of(self, features: Tensor, label: int) -> Tensor:
        """Features `[batch, dim]` -> `[batch]` bool: judged to be the asked class."""

    def hits(self, images: Tensor, label: int) -> Tensor:
        """`[batch]` bool: judged to be the asked class."""
        return self.hits_of(self.features(images), label)

    def good(self, images: Tensor, label: int) -> Tensor:
        """`[batch]` bool: within the real manifold and judged to be the asked class."""
        return self._good(self.features(images), label)

    def _good(self, features: Tensor, label: int) -> Tensor:
        centres, radius = self.manifold(label)
        inside = (torch.cdist(features, centres) <= radius).any(dim=1)
        return inside & self.hits_of(features, label)

    def good_real(self, label: int) -> Tensor:
        """`[real]` bool: which real images of a class are good, each measured by the others."""
        features = self.real_of(label)
        centres, radius = self.manifold(label)
        balls = (torch.cdist(features, centres) <= radius).sum(dim=1)
        return (balls > 1) & self.hits_of(features, label)  # one ball is the image's own

    def distinct_good(self, images: Tensor, label: int, scale: float = 1.0) -> Tensor:
        """D(1) ... D(n), `[batch]`: how many of the first n images are good and at least
        `scale * tau` away from every good image kept before them."""
        return self._distinct_good(self.features(images), label, scale)

    def distinct_real(self, label: int, order: int = 0) -> Tensor:
        """D(1) ... D(real) of the real images of a class, each measured by the others, in one of
        many random orders."""
        shuffled = torch.randperm(len(self.real_of(label)),
                                  generator=torch.Generator().manual_seed(order))
        return self._distinct(self.real_of(label)[shuffled], self.good_real(label)[shuffled],
                              self.tau(label))

    def _distinct_good(self, features: Tensor, label: int, scale: float = 1.0) -> Tensor:
        return self._distinct(features, self._good(features, label), scale * self.tau(label))

    @staticmethod
    def _distinct(features: Tensor, good: Tensor, apart: Tensor) -> Tensor:
        near = torch.cdist(features, features) < apart
        kept: list[int] = []
        counts = []
        for i, is_good in enumerate(good.tolist()):
            if is_good and not bool(near[i, kept].any()):
                kept.append(i)
            counts.append(len(kept))
        return torch.tensor(counts)

    def summary(self, images: Tensor, label: int) -> dict[str, float]:
        """The figures of one set of one class, images in the order they came."""
        features = self.features(images)
        real = self.real_of(label)
        hits = self.hits_of(features, label)
        nearest = torch.cdist(features, features).fill_diagonal_(float("inf"))
        later = torch.ones(len(features), len(features)).triu().bool()
        history = nearest.masked_fill(later, float("inf"))
        with contextlib.redirect_stdout(None):  # prdc prints what it counts
            figures = compute_prdc(real.numpy(), features.numpy(), nearest_k=MANIFOLD_K)
        return {
            "distinct_good": int(self._distinct_good(features, label)[-1]),
            "distinct_good_1.3tau": int(self._distinct_good(features, label, 1.3)[-1]),
            "good": self._good(features, label).float().mean().item(),
            "class_accuracy": hits.float().mean().item(),
            **{name: float(value) for name, value in figures.items()},
            "vendi": vendi_score(features),
            "nearest": nearest.min(dim=1).values.mean().item(),
            "nearest_in_history": history[1:].min(dim=1).values.mean().item(),
        }


class DigitsMeasure(Measure):
    """Measures sets of 16 x 16 digits against all real digits."""

    def __init__(self):
        self.judge = Judge.load()
        images, labels = digits()
        features = self.features(images)
        distance = torch.cdist(features, features)
        radius = distance.kthvalue(MANIFOLD_K + 1, dim=1).values
        tau = torch.stack([
            distance[labels == c][:, labels == c].kthvalue(2, dim=1).values.median()
            for c in range(int(labels.max()) + 1)])
        self.real = Reference(features, labels, radius, tau)

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Images `[batch, 3, 16, 16]` in [-1, 1] -> `[batch, dim]`."""
        return torch.cat([self.judge.features(part) for part in images.clamp(-1, 1).split(512)])

    def real_of(self, label: int) -> Tensor:
        return self.real.features[self.real.labels == label]

    def manifold(self, label: int) -> tuple[Tensor, Tensor]:
        """That of all digits, whatever their class."""
        return self.real.features, self.real.radius

    def tau(self, label: int) -> Tensor:
        return self.real.tau[label]

    @torch.inference_mode()
    def hits_of(self, features: Tensor, label: int) -> Tensor:
        return self.judge.head(features).argmax(dim=1) == label


def vendi_score(features: Tensor) -> float:
    """exp of the entropy of the eigenvalues of K / n, K the cosine similarity (Friedman and
    Dieng, 2210.02410, eq. 2, q = 1)."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    eigenvalues = np.linalg.eigvalsh((unit @ unit.T / len(unit)).numpy())
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))
