"""A memory as one file to share beside a workflow, and memories put together.

The file is safetensors, one row a sample, in the order they came:

    content_hash  uint8 [n, 32]      SHA-256 of what the sample was
    embedding     float32 [n, dim]
    seed          int64 [n]          its 64 bits; unsigned
    prompt        float16 [all], prompt_end int64 [n]   end to end, and where each one ends
    preview       uint8 [all], preview_end int64 [n]    PNG or JPEG, likewise
    settings      uint8 [all], settings_end int64 [n]   JSON, likewise

A part that a sample lacks has length 0; a prompt has PROMPT_DIM numbers. The metadata has format,
version, feature_space, memory, revision and samples. Times are not shared.

A sample's settings name the revision that guided it; put into another memory, also whose that is.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..prompt import PROMPT_DIM
from .bank import NEAREST
from .entry import Entry, Sample
from .errors import ExchangeError, FeatureSpaceError
from .log import Memory

FORMAT, VERSION = "uncommon-memory", "1"
PAGE = 500  # samples that are appended in one transaction
RAGGED = {"prompt": torch.float16, "preview": torch.uint8, "settings": torch.uint8}
WHOLE = {"content_hash": torch.uint8, "embedding": torch.float32, "seed": torch.int64}
PREVIEW_SIDE = 512
"""Longest side of a preview that is taken from a file."""

AfterPage = Callable[[int, int], None]
"""Called with (samples gone through, all samples) after each transaction; it may raise to stop."""


@dataclass(frozen=True)
class Merged:
    """new: samples that were appended; duplicates: those that were there already."""

    new: int
    duplicates: int


def export_memory(memory: Memory, path: Path, at: int | None = None) -> int:
    """Writes the samples alive at a revision (default: the last) to a file; how many.

    The file is there whole or not at all. All samples are in RAM at once meanwhile. Raises
    ExchangeError if there is nothing to write or the file cannot be written.
    """
    revision = memory.revision if at is None else at
    samples = list(memory.samples(revision))
    if not samples:
        raise ExchangeError(f'Memory "{memory.name}" holds no samples at revision {revision}, so '
                            "there is nothing to export. Choose another memory or revision.")
    hashes = np.frombuffer(bytes.fromhex("".join(one.content_hash for one in samples)), np.uint8)
    seeds = np.array([one.seed for one in samples], np.uint64).view(np.int64)
    prompts = [torch.empty(0) if one.prompt_embedding is None else one.prompt_embedding
               for one in samples]
    tensors = {
        "content_hash": torch.from_numpy(hashes.copy()).view(-1, 32),
        "embedding": torch.stack([one.embedding for one in samples]),
        "seed": torch.from_numpy(seeds),
        "prompt": torch.cat(prompts).half(),
        "prompt_end": _ends(map(len, prompts)),
        **_joined("preview", [one.preview or b"" for one in samples]),
        **_joined("settings", [json.dumps(one.settings).encode() for one in samples])}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, {
            "format": FORMAT, "version": VERSION, "feature_space": memory.feature_space,
            "memory": memory.name, "revision": str(revision), "samples": str(len(samples))})
        os.replace(partial, path)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise ExchangeError(f'The memory could not be exported to "{path}": {error}. Check the '
                            "free disk space and the permissions of the folder.") from error
    return len(samples)


def import_memory(memory: Memory, path: Path, after_page: AfterPage | None = None) -> Merged:
    """Appends the samples of a file that `export_memory` wrote, without those that are there.

    The file is checked as a whole before anything is appended. If it is stopped half-way, what was
    appended stays, and importing again goes on. Raises ExchangeError if the file is damaged or
    something else, and FeatureSpaceError if it is of another feature space.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise _wrong(path, "it is no exported memory")
            if metadata.get("version") != VERSION:
                raise _wrong(path, f"it has version {metadata.get('version')}, and this pack knows "
                                   f"version {VERSION}; update this pack")
            space = metadata.get("feature_space", "")
            _check_space(memory, space, f'The file "{path.name}"')
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ExchangeError(f'There is no file "{path}". Choose one that is there.') from error
    except (SafetensorError, OSError) as error:
        raise _wrong(path, str(error)) from error
    if problem := _problem(tensors):
        raise _wrong(path, problem)
    return _append(memory, space, _guided_by(metadata.get("memory", ""), _samples(tensors)),
                   len(tensors["seed"]), after_page)


def merge(source: Memory, target: Memory, at: int | None = None,
          after_page: AfterPage | None = None) -> Merged:
    """Appends the samples that are alive in `source` at a revision to `target`, without those that
    are there. Raises FeatureSpaceError if the two are of different spaces."""
    space = source.feature_space
    if space is None:
        return Merged(0, 0)
    _check_space(target, space, f'Memory "{source.name}"')
    revision = source.revision if at is None else at
    samples = _guided_by(source.name, map(_as_sample, source.samples(revision)))
    return _append(target, space, samples, len(source.live(revision)), after_page)


def _append(memory: Memory, space: str, samples: Iterator[Sample], total: int,
            after_page: AfterPage | None) -> Merged:
    new = seen = 0
    while page := list(islice(samples, PAGE)):
        appended = memory.append(page, space)
        new += len(page) - len(appended.duplicates)
        seen += len(page)
        if after_page is not None:
            after_page(seen, total)
    return Merged(new, seen - new)


def _guided_by(name: str, samples: Iterable[Sample]) -> Iterator[Sample]:
    for one in samples:
        yield (replace(one, settings={"memory": name, **one.settings})
               if "revision" in one.settings else one)


def _check_space(memory: Memory, space: str, giver: str) -> None:
    own = memory.feature_space
    if not space or own not in (None, space):
        raise FeatureSpaceError(
            f'{giver} is of feature space "{space}", and memory "{memory.name}" of "{own}". Spaces '
            "are never mixed: choose a memory of the same space, or a new name for the memory.")


def _as_sample(one: Entry) -> Sample:
    return Sample(content_hash=one.content_hash, embedding=one.embedding, seed=one.seed,
                  prompt_embedding=one.prompt_embedding, preview=one.preview,
                  settings=one.settings)


# The file's tensors

def _ends(lengths: Iterable[int]) -> Tensor:
    return torch.tensor(list(lengths), dtype=torch.int64).cumsum(0)


def _joined(name: str, parts: list[bytes]) -> dict[str, Tensor]:
    whole = torch.from_numpy(np.frombuffer(b"".join(parts), np.uint8).copy())
    return {name: whole, f"{name}_end": _ends(map(len, parts))}


def _wrong(path: Path, problem: str) -> ExchangeError:
    return ExchangeError(f'The file "{path.name}" cannot be imported: {problem}. Nothing was '
                         "imported. Choose a file that Export Memory has written.")


def _problem(tensors: Mapping[str, Tensor]) -> str | None:
    """What keeps the tensors from being a memory, if anything does."""
    types = WHOLE | RAGGED | {f"{name}_end": torch.int64 for name in RAGGED}
    for name, dtype in types.items():
        if name not in tensors or tensors[name].dtype != dtype:
            return f"it lacks {name} of {dtype}"
    count = len(tensors["seed"])
    embedding = tensors["embedding"]
    if (count == 0 or embedding.ndim != 2 or len(embedding) != count or embedding.shape[1] == 0
            or tensors["content_hash"].shape != (count, 32)):
        return "its samples have the wrong shapes"
    if not (embedding.isfinite().all() and tensors["prompt"].isfinite().all()):
        return "its numbers are not finite"
    for name in RAGGED:
        ends = tensors[f"{name}_end"]
        bounds = torch.cat([ends.new_zeros(1), ends])
        if ends.shape != (count,) or (bounds.diff() < 0).any() or ends[-1] != len(tensors[name]):
            return f"{name}_end does not fit {name}"
    for number, sample in enumerate(_samples(tensors)):
        if problem := _problem_of(sample):
            return f"{problem} of sample {number}"
    return None


def _problem_of(sample: Sample) -> str | None:
    nearest = sample.settings.get(NEAREST) if isinstance(sample.settings, dict) else "none"
    if nearest is not None and (not isinstance(nearest, int | float) or isinstance(nearest, bool)):
        return "the settings"
    if sample.prompt_embedding is not None and len(sample.prompt_embedding) != PROMPT_DIM:
        return "the prompt"
    if sample.preview is not None:
        try:
            with Image.open(io.BytesIO(sample.preview), formats=("PNG", "JPEG")) as image:
                if max(image.size) > PREVIEW_SIDE:
                    return "the preview"
                image.load()
        except (OSError, ValueError, SyntaxError):
            return "the preview"
    return None


def _samples(tensors: Mapping[str, Tensor]) -> Iterator[Sample]:
    seeds = tensors["seed"].numpy().view(np.uint64)
    starts = {name: 0 for name in RAGGED}
    for i, seed in enumerate(seeds):
        part: dict[str, Any] = {}
        for name in RAGGED:
            end = int(tensors[f"{name}_end"][i])
            part[name], starts[name] = tensors[name][starts[name]:end], end
        yield Sample(
            content_hash=tensors["content_hash"][i].numpy().tobytes().hex(),
            embedding=tensors["embedding"][i], seed=int(seed),
            prompt_embedding=part["prompt"].float() if len(part["prompt"]) else None,
            preview=part["preview"].numpy().tobytes() or None,
            settings=_parsed(part["settings"].numpy().tobytes()))


def _parsed(settings: bytes) -> Any:
    """None where it is no JSON, or has numbers that are not finite."""
    def refuse(number: str) -> None:
        raise ValueError(number)

    try:
        return json.loads(settings, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
