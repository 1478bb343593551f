"""What a person sees of memories: their sizes, the numbers of their samples, and single samples.

A sample's *number* is its revision. What a number stands for never changes, so a reader may keep
what it read; only which numbers are live changes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence

import numpy as np
from sqlalchemy import Row, select

from . import rows
from .bank import NEAREST
from .database import Database
from .errors import RevisionError
from .schema import STILL_LIVE, entry, memory, payload

PAGE = 200  # samples of one call
COLUMNS = (entry.c.revision, entry.c.time, entry.c.seed, entry.c.settings, entry.c.size_bytes,
           payload.c.prompt_embedding, payload.c.preview)
TOLD = {"revision": "guided_at", "memory": "guided_by", "strength": "strength", "radius": "radius",
        "repulsion": "repulsion", "source": "source", "prompt_id": "prompt_id", "item": "item"}


def summaries(database: Database) -> list[dict]:
    """name, revision, samples, forgotten and bytes of every memory, by name; no log is scanned."""
    with database.read() as connection:
        return [{"name": row.name, "revision": row.log_length, "samples": row.live_samples,
                 "forgotten": row.samples - row.live_samples, "bytes": row.live_bytes,
                 "stored_bytes": row.stored_bytes, "feature_space": row.feature_space}
                for row in connection.execute(select(memory).order_by(memory.c.name))]


def live_numbers(database: Database, name: str) -> tuple[int, np.ndarray]:
    """A memory's latest revision, and the numbers of the samples that it holds: int32 `[n]`,
    ascending. An unknown memory is empty."""
    with database.read() as connection:
        row = rows.find(connection, name)
        if row is None:
            return 0, np.empty(0, np.int32)
        return row.log_length, np.array(rows.live_revisions(connection, row, row.log_length),
                                        np.int32)


def samples(database: Database, name: str, numbers: Sequence[int]) -> list[dict]:
    """The live ones of at most PAGE samples, newest first, ready for JSON.

    seed: as text, because it may exceed 2^53; nearest: distance to the nearest sample before it,
    None for the first; prompt: a fingerprint that equal prompts share; preview: a data URL, or
    None; the other settings are there where the sample has them. Raises RevisionError.
    """
    if not 1 <= len(numbers) <= PAGE:
        raise RevisionError(f"{len(numbers)} samples were asked for; expected 1 to {PAGE} numbers.")
    with database.read() as connection:
        row = rows.find(connection, name)
        if row is None:
            return []
        found = connection.execute(
            select(*COLUMNS).select_from(entry.outerjoin(payload))
            .where(entry.c.memory_id == row.id, entry.c.revision.in_(set(numbers)),
                   entry.c.forgotten_at == STILL_LIVE)
            .order_by(entry.c.revision.desc())).all()
    return [_shown(one) for one in found]


def _shown(row: Row) -> dict:
    settings = json.loads(row.settings)
    shown = {"number": row.revision, "time": row.time.isoformat(timespec="seconds"),
             "seed": row.seed, "bytes": row.size_bytes, "nearest": settings.get(NEAREST),
             "prompt": _fingerprint(row.prompt_embedding), "preview": _data_url(row.preview)}
    return shown | {told: settings[key] for key, told in TOLD.items() if key in settings}


def _fingerprint(prompt: bytes | None) -> str | None:
    """Six hex digits."""
    return None if prompt is None else hashlib.sha256(prompt).hexdigest()[:6]


def _data_url(image: bytes | None) -> str | None:
    if image is None:
        return None
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
