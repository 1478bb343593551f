"""What a set of generated avatars is worth: how rare, and how good."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass

import numpy as np
import torch
from prdc import compute_prdc
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from torch import Tensor

from demo.avatars import ATTRIBUTES, avatars
from demo.avatars_reader import AvatarsReader

REAL = 5000
REAL_SEED = 3  # faces that neither the model nor the reader was trained on
MANIFOLD_K = 5
AVGKNN_K = 5  # as in section 5 of Um and Ye, 2301.12334, and PyOD
LOF_K = 20


@dataclass(frozen=True)
class Real:
    """features: `[real, dim]`; attributes: `[real, 3]`, bool, as drawn; `nearest` and `outlier`
    are fitted to the features."""

    features: Tensor
    attributes: Tensor
    nearest: NearestNeighbors
    outlier: LocalOutlierFactor


class AvatarsMeasure:
    """Measures sets of 24 x 24 avatars against drawn ones, in the features of the reader."""

    def __init__(self, real: int = REAL):
        self.reader = AvatarsReader.load()
        self._count = real

    @functools.cached_property
    def real(self) -> Real:
        images, attributes = avatars(self._count, seed=REAL_SEED)
        features = self.features(images)
        return Real(features, attributes,
                    NearestNeighbors(n_neighbors=AVGKNN_K).fit(features.numpy()),
                    LocalOutlierFactor(n_neighbors=LOF_K, novelty=True).fit(features.numpy()))

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Images `[batch, 3, 24, 24]` in [-1, 1] -> `[batch, dim]`."""
        return torch.cat([self.reader.features(part) for part in images.clamp(-1, 1).split(512)])

    def average_knn(self, images: Tensor) -> np.ndarray:
        """Mean distance to the nearest real ones, `[batch]`; larger is rarer."""
        return self.real.nearest.kneighbors(self.features(images).numpy())[0].mean(axis=1)

    def local_outlier_factor(self, images: Tensor) -> np.ndarray:
        """`[batch]`; above 1 is sparser than its neighbours (Breunig et al., 2000)."""
        return -self.real.outlier.score_samples(self.features(images).numpy())

    def summary(self, images: Tensor) -> dict[str, float]:
        """The figures of one set. Recall and coverage grow with its size."""
        has, intact = self.reader.read(images), self.reader.is_intact(images)
        with contextlib.redirect_stdout(None):  # prdc prints what it counts
            figures = compute_prdc(self.real.features.numpy(),
                                   self.features(images).numpy(), nearest_k=MANIFOLD_K)
        outlier = self.local_outlier_factor(images)
        rates = dict(zip(ATTRIBUTES, has.float().mean(dim=0).tolist(), strict=True))
        return {"count": len(images), "rare": has.any(dim=1).float().mean().item(), **rates,
                "several": (has.sum(dim=1) > 1).float().mean().item(),
                "intact": intact.float().mean().item(),
                "rare_intact": (has.any(dim=1) & intact).float().mean().item(),
                "avgknn": float(self.average_knn(images).mean()),
                "lof": float(outlier.mean()), "lof_spread": float(outlier.std()),
                **{name: float(value) for name, value in figures.items()}}
