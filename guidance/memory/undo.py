"""Taking back a forgetting. The log is append-only: what comes back comes as new samples."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Row, insert, literal, select, update

from . import rows
from .database import Database
from .entry import to_ranges
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
        for forgotten in _forgettings(connection, row):
            numbers, dropped = _restorable(connection, row, forgotten)
            if numbers:
                return Restored(row.log_length + len(numbers),
                                _append_again(connection, row, numbers), dropped)
            lost = lost or dropped
        return Restored(row.log_length, (), lost)


def _forgettings(connection: Connection, row: Row) -> list[int]:
    """Revisions of the forget rows that a person asked for, newest first."""
    return list(connection.scalars(
        select(entry.c.revision).where(
            entry.c.memory_id == row.id, entry.c.kind == "forget",
            entry.c.reason.startswith(BY_USER))
        .order_by(entry.c.revision.desc())))


def _restorable(connection: Connection, row: Row, forgotten_at: int) -> tuple[list[int], int]:
    """Numbers of what a forget row took and can come back, and how many have lost their data."""
    live = entry.alias()
    again = select(live.c.revision).where(
        live.c.memory_id == row.id, live.c.content_hash == entry.c.content_hash,
        live.c.forgotten_at == STILL_LIVE).exists()
    found = connection.execute(
        select(entry.c.revision, entry.c.dropped_time)
        .where(entry.c.memory_id == row.id, entry.c.forgotten_at == forgotten_at, ~again)
        .order_by(entry.c.revision)).all()
    numbers = [one.revision for one in found if one.dropped_time is None]
    return numbers, len(found) - len(numbers)


def _append_again(connection: Connection, row: Row, numbers: list[int]) -> tuple[int, ...]:
    """Copies samples to the end of the locked log, in the database; their new numbers."""
    end = row.log_length
    for first, last in to_ranges(numbers):
        offset = end + 1 - first
        for table, new in ((entry, {"forgotten_at": STILL_LIVE}), (payload, {})):
            new = {"revision": table.c.revision + offset} | {
                column: literal(value) for column, value in new.items()}
            connection.execute(insert(table).from_select(
                [column.name for column in table.c],
                select(*(new.get(column.name, column) for column in table.c)).where(
                    table.c.memory_id == row.id, table.c.revision.between(first, last))))
        end += last + 1 - first
    copied = entry.c.revision.between(row.log_length + 1, end)
    size = sum(connection.scalars(
        select(entry.c.size_bytes).where(entry.c.memory_id == row.id, copied)))
    connection.execute(update(memory).where(memory.c.id == row.id).values(
        log_length=end, samples=memory.c.samples + len(numbers),
        live_samples=memory.c.live_samples + len(numbers),
        live_bytes=memory.c.live_bytes + size, stored_bytes=memory.c.stored_bytes + size))
    return tuple(range(row.log_length + 1, end + 1))
