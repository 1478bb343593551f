"""The database under the memory log: transactions, locks, and errors that say what to do."""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from . import schema
from .errors import StorageError

log = logging.getLogger("uncommon")
BUSY_SECONDS = 30
POSTGRES_SCHEMA_LOCK = 0x756E636F6D6D6F6E  # "uncommon"

ADVICE = {  # SQLite's fixed error texts -> what they mean and what to do
    "file is not a database":
        "Nothing was changed. Move the file away to start an empty log, or choose another path.",
    "disk image is malformed":
        "The file is damaged. Nothing was changed. Restore a backup, or move the file away and "
        "rescue what it holds with `sqlite3 FILE .recover`.",
    "unable to open database file":
        "Choose the path of a file in a folder that this user may write to.",
    "readonly database":
        "Give this user write permission for the file and its folder, or choose another path.",
    "disk is full":
        "Nothing of this call was stored, all earlier samples are safe. Free some space and try "
        "again.",
    "disk I/O error":
        "The disk failed or is full. Nothing of this call was stored. Check the disk and its free "
        "space, and try again.",
    "no such table":
        "The file was deleted or replaced while in use. Put it back, or restart to begin an empty "
        "log.",
    "database is locked":
        f"Another process kept it for {BUSY_SECONDS} seconds. Nothing of this call was stored. Try "
        "again when that process has finished.",
}
OTHER_ADVICE = ("Nothing of this call was stored. Check that the database runs, can be reached, "
                "and lets this user create tables.")


class Database:
    """An SQLAlchemy database that holds the memory tables. Safe to share between threads.

    `url` is any SQLAlchemy URL, or the Path of an SQLite file, whose folders are made. The schema
    is created or migrated at once. Every failure of the database is raised as StorageError.
    """

    def __init__(self, url: str | URL | Path):
        self.url = _parse(url)
        sqlite = self.url.get_backend_name() == "sqlite"
        if sqlite:
            self._make_folder()
        # An SQLite connection costs little and, closed, leaves one file without companions; a
        # server's connections are pooled, and tested before use because servers restart.
        options = ({"poolclass": NullPool, "connect_args": {"timeout": BUSY_SECONDS}} if sqlite
                   else {"pool_pre_ping": True})
        try:
            self.engine = create_engine(self.url, **options)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise StorageError(
                f"{self} cannot be used: {error}. Install the driver that the URL names into the "
                f"Python that runs this (for PostgreSQL: pip install psycopg[binary]), or use "
                f"sqlite:///FILE.") from error
        self._writer = self.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        if sqlite:
            event.listen(self.engine, "connect", _sqlite_connect)
            event.listen(self.engine, "begin", _sqlite_begin)
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"),
                                   {"key": POSTGRES_SCHEMA_LOCK})
            try:
                migrated = schema.migrate(connection, schema.MIGRATIONS)
            except schema.NewerSchema as error:
                raise StorageError(
                    f"{self} has {error} which this code knows: a later release wrote it. Nothing "
                    "was changed. Update this node pack, or use another database.") from error
        if migrated:
            try:
                self.shrink()
            except StorageError as error:  # in use elsewhere: later samples take the space
                log.warning("A migration freed space that the file keeps for now: %s", error)

    def __str__(self) -> str:
        """As errors name it; never shows a password."""
        if self.url.get_backend_name() == "sqlite":
            return f'The memory database "{self.url.database}"'
        return f"The memory database {self.url.render_as_string(hide_password=True)}"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._explained(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: committed whole at the end of the block, or not at all.

        On SQLite it excludes all other writers from its start; elsewhere lock rows FOR UPDATE.
        """
        with self._explained(), self._writer.begin() as connection:
            yield connection

    def shrink(self) -> None:
        """Give the space of deleted rows back to the file system. SQLite only; servers do it."""
        if self.engine.dialect.name == "sqlite":
            engine = self.engine.execution_options(sqlite_begin="")  # not allowed in a transaction
            with self._explained(), engine.connect() as connection:
                connection.exec_driver_sql("VACUUM")

    def close(self) -> None:
        """Close pooled connections; the object reconnects when used again."""
        self.engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, PoolTimeout) as error:
            cause = getattr(error, "orig", None) or error
            message = str(cause).strip()
            advice = next((advice for key, advice in ADVICE.items() if key in message),
                          OTHER_ADVICE)
            raise StorageError(f"{self} failed: {message}. {advice}") from error

    def _make_folder(self) -> None:
        path = self.url.database
        if not path or path == ":memory:" or path.startswith("file:"):
            raise StorageError(
                f"{self.url} names no file: a memory log must outlive its connections. "
                "Use sqlite:///FILE.")
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self} failed: {error}. "
                               f"{ADVICE['unable to open database file']}") from error


def _parse(url: str | URL | Path) -> URL:
    if isinstance(url, Path):
        return URL.create("sqlite", database=str(url))
    try:
        return make_url(url)
    except ArgumentError as error:
        shown = re.sub(":[^:@]*@", ":***@", str(url))
        raise StorageError(
            f'"{shown}" is not a database URL. Use sqlite:///FILE or '
            "postgresql://USER:PASSWORD@HOST/DATABASE.") from error


# SQLite only: pragmas and the kind of BEGIN.

def _sqlite_connect(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # the driver shall not begin transactions: _sqlite_begin does
    connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            # Readers and a writer do not wait for each other.
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # In a new file this pragma, unlike others, does not wait for those who open it too.
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(.02)


def _sqlite_begin(connection: Connection) -> None:
    # A reader that turns writer can fail at once under WAL, so writers lock from the start.
    begin = connection.get_execution_options().get("sqlite_begin", "BEGIN")
    if begin:
        connection.exec_driver_sql(begin)
