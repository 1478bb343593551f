"""What a set of faces of one class is worth, in the features of an independent reader."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from benchmarks.measures import MANIFOLD_K, Measure
from demo.avatars import ATTRIBUTES, attributes_of, avatars
from demo.avatars_reader import AvatarsReader

REAL = 1000  # faces of a class
REAL_SEED = 5  # faces that neither the model nor the reader was trained on
TAU_FROM = 180  # so many real digits there are of a class; with more, neighbours are nearer


class AvatarsDitMeasure(Measure):
    """Measures sets of 24 x 24 faces of one of eight classes against as many drawn ones."""

    def __init__(self, real: int = REAL):
        self.reader = AvatarsReader.load()
        self._count = real
        self._real = functools.cache(self._draw)

    def _draw(self, label: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features, radii and tau of a class."""
        has = attributes_of(torch.tensor([label]))[0]
        rates = dict(zip(ATTRIBUTES, has.float().tolist(), strict=True))
        features = self.features(avatars(self._count, seed=REAL_SEED, rates=rates)[0])
        distance = torch.cdist(features, features)
        tau = distance[:TAU_FROM, :TAU_FROM].kthvalue(2, dim=1).values.median()
        return features, distance.kthvalue(MANIFOLD_K + 1, dim=1).values, tau

    def real_of(self, label: int) -> Tensor:
        return self._real(label)[0]

    def manifold(self, label: int) -> tuple[Tensor, Tensor]:
        """That of the class."""
        return self._real(label)[:2]

    def tau(self, label: int) -> Tensor:
        return self._real(label)[2]

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        return torch.cat([self.reader.features(part) for part in images.clamp(-1, 1).split(512)])

    @torch.inference_mode()
    def hits_of(self, features: Tensor, label: int) -> Tensor:
        """`[batch]` bool: a whole face with the attributes asked for and no other."""
        right = (self.reader.head(features) > 0) == attributes_of(torch.tensor([label]))
        return right.all(dim=1) & (self.reader.intact(features)[:, 0] > 0)
