"""Which samples of a log live when, and what they hold: read in bulk, for large memories."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from sqlalchemy import ColumnElement, Connection, Row, and_, func, select

from .database import Database
from .entry import decode_ranges
from .rows import PAGE_ROWS, find
from .schema import STILL_LIVE, entry, payload

AT_ONCE = 500  # numbers in one statement
CONTENTS = (payload.c.revision, payload.c.embedding, payload.c.prompt_embedding)


class Fates(NamedTuple):
    """Of the samples after a revision: born `[n]`, ascending, the revisions that they came with;
    gone `[n]`, those that forgot them, STILL_LIVE for most. forgotten: of samples before, by the
    revision that forgot them. last: the revision up to which all this counts."""

    born: np.ndarray
    gone: np.ndarray
    forgotten: dict[int, tuple[int, ...]]
    last: int


def fates(database: Database, name: str, after: int) -> Fates:
    """What became of samples since revision `after`. Takes about a second per million samples."""
    with database.read() as connection:
        row = find(connection, name)
        last = row.log_length if row else 0
        if last <= after:
            return Fates(np.empty(0, np.int32), np.empty(0, np.int32), {}, last)
        new = and_(entry.c.memory_id == row.id, entry.c.revision > after)
        runs = _runs(connection, and_(new, entry.c.forgotten_at == STILL_LIVE))
        died = connection.execute(select(entry.c.revision, entry.c.forgotten_at).where(
            new, entry.c.forgotten_at < STILL_LIVE)).all()
        forgotten = {found.revision: decode_ranges(found.forgotten)
                     for found in connection.execute(
                         select(entry.c.revision, entry.c.forgotten).where(
                             new, entry.c.forgotten_at.is_(None)))} if after else {}
    alive = [np.arange(first, end + 1, dtype=np.int32) for first, end in runs]
    born = np.concatenate([*alive, np.array([r.revision for r in died], np.int32)])
    gone = np.concatenate([*(np.full_like(run, STILL_LIVE) for run in alive),
                           np.array([r.forgotten_at for r in died], np.int32)])
    order = born.argsort()
    return Fates(born[order], gone[order], forgotten, last)


def _runs(connection: Connection, condition: ColumnElement[bool]) -> Sequence[Row]:
    """The revisions of entries as runs without a gap, (first, last): so that a million of them are
    one row, and not a million."""
    gap = (entry.c.revision - func.row_number().over(order_by=entry.c.revision)).label("gap")
    found = select(entry.c.revision, gap).where(condition).subquery()
    return connection.execute(select(func.min(found.c.revision), func.max(found.c.revision))
                              .group_by(found.c.gap)).all()


def any_dropped(database: Database, name: str, at: int) -> bool:
    """Whether a sample that lives at revision `at` has lost its data."""
    with database.read() as connection:
        row = find(connection, name)
        return row is not None and connection.execute(
            select(entry.c.revision).where(
                entry.c.memory_id == row.id, entry.c.dropped_time.is_not(None),
                entry.c.forgotten_at > at, entry.c.revision <= at).limit(1)).first() is not None


def contents(database: Database, name: str, first: int, last: int) -> Iterator[Sequence[Row]]:
    """Revision, embedding and prompt embedding, as stored, of the samples from revision `first` to
    `last` that have them, page by page."""
    while True:
        with database.read() as connection:
            row = find(connection, name)
            page = connection.execute(
                select(*CONTENTS).where(payload.c.memory_id == row.id,
                                       payload.c.revision.between(first, last))
                .order_by(payload.c.revision).limit(PAGE_ROWS)).all() if row else []
        yield page
        if len(page) < PAGE_ROWS:
            return
        first = page[-1].revision + 1


def some_contents(database: Database, name: str, revisions: Sequence[int]
                  ) -> Iterator[Sequence[Row]]:
    """The same of the samples with these revisions, which ascend."""
    for start in range(0, len(revisions), AT_ONCE):
        with database.read() as connection:
            row = find(connection, name)
            page = connection.execute(
                select(*CONTENTS).where(payload.c.memory_id == row.id,
                                       payload.c.revision.in_(revisions[start:start + AT_ONCE]))
                .order_by(payload.c.revision)).all() if row else []
        yield page


def settings(database: Database, name: str, first: int, last: int) -> dict[int, dict]:
    """The settings of the samples from revision `first` to `last`, by revision."""
    with database.read() as connection:
        row = find(connection, name)
        return {found.revision: json.loads(found.settings) for found in connection.execute(
            select(entry.c.revision, entry.c.settings).where(
                entry.c.memory_id == row.id, entry.c.revision.between(first, last),
                entry.c.settings.is_not(None)))} if row else {}
