"""A named novelty memory as nodes use it: where it is, which revision counts, what it records."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sqlalchemy import make_url
from torch import Tensor

from .fitted_radius import ACTIVATIONS, FITTED, LATENTS, UNKNOWN, Fit, fitted_radius
from .memory import Entry, FeatureSpaceError, Memory, MemoryLog, MemoryLogError, Sample
from .memory.bank import NEAREST, Bank, Remembered
from .memory.cap import WHEN_FULL
from .memory.net_cache import NetCache, Tick, silent
from .overfull_net import ALIKE, SIMILAR, Centres, centres_of, distance_to_nearest
from .prompt import log_similarity
from .repulsion import REPULSIONS, Repulsion

LATENT, FEATURES, VISION = "latent", "features", "vision"
SPACES = (LATENT, FEATURES, VISION)
FITS = {LATENT: LATENTS, FEATURES: ACTIVATIONS}  # in space vision a radius of 0 stands for UNKNOWN


@functools.lru_cache(maxsize=64)
def shared_bank(url: str, name: str) -> Bank:
    """One bank per memory and process: nodes and routes share it."""
    return Bank(MemoryLog(url).memory(name))


@functools.lru_cache(maxsize=64)
def shared_nets(url: str, name: str) -> NetCache:
    """The net of a memory, likewise; beside the log where that is a file."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return NetCache(None)
    folder = Path(parsed.database).with_suffix(".nets")
    return NetCache(folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors")


@dataclass(frozen=True)
class Recorded:
    """What became of a run's samples. replaced: how many of an earlier pass they took the place of;
    distance: `[new]`, to the nearest remembered before, empty where there was none; novelty:
    `[new]`, the share of the history that was less new when it came; seconds: all of it; broken:
    how many were left out because their values are no numbers."""

    first_revision: int
    last_revision: int
    duplicates: int
    replaced: int
    distance: Tensor
    novelty: Tensor
    seconds: float
    broken: int = 0


@dataclass(frozen=True, kw_only=True)
class NoveltyMemory:
    """revision: the one that counts, None for the latest; learn: whether new samples are
    remembered; max_megabytes: above it samples are forgotten; when_full: which ones, see
    memory/cap.py; half_life: how many samples come until one counts half, 0 for never; space: which
    kind of feature space its samples are in."""

    url: str
    name: str
    revision: int | None = None
    learn: bool = True
    max_megabytes: float = 1024.0
    when_full: str = WHEN_FULL[0]
    half_life: int = 0
    space: str = SPACES[0]

    @property
    def bank(self) -> Bank:
        return shared_bank(self.url, self.name)

    @property
    def nets(self) -> NetCache:
        return shared_nets(self.url, self.name)

    @property
    def log(self) -> Memory:
        return self.bank.memory

    @property
    def fit(self) -> Fit | None:
        """How a radius is taken from its samples, None where it is not."""
        return FITS.get(self.space)

    @property
    def unknown_radius(self) -> float:
        """In place of FITTED, while its samples do not tell."""
        return UNKNOWN if self.fit is None else self.fit.unknown

    def resolve(self) -> int:
        """The revision that counts now."""
        return self.log.revision if self.revision is None else self.revision

    def check_space(self, space_id: str) -> None:
        """Raises FeatureSpaceError if the memory holds samples of another feature space, or is set
        to another kind."""
        if space_id.startswith(tuple({*SPACES} - {self.space})):
            raise FeatureSpaceError(
                f'Memory "{self.name}" is set to space {self.space}, but this node can only use '
                f'"{space_id}". Set space in Novelty Memory to what this node can use, with a name '
                "of its own.")
        own = self.log.feature_space
        if own is not None and own != space_id:
            other = ("Connect the CLIP vision model that it began with, or choose another name."
                     if self.space == VISION else
                     "Give this model a memory of its own: choose another name.")
            raise FeatureSpaceError(
                f'Memory "{self.name}" remembers samples of feature space "{own}", but this model '
                f'needs "{space_id}". {other}')

    def check_learns(self) -> None:
        """Raises MemoryLogError if the memory is frozen."""
        if not self.learn:
            raise MemoryLogError(f'Memory "{self.name}" is frozen, so nothing was changed. Set '
                                 "mode to learn and revision to -1 in Novelty Memory.")

    def enforce_cap(self) -> None:
        """Forgets what is above max_megabytes."""
        self.log.enforce_cap(int(self.max_megabytes * 2 ** 20), self.when_full)

    def learn_net(self, tick: Tick = silent) -> None:
        """Has the net catch up with the log."""
        self.nets.net(self.bank.at(), tick)

    def recorded_by(self, prompt_id: str, revisions: Iterable[int]) -> list[Entry]:
        """Those of the revisions that are live samples which a prompt has recorded."""
        last = self.log.revision
        return [entry for revision in sorted({*revisions}) if revision <= last
                for entry in self.log.entries(after=revision - 1, upto=revision)
                if entry.kind == "sample" and entry.forgotten_at is None
                and entry.settings.get("prompt_id") == prompt_id]

    def repulsion(self, kind: str, remembered: Remembered, prompt: Tensor | None, radius: float,
                  device: torch.device, tick: Tick = silent) -> Repulsion | None:
        """What pushes away from the remembered samples; None where none counts.

        prompt: `[PROMPT_DIM]`, None where prompts do not matter; radius: FITTED to take that of
        the samples themselves; tick: for a net that has much to learn first.
        """
        if len(remembered) == 0:
            return None
        centre, prompts, weight = self._centres(kind, remembered, prompt, tick)
        log_weight = weight.log().float()
        similarity = (torch.zeros(len(weight)) if prompt is None
                      else log_similarity(prompt, prompts))
        counts = (similarity > SIMILAR) & (log_weight > SIMILAR)
        if not bool(counts.any()):
            return None
        if radius == FITTED:
            alike = counts & (similarity > ALIKE)
            radius = (fitted_radius(centre[alike], self.fit, float(weight[alike].sum()))
                      if self.fit else UNKNOWN)
        return REPULSIONS[kind](centre[counts].to(device),
                                (log_weight + similarity)[counts].to(device), radius)

    def _centres(self, kind: str, remembered: Remembered, prompt: Tensor | None, tick: Tick
                 ) -> Centres:
        weight = self._weight(remembered)
        if kind == "net":
            return centres_of(self.nets.net(remembered, tick), remembered, weight, prompt)
        return Centres(remembered.embedding, remembered.prompt,
                       torch.ones(len(remembered)) if weight is None else weight)

    def _weight(self, remembered: Remembered) -> Tensor | None:
        """`[n]`, float64: halved by every half_life samples that were recorded since; None where
        nothing fades."""
        if not self.half_life:
            return None
        return torch.exp2(-remembered.ages().double() / self.half_life)

    def record(self, remembered: Remembered, space_id: str, *, hashes: Sequence[str],
               embedding: Tensor, prompt: Tensor | None, seed: int, settings: Mapping,
               previews: Sequence[bytes | None], replaced: Sequence[Entry] = ()) -> Recorded:
        """Appends every sample of a batch; one that is remembered already only counts as duplicate,
        and one whose embedding is not finite as broken.

        hashes: of the samples' contents; embedding: `[batch, dim]`; replaced: samples that these
        take the place of.
        """
        started = time.perf_counter()
        embedding = embedding.cpu()
        whole = embedding.isfinite().all(dim=1).nonzero()[:, 0].tolist()
        broken, embedding, distance = len(embedding) - len(whole), embedding[whole], torch.empty(0)
        if not whole:
            end = self.log.revision
            return Recorded(end + 1, end, 0, 0, distance, distance,
                            time.perf_counter() - started, broken)
        if len(remembered):
            distance = distance_to_nearest(self.nets.net(remembered), remembered, embedding)
        samples = [Sample(
            content_hash=hashes[item], embedding=embedding[place],
            prompt_embedding=prompt, preview=previews[item], seed=seed % 2 ** 64,
            settings={**settings, "item": item,
                      NEAREST: float(distance[place]) if len(distance) else None})
            for place, item in enumerate(whole)]
        appended = self.log.append(samples, space_id)
        former = [entry.revision for entry in replaced if entry.content_hash not in hashes]
        if former:
            self.log.forget(former, "a later pass went on with it", missing_ok=True)
        self.enforce_cap()
        self.learn_net()
        return Recorded(
            appended.first_revision, appended.last_revision, len(appended.duplicates), len(former),
            distance, novelty_percentile(distance, remembered.nearest),
            time.perf_counter() - started, broken)


def content_hashes(latents: Tensor) -> list[str]:
    """SHA-256 of each latent of `[batch, ...]`."""
    return [hashlib.sha256(latent.numpy().tobytes()).hexdigest()
            for latent in latents.float().cpu().contiguous()]


def novelty_percentile(distance: Tensor, history: Tensor) -> Tensor:
    """`[new]`: the share of the history's finite distances `[n]` that lie below each distance."""
    known = history[torch.isfinite(history)]
    if len(known) == 0 or len(distance) == 0:
        return torch.empty(0)
    return (known < distance[:, None]).float().mean(dim=1)
