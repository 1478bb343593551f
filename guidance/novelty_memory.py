"""A named novelty memory as nodes use it: where it is, which revision counts, what it records."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .memory import FeatureSpaceError, Memory, MemoryLog, Sample
from .memory.bank import NEAREST, Bank, Remembered
from .repulsion import REPULSIONS, Repulsion, squared_distance

SIMILAR = -12.0  # log similarity of prompts below which a sample does not count at all


@functools.lru_cache(maxsize=64)
def shared_bank(url: str, name: str) -> Bank:
    """One bank per memory and process: nodes and routes share it."""
    return Bank(MemoryLog(url).memory(name))


@dataclass(frozen=True)
class Recorded:
    """What became of a run's samples. distance: `[new]`, to the nearest remembered before, empty
    where there was none; novelty: `[new]`, the share of the history that was less new when it
    came; seconds: all of it."""

    first_revision: int
    last_revision: int
    duplicates: int
    distance: Tensor
    novelty: Tensor
    seconds: float


@dataclass(frozen=True, kw_only=True)
class NoveltyMemory:
    """revision: the one that counts, None for the latest; learn: whether new samples are
    remembered; max_megabytes: above it the oldest samples are forgotten."""

    url: str
    name: str
    revision: int | None = None
    learn: bool = True
    max_megabytes: float = 1024.0

    @property
    def bank(self) -> Bank:
        return shared_bank(self.url, self.name)

    @property
    def log(self) -> Memory:
        return self.bank.memory

    def resolve(self) -> int:
        """The revision that counts now."""
        return self.log.revision if self.revision is None else self.revision

    def check_space(self, space_id: str) -> None:
        """Raises FeatureSpaceError if the memory holds samples of another feature space."""
        own = self.log.feature_space
        if own is not None and own != space_id:
            raise FeatureSpaceError(
                f'Memory "{self.name}" remembers samples of feature space "{own}", but this model '
                f'needs "{space_id}". Give this model a memory of its own: choose another name.')

    def repulsion(self, kind: str, remembered: Remembered, log_similarity: Tensor | None,
                  radius: float, device: torch.device) -> Repulsion | None:
        """What pushes away from the remembered samples; None where none counts."""
        if log_similarity is None:
            log_similarity = torch.zeros(len(remembered))
        counts = log_similarity > SIMILAR
        if not bool(counts.any()):
            return None
        return REPULSIONS[kind](remembered.embedding[counts].to(device),
                                log_similarity[counts].to(device), radius)

    def record(self, remembered: Remembered, space_id: str, *, latents: Tensor, embedding: Tensor,
               trajectory: Tensor | None, prompt: Tensor | None, seed: int,
               settings: Mapping, previews: Sequence[bytes | None]) -> Recorded:
        """Appends every sample of a batch; one that is remembered already only counts as duplicate.

        latents: `[batch, ...]`, hashed as they are; embedding: `[batch, dim]`; trajectory:
        `[batch, points, 1 + dim]`.
        """
        started = time.perf_counter()
        embedding = embedding.cpu()
        distance = torch.empty(0)
        if len(remembered):
            distance = squared_distance(embedding, remembered.embedding).min(dim=1).values.sqrt()
        samples = [Sample(
            content_hash=hashlib.sha256(latent.numpy().tobytes()).hexdigest(),
            embedding=embedding[i],
            trajectory=None if trajectory is None else trajectory[i],
            prompt_embedding=prompt, preview=previews[i], seed=seed % 2 ** 64,
            settings={**settings, "item": i,
                      NEAREST: float(distance[i]) if len(distance) else None})
            for i, latent in enumerate(latents.float().cpu().contiguous())]
        appended = self.log.append(samples, space_id)
        self.log.enforce_cap(int(self.max_megabytes * 2 ** 20))
        return Recorded(
            appended.first_revision, appended.last_revision, len(appended.duplicates), distance,
            novelty_percentile(distance, remembered.nearest), time.perf_counter() - started)


def novelty_percentile(distance: Tensor, history: Tensor) -> Tensor:
    """`[new]`: the share of the history's finite distances `[n]` that lie below each distance."""
    known = history[torch.isfinite(history)]
    if len(known) == 0 or len(distance) == 0:
        return torch.empty(0)
    return (known < distance[:, None]).float().mean(dim=1)
