"""Tables of the novelty-memory log, and the migrations that bring older databases up to date.

Only portable types and statements: the same schema serves SQLite and PostgreSQL. The tables carry a
prefix because a shared database may hold other people's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    insert,
    inspect,
    select,
    text,
    update,
)

STILL_LIVE = 2 ** 31 - 1
"""`forgotten_at` of a live sample: past every revision, so that "alive at revision r" is one range,
`revision <= r < forgotten_at`, and a plain unique constraint covers live samples only."""


class UtcTime(TypeDecorator):
    """Time-zone aware UTC on every database; SQLite itself keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return None if value is None else value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, dialect):
        if value is None or value.tzinfo is None:
            return value and value.replace(tzinfo=timezone.utc)
        return value.astimezone(timezone.utc)


metadata = MetaData()

schema_version = Table(
    "novelty_schema", metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
)

# One row a memory. The counters are kept here so that no question about a memory scans its log.
memory = Table(
    "novelty_memory", metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("feature_space", Text, nullable=False),
    Column("dim", Integer, nullable=False),
    Column("created", UtcTime, nullable=False),
    Column("log_length", Integer, nullable=False),
    Column("samples", Integer, nullable=False),  # ever recorded
    Column("live_samples", Integer, nullable=False),
    Column("live_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),  # of live and of forgotten samples
)

# One row a log entry, written once, but for `forgotten_at` (an index of the forget rows) and for
# the note that the payload was dropped.
entry = Table(
    "novelty_entry", metadata,
    Column("memory_id", ForeignKey(memory.c.id), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(8), nullable=False),  # "sample" or "forget"
    Column("time", UtcTime, nullable=False),
    # of forget rows
    Column("forgotten", Text),  # JSON: [[first, last], ...], revisions of samples
    Column("reason", Text),
    # of samples
    Column("content_hash", String(64)),
    Column("seed", String(20)),  # text: the host's seeds exceed a signed 64-bit integer
    Column("settings", Text),  # JSON
    Column("size_bytes", Integer),  # of the payload
    Column("forgotten_at", Integer),
    Column("dropped_time", UtcTime),
    Column("dropped_reason", Text),
    UniqueConstraint("memory_id", "content_hash", "forgotten_at"),
    Index("novelty_entry_live", "memory_id", "revision", "forgotten_at"),
    Index("novelty_entry_stored", "memory_id", "dropped_time", "forgotten_at", "revision",
          "size_bytes"),
)

# The large part of a sample, in a table of its own: deleting whole rows frees whole pages.
payload = Table(
    "novelty_payload", metadata,
    Column("memory_id", Integer, primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("embedding", LargeBinary, nullable=False),  # float32 [dim]
    Column("prompt_embedding", LargeBinary),  # float16 [any]
    Column("preview", LargeBinary),
    ForeignKeyConstraint(["memory_id", "revision"], [entry.c.memory_id, entry.c.revision]),
)

Migration = Callable[[Connection], None]


def drop_trajectories(connection: Connection) -> None:
    """Version 2: samples have no trajectories, and no size counts them."""
    one = "novelty_payload.memory_id = novelty_entry.memory_id AND " \
          "novelty_payload.revision = novelty_entry.revision AND trajectory IS NOT NULL"
    stored = "SELECT coalesce(sum(size_bytes), 0) FROM novelty_entry WHERE " \
             "memory_id = novelty_memory.id AND kind = 'sample' AND dropped_time IS NULL"
    for statement in (
            f"UPDATE novelty_entry SET size_bytes = size_bytes - (SELECT length(trajectory) "
            f"FROM novelty_payload WHERE {one}) "
            f"WHERE EXISTS (SELECT 1 FROM novelty_payload WHERE {one})",
            f"UPDATE novelty_memory SET stored_bytes = ({stored}), "
            f"live_bytes = ({stored} AND forgotten_at = {STILL_LIVE})",
            "ALTER TABLE novelty_payload DROP COLUMN trajectory"):
        connection.execute(text(statement))


MIGRATIONS: tuple[Migration, ...] = (drop_trajectories,)
"""Item i brings version i + 1 to version i + 2. A published one is never edited."""


class NewerSchema(Exception):
    """The database was written by a later version of this code."""

    def __init__(self, found: int, known: int):
        super().__init__(f"schema version {found}, newer than version {known}")


def migrate(connection: Connection, migrations: Sequence[Migration] = MIGRATIONS) -> bool:
    """Create the tables in an empty database, or bring existing ones to the current version.
    Returns whether existing ones were changed.

    Runs inside the caller's transaction, which must exclude every other process that migrates.
    Raises NewerSchema if the database is ahead of `migrations`.
    """
    current = 1 + len(migrations)
    if not inspect(connection).has_table(schema_version.name):
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(version=current))
        return False
    found = connection.execute(select(schema_version.c.version)).scalar_one()
    if found > current:
        raise NewerSchema(found, current)
    for step in migrations[found - 1:]:
        step(connection)
    if found < current:
        connection.execute(update(schema_version).values(version=current))
    return found < current
