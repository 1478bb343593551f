"""Taking back a forgetting. The log is append-only: what comes back comes as new samples."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    func,
    insert,
    literal,
    select,
    update,
)

from . import rows
from .database import Database
from .schema import STILL_LIVE, entry, memory, payload

BY_USER = "user"  # how the reason of a forgetting that a person asked for begins


@dataclass(frozen=True)
class Restored:
    """revision: the new end of the log; numbers: of the samples that came back, as they are called
    now; lost: how many of that forgetting cannot come back, because their data was dropped."""

    revision: int
    numbers: tuple[int, ...]
    lost: int


def undo_forgetting(database: Database, name: str) -> Restored:
    """Appends again what the last forgetting by the user took, in one transaction.

    Called again it takes back the one before, and so on. Samples come back with their seeds, times
    and previews under new numbers; revisions before stay what they were. What is remembered again
    already is left out. Nothing to undo gives no numbers.
    """
    with database.write() as connection:
        row = rows.find(connection, name, lock=True)
        if row is None:
            return Restored(0, (), 0)
        lost = 0
        for forgotten_at in _forgettings(connection, row):
            taken = and_(entry.c.memory_id == row.id, entry.c.forgotten_at == forgotten_at,
                         ~_again())
            dropped = _count(connection, and_(taken, entry.c.dropped_time.is_not(None)))
            whole = and_(taken, entry.c.dropped_time.is_(None))
            count = _count(connection, whole)
            if count:
                _append_again(connection, row, forgotten_at, whole, count)
                end = row.log_length + count
                return Restored(end, tuple(range(row.log_length + 1, end + 1)), dropped)
            lost = lost or dropped
        return Restored(row.log_length, (), lost)


def _forgettings(connection: Connection, row: Row) -> list[int]:
    """Revisions of the forget rows that a person asked for, newest first."""
    return list(connection.scalars(
        select(entry.c.revision).where(
            entry.c.memory_id == row.id, entry.c.kind == "forget",
            entry.c.reason.startswith(BY_USER))
        .order_by(entry.c.revision.desc())))


def _again() -> ColumnElement[bool]:
    """Condition: the same sample is live."""
    live = entry.alias()
    return select(live.c.revision).where(
        live.c.memory_id == entry.c.memory_id, live.c.content_hash == entry.c.content_hash,
        live.c.forgotten_at == STILL_LIVE).exists()


def _count(connection: Connection, chosen: ColumnElement[bool]) -> int:
    return connection.scalar(select(func.count()).select_from(entry).where(chosen))


def _append_again(connection: Connection, row: Row, forgotten_at: int,
                  chosen: ColumnElement[bool], count: int) -> None:
    """Copies `count` samples to the end of the locked log, in their order, in the database."""
    position = func.row_number().over(order_by=entry.c.revision)
    new = {"revision": row.log_length + position, "forgotten_at": literal(STILL_LIVE)}
    connection.execute(insert(entry).from_select(
        [column.name for column in entry.c],
        select(*(new.get(column.name, column) for column in entry.c)).where(chosen)))
    old, copied = entry.alias(), entry.alias()
    size = connection.scalar(select(func.sum(copied.c.size_bytes)).where(
        copied.c.memory_id == row.id, copied.c.revision > row.log_length))
    connection.execute(insert(payload).from_select(
        [column.name for column in payload.c],
        select(*(copied.c.revision if column.name == "revision" else column
                 for column in payload.c))
        .select_from(copied)
        .join(old, and_(old.c.memory_id == copied.c.memory_id,
                        old.c.content_hash == copied.c.content_hash,
                        old.c.forgotten_at == forgotten_at))
        .join(payload, and_(payload.c.memory_id == old.c.memory_id,
                            payload.c.revision == old.c.revision))
        .where(copied.c.memory_id == row.id, copied.c.revision > row.log_length)))
    connection.execute(update(memory).where(memory.c.id == row.id).values(
        log_length=row.log_length + count, samples=memory.c.samples + count,
        live_samples=memory.c.live_samples + count, live_bytes=memory.c.live_bytes + size,
        stored_bytes=memory.c.stored_bytes + size))
