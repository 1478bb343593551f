"""Statements on the tables of the memory log, but for `stream` inside the caller's transaction.

`row` is a row of the memory table throughout, `sizes` maps revisions of samples to payload bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Delete,
    Row,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from .database import Database
from .entry import to_ranges
from .schema import STILL_LIVE, entry, memory, payload

EVERYTHING = (*entry.c, payload.c.embedding, payload.c.prompt_embedding, payload.c.preview)
EMBEDDING = (entry.c.revision, entry.c.dropped_time, entry.c.dropped_reason, payload.c.embedding)
PAGE_ROWS = 500  # rows of a query; bounds memory, and the variables of a statement


def find(connection: Connection, name: str, lock: bool = False) -> Row | None:
    """The memory of that name; with `lock`, no other process writes to it until the commit."""
    query = select(memory).where(memory.c.name == name)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def create(connection: Connection, name: str, feature_space: str, dim: int) -> Row:
    """A new empty memory, locked; the existing one if another process was faster."""
    try:
        with connection.begin_nested():
            connection.execute(insert(memory).values(
                name=name, feature_space=feature_space, dim=dim, created=now(), log_length=0,
                samples=0, live_samples=0, live_bytes=0, stored_bytes=0))
    except IntegrityError:
        pass
    return find(connection, name, lock=True)


def alive(at: int) -> ColumnElement[bool]:
    """Condition: a sample that is alive at revision `at`."""
    return and_(entry.c.revision <= at, entry.c.forgotten_at > at)


def stream(database: Database, row: Row | None, columns: Sequence[Column],
           condition: ColumnElement[bool], after: int = 0) -> Iterator[Row]:
    """Log rows in order, each page in a transaction of its own; `columns` has the revision."""
    while row is not None:
        with database.read() as connection:
            page = connection.execute(
                select(*columns).select_from(entry.outerjoin(payload))
                .where(entry.c.memory_id == row.id, entry.c.revision > after, condition)
                .order_by(entry.c.revision).limit(PAGE_ROWS)).all()
        yield from page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1].revision


def live_revisions(connection: Connection, row: Row, at: int) -> list[int]:
    """Samples alive at revision `at`, ascending."""
    return list(connection.scalars(
        select(entry.c.revision).where(entry.c.memory_id == row.id, alive(at))
        .order_by(entry.c.revision)))


def live_hashes(connection: Connection, row: Row, hashes: Sequence[str]) -> set[str]:
    """Those of the content hashes that belong to live samples."""
    return {found for chunk in _chunks(hashes) for found in connection.scalars(
        select(entry.c.content_hash).where(
            entry.c.memory_id == row.id, entry.c.content_hash.in_(chunk),
            entry.c.forgotten_at == STILL_LIVE))}


def live_sizes(connection: Connection, row: Row, limit: int | None = None) -> dict[int, int]:
    """The newest live samples, or all."""
    return dict(map(tuple, connection.execute(
        select(entry.c.revision, entry.c.size_bytes)
        .where(entry.c.memory_id == row.id, entry.c.forgotten_at == STILL_LIVE)
        .order_by(entry.c.revision.desc()).limit(limit))))


def live_sizes_of(connection: Connection, row: Row, revisions: Sequence[int]) -> dict[int, int]:
    """Those of the revisions that are live samples."""
    return {found.revision: found.size_bytes for chunk in _chunks(revisions)
            for found in connection.execute(
                select(entry.c.revision, entry.c.size_bytes).where(
                    entry.c.memory_id == row.id, entry.c.revision.in_(chunk),
                    entry.c.forgotten_at == STILL_LIVE))}


def stored(connection: Connection, row: Row, live: bool) -> Iterable[Row]:
    """(revision, size_bytes) of the live samples, oldest first, or of the forgotten ones that still
    have their payloads, in the order of forgetting."""
    return connection.execute(
        select(entry.c.revision, entry.c.size_bytes)
        .where(entry.c.memory_id == row.id, entry.c.dropped_time.is_(None),
               entry.c.forgotten_at == STILL_LIVE if live else entry.c.forgotten_at < STILL_LIVE)
        .order_by(entry.c.forgotten_at, entry.c.revision))


def append(connection: Connection, row: Row,
           samples: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> int:
    """Append encoded samples to the locked memory; its new revision."""
    if not samples:
        return row.log_length
    common = {"kind": "sample", "time": now(), "forgotten_at": STILL_LIVE}
    entries, payloads = [], []
    for revision, (columns, parts) in enumerate(samples, row.log_length + 1):
        key = {"memory_id": row.id, "revision": revision}
        entries.append({**key, **common, **columns})
        payloads.append({**key, **parts})
    connection.execute(insert(entry), entries)
    connection.execute(insert(payload), payloads)
    size = sum(columns["size_bytes"] for columns, _ in samples)
    _count(connection, row, log_length=len(samples), samples=len(samples),
           live_samples=len(samples), live_bytes=size, stored_bytes=size)
    return row.log_length + len(samples)


def forget(connection: Connection, row: Row | None, sizes: Mapping[int, int], reason: str) -> int:
    """Append the row that forgets these live samples, if any; the new revision."""
    if row is None or not sizes:
        return row.log_length if row else 0
    revision, ranges = row.log_length + 1, to_ranges(sorted(sizes))
    connection.execute(insert(entry).values(
        memory_id=row.id, revision=revision, kind="forget", time=now(),
        forgotten=json.dumps(ranges), reason=reason))
    _execute_ranges(connection, row, ranges, entry, update(entry).values(forgotten_at=revision))
    _count(connection, row, log_length=1, live_samples=-len(sizes),
           live_bytes=-sum(sizes.values()))
    return revision


def drop(connection: Connection, row: Row | None, sizes: Mapping[int, int], reason: str) -> None:
    """Delete the payloads of forgotten samples; their entries keep the time and the reason."""
    if row is None or not sizes:
        return
    ranges = to_ranges(sorted(sizes))
    _execute_ranges(connection, row, ranges, entry,
                    update(entry).values(dropped_time=now(), dropped_reason=reason))
    _execute_ranges(connection, row, ranges, payload, delete(payload))
    _count(connection, row, stored_bytes=-sum(sizes.values()))


def time_of(connection: Connection, row: Row, revision: int) -> datetime:
    """When the entry was appended."""
    return connection.scalar(select(entry.c.time).where(
        entry.c.memory_id == row.id, entry.c.revision == revision))


def first_whole_revision(connection: Connection, row: Row) -> int:
    """From this revision on, no revision needs a payload that was dropped."""
    return connection.scalar(select(func.max(entry.c.forgotten_at)).where(
        entry.c.memory_id == row.id, entry.c.dropped_time.is_not(None)))


def now() -> datetime:
    return datetime.now(timezone.utc)


def _execute_ranges(connection: Connection, row: Row, ranges: Sequence[tuple[int, int]],
                    table: Table, statement: Update | Delete) -> None:
    """Execute for the memory's rows of `table` in inclusive ranges of revisions."""
    connection.execute(
        statement.where(table.c.memory_id == row.id,
                        table.c.revision.between(bindparam("first"), bindparam("last"))),
        [{"first": first, "last": last} for first, last in ranges])


def _count(connection: Connection, row: Row, **changes: int) -> None:
    connection.execute(update(memory).where(memory.c.id == row.id).values(
        {memory.c[name]: memory.c[name] + change for name, change in changes.items()}))


def _chunks(items: Sequence) -> Iterator[Sequence]:
    return (items[i:i + PAGE_ROWS] for i in range(0, len(items), PAGE_ROWS))
