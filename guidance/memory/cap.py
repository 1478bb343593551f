"""Which samples go when a memory outgrows its cap.

`oldest` forgets in the order of arrival. `reservoir` keeps a uniform sample of all that ever came:
the content hashes are the lots, and the samples with the greatest ones go (bottom-k sampling, Cohen
and Kaplan 2007; Vitter's reservoir, 1985, with lots that are drawn once). A SHA-256 knows nothing
of when its sample came, so each has the same chance to stay; the log alone decides, without a
random state; and two memories that are merged leave a uniform sample of both.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, Row, select

from . import rows
from .errors import MemoryLogError
from .schema import STILL_LIVE, entry

WHEN_FULL = ("oldest", "reservoir")


def enforce(connection: Connection, row: Row | None, max_bytes: int, when_full: str) -> list[int]:
    """Drops payloads of the locked memory until it fits; the revisions newly forgotten."""
    if when_full not in WHEN_FULL:
        raise MemoryLogError(f'when_full is "{when_full}"; expected one of {", ".join(WHEN_FULL)}.')
    excess = row.stored_bytes - max_bytes if row else 0
    if excess <= 0:
        return []
    reason = f"cap {max_bytes / 2 ** 20:g} MB"
    forgotten = _until(excess, rows.stored(connection, row, live=False))
    live = {}
    if (left := excess - sum(forgotten.values())) > 0:
        live = _until(left, rows.stored(connection, row, live=True) if when_full == "oldest"
                      else _by_lot(connection, row))
    rows.forget(connection, row, live, reason)
    rows.drop(connection, row, forgotten | live, reason)
    return sorted(live)


def _until(excess: int, found: Iterable[Row]) -> dict[int, int]:
    """The first samples whose sizes come to the excess, or all: revision -> bytes."""
    sizes: dict[int, int] = {}
    for sample in found:
        sizes[sample.revision] = sample.size_bytes
        excess -= sample.size_bytes
        if excess <= 0:
            break
    return sizes


def _by_lot(connection: Connection, row: Row) -> Iterable[Row]:
    """(revision, size_bytes) of the live samples, the greatest content hash first."""
    return connection.execute(
        select(entry.c.revision, entry.c.size_bytes)
        .where(entry.c.memory_id == row.id, entry.c.forgotten_at == STILL_LIVE)
        .order_by(entry.c.content_hash.desc()))
