"""Memories of synthetic samples, as large as wanted, in the tables that the node itself writes.

A sample is what one image of a Stable Diffusion model leaves: an embedding of the real size, a
prompt, a preview of the usual size. The samples of one prompt vary along a few directions, some
more than others, and a little along all: random points without such structure would all be equally
far from one another.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from pathlib import Path

import torch
from sqlalchemy import insert, update
from torch import Tensor
from tqdm import tqdm

from benchmarks.chains import WORK
from guidance.latent_space import LatentSpace
from guidance.memory import MemoryLog, rows
from guidance.memory.bank import NEAREST
from guidance.memory.schema import STILL_LIVE, entry, memory, payload
from guidance.novelty_memory import NoveltyMemory
from guidance.prompt import PROMPT_DIM

SIZES = (10, 1_000, 100_000, 1_000_000)
NAME = "scale"
SPACE = LatentSpace("SD15", 4)
PROMPTS = 200
DIRECTIONS = 32  # along which the images of one prompt vary
PREVIEW_BYTES = 6_000  # a PNG of 64 x 64 pixels
BLOCK = 10_000  # samples that are written together
UNLIMITED = 2.0 ** 20  # megabytes


def synthetic(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Embeddings `[count, dim]` and prompts `[count, PROMPT_DIM]` of samples first, first + 1, ...

    Root mean square distances: about .9 between two prompts, .5 between two images of one.
    """
    fixed = torch.Generator().manual_seed(0)
    prompts = torch.nn.functional.normalize(torch.randn(PROMPTS, PROMPT_DIM, generator=fixed))
    subjects = torch.nn.functional.normalize(torch.randn(PROMPTS, SPACE.dim, generator=fixed))
    decay = torch.arange(1, DIRECTIONS + 1) ** -0.5
    axes = torch.randn(DIRECTIONS, SPACE.dim, generator=fixed) * decay[:, None]
    axes /= axes.norm()
    generator = torch.Generator().manual_seed(first + 1)
    prompt = torch.randint(PROMPTS, (count,), generator=generator)
    style = torch.randn(count, DIRECTIONS, generator=generator) @ axes
    detail = torch.randn(count, SPACE.dim, generator=generator) / SPACE.dim ** 0.5
    return 0.55 * subjects[prompt] + 0.35 * style + 0.1 * detail, prompts[prompt]


def opened(size: int, **options) -> NoveltyMemory:
    """The memory of this size."""
    return NoveltyMemory(url=f"sqlite:///{file(size)}", name=NAME,
                         **{"max_megabytes": UNLIMITED} | options)


def file(size: int) -> Path:
    return WORK / "scale" / f"{size}.sqlite"


def build(size: int, name: str = NAME, space_id: str = SPACE.id, dim: int = SPACE.dim) -> None:
    """Makes the memory of this size; goes on where it stopped. In another space than SPACE its
    samples are points about .5 apart."""
    log = MemoryLog(file(size))
    with log.database.write() as connection:
        if rows.find(connection, name) is None:
            rows.create(connection, name, space_id, dim)
    done = log.memory(name).revision
    with tqdm(total=size, initial=min(done, size), unit="sample", desc=f"build {size:,}") as bar:
        for first in range(done, size, BLOCK):
            count = min(BLOCK, size - first)
            samples = synthetic(first, count)
            if space_id != SPACE.id:
                points = torch.Generator().manual_seed(first)
                samples = (torch.randn(count, dim, generator=points) * (0.35 / dim ** 0.5),
                           samples[1])
            _append(log, name, samples, first)
            bar.update(count)


def _append(log: MemoryLog, name: str, samples: tuple[Tensor, Tensor], first: int) -> None:
    """Writes embeddings and prompts straight into the tables, in one transaction."""
    embedding, prompt = (part.numpy() for part in samples)
    count = len(embedding)
    generator = torch.Generator().manual_seed(first + 2)
    nearest = (0.1 + 0.5 * torch.rand(count, generator=generator)).tolist()  # made up
    preview = torch.randint(256, (count, PREVIEW_BYTES), generator=generator,
                            dtype=torch.uint8).numpy()
    settings = {"strength": 0.3, "radius": 0.22, "repulsion": "net", "item": 0,
                "prompt_id": "0f5a1c9e-5d1b-4b8e-9a55-2f7f3b8f0b1d", "node": "3"}
    with log.database.write() as connection:
        row = rows.find(connection, name, lock=True)
        entries, payloads = [], []
        for i in range(count):
            key = {"memory_id": row.id, "revision": first + i + 1}
            parts = {"embedding": embedding[i].astype("<f4").tobytes(),
                     "prompt_embedding": prompt[i].astype("<f2").tobytes(),
                     "preview": preview[i].tobytes()}
            size = sum(map(len, parts.values()))
            payloads.append(key | parts)
            entries.append(key | {
                "kind": "sample", "time": datetime.now(timezone.utc), "forgotten_at": STILL_LIVE,
                "content_hash": hashlib.sha256(parts["embedding"]).hexdigest(),
                "seed": str(first + i), "size_bytes": size,
                "settings": json.dumps(settings | {"revision": first + i, NEAREST: nearest[i]})})
        connection.execute(insert(entry), entries)
        connection.execute(insert(payload), payloads)
        connection.execute(update(memory).where(memory.c.id == row.id).values(
            log_length=first + count, samples=memory.c.samples + count,
            live_samples=memory.c.live_samples + count,
            live_bytes=memory.c.live_bytes + count * size,
            stored_bytes=memory.c.stored_bytes + count * size))
