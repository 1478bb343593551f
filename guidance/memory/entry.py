"""What one entry of the memory log holds, and how it is stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

import numpy as np
import torch
from sqlalchemy import Row
from torch import Tensor

from .errors import SampleError
from .schema import STILL_LIVE

JSON: TypeAlias = "Mapping[str, JSON] | list[JSON] | str | int | float | bool | None"


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A generated sample as it is appended to a memory.

    The prompt embedding is stored as float16: read it back from the log rather than keep the
    original, so that a replay of the log sees the same numbers.
    """

    content_hash: str  # hex SHA-256
    embedding: Tensor  # [dim]
    prompt_embedding: Tensor | None = None  # [any]
    preview: bytes | None = None  # a small PNG or JPEG
    seed: int = 0  # below 2^64
    settings: Mapping[str, JSON]


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One row of a log. Tensors are float32 on the CPU.

    A "sample" has the fields of Sample; once its payload was dropped, `dropped_time` and
    `dropped_reason` say so, and embeddings and preview are None. A "forget" row has
    `forgotten` and `reason`.
    """

    revision: int
    kind: str  # "sample" or "forget"
    time: datetime  # UTC
    # of a sample
    content_hash: str | None = None
    embedding: Tensor | None = None  # [dim]
    prompt_embedding: Tensor | None = None  # [any]
    preview: bytes | None = None
    seed: int | None = None
    settings: Mapping[str, JSON] | None = None
    size_bytes: int = 0  # of embedding, prompt embedding and preview, as stored
    forgotten_at: int | None = None  # revision of the row that forgot it; None while live
    dropped_time: datetime | None = None
    dropped_reason: str | None = None
    # of a forget row
    forgotten: tuple[int, ...] = ()
    reason: str | None = None


def encode_sample(sample: Sample, dim: int) -> tuple[dict[str, object], dict[str, bytes | None]]:
    """The sample's columns of the entry table and of the payload table. Raises SampleError."""
    if not re.fullmatch("[0-9a-f]{64}", sample.content_hash):
        raise SampleError(f'content_hash is "{sample.content_hash}"; expected 64 hex digits, the '
                          "SHA-256 of the image.")
    if not 0 <= sample.seed < 2 ** 64:
        raise SampleError(f"seed is {sample.seed}; expected 0 to 2^64 - 1.")
    try:
        settings = json.dumps(sample.settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SampleError(f"settings cannot be stored as JSON: {error}. Use only text, finite "
                          "numbers, true, false, null, lists and mappings.") from error
    payload = {
        "embedding": _encode("embedding", sample.embedding, (dim,), "<f4"),
        "prompt_embedding": _encode("prompt_embedding", sample.prompt_embedding, ("any",), "<f2"),
        "preview": sample.preview,
    }
    columns = {
        "content_hash": sample.content_hash,
        "seed": str(sample.seed),
        "settings": settings,
        "size_bytes": sum(len(part) for part in payload.values() if part is not None),
    }
    return columns, payload


def decode_entry(row: Row) -> Entry:
    """The entry in a row of the entry table joined with the payload table."""
    if row.kind == "forget":
        return Entry(revision=row.revision, kind=row.kind, time=row.time, reason=row.reason,
                     forgotten=decode_ranges(row.forgotten))
    return Entry(
        revision=row.revision,
        kind=row.kind,
        time=row.time,
        content_hash=row.content_hash,
        embedding=_decode(row.embedding, "<f4"),
        prompt_embedding=_decode(row.prompt_embedding, "<f2"),
        preview=row.preview,
        seed=int(row.seed),
        settings=json.loads(row.settings),
        size_bytes=row.size_bytes,
        forgotten_at=None if row.forgotten_at == STILL_LIVE else row.forgotten_at,
        dropped_time=row.dropped_time,
        dropped_reason=row.dropped_reason,
    )


def to_ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as inclusive ranges: 1 2 3 7 -> (1, 3) (7, 7)."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def decode_ranges(text: str) -> tuple[int, ...]:
    """The numbers in a JSON list of inclusive ranges."""
    return tuple(n for first, last in json.loads(text) for n in range(first, last + 1))


def _encode(
    name: str, tensor: Tensor | None, shape: tuple[int | str, ...], dtype: str
) -> bytes | None:
    """Little-endian bytes of a finite tensor; a name in `shape` stands for any size from 1 on."""
    if tensor is None:
        return None
    fits = tensor.ndim == len(shape) and all(
        size > 0 and (size == expected or isinstance(expected, str))
        for size, expected in zip(tensor.shape, shape, strict=True))
    if not fits:
        expected = ", ".join(str(size) for size in shape)
        raise SampleError(f"{name} has shape {list(tensor.shape)}; expected [{expected}].")
    with np.errstate(over="ignore"):
        values = tensor.detach().to("cpu", torch.float32).numpy().astype(dtype)
    if not np.isfinite(values).all():
        limit = " or exceeds 65504, the largest float16" if dtype == "<f2" else ""
        raise SampleError(f"{name} is not finite{limit}. Leave this sample out of the memory, or "
                          "scale its values down.")
    return values.tobytes()


def _decode(stored: bytes | None, dtype: str) -> Tensor | None:
    if stored is None:
        return None
    return torch.from_numpy(np.frombuffer(stored, dtype).astype(np.float32))
