"""The append-only log of generated samples that novelty guidance remembers.

One database holds many named memories. The *revision* of a memory is the length of its log: every
row has the next number, samples and forget rows alike, and an empty memory is at revision 0. What a
revision holds never changes, so whatever is derived from (log, revision) can be derived again; but
eviction and compaction drop payloads, and a revision that needs one raises RevisionGoneError.

Threads and processes may share a database: a writer holds the memory's lock for its transaction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from sqlalchemy import URL, Column, Row, select
from torch import Tensor

from . import cap, rows
from .database import Database
from .entry import Entry, Sample, decode_entry, encode_sample
from .errors import (
    FeatureSpaceError,
    MemoryLogError,
    RevisionError,
    RevisionGoneError,
    SampleError,
)
from .schema import entry, memory

@dataclass(frozen=True)
class AppendResult:
    """New samples are at revisions first..last; `last_revision` is always the new end of the log.

    If every sample was a duplicate, nothing was appended and last = first - 1.
    """

    first_revision: int
    last_revision: int
    duplicates: tuple[str, ...]  # content hashes that were live already, or twice in the call


@dataclass(frozen=True)
class MemoryStats:
    """What a memory holds. Bytes are of payloads; the total includes those of forgotten samples."""

    name: str
    feature_space: str | None = None
    revision: int = 0
    live_samples: int = 0
    forgotten_samples: int = 0
    live_bytes: int = 0
    total_bytes: int = 0
    first_time: datetime | None = None  # of the log's first and last rows
    last_time: datetime | None = None

    def __str__(self) -> str:
        return (f'"{self.name}" at revision {self.revision}: {self.live_samples} samples, '
                f"{self.live_bytes / 2 ** 20:.1f} MB, {self.forgotten_samples} forgotten, "
                f"feature space {self.feature_space or 'not set'}")


class MemoryLog:
    """All memories of one database; `url` is an SQLAlchemy URL, or the Path of an SQLite file.

    Creates or migrates the database. Raises StorageError, here and in every method of a Memory, if
    it cannot be opened, read or written.
    """

    def __init__(self, url: str | URL | Path):
        self.database = Database(url)

    def names(self) -> list[str]:
        """Names of the memories that something was appended to."""
        with self.database.read() as connection:
            return list(connection.scalars(select(memory.c.name).order_by(memory.c.name)))

    def memory(self, name: str) -> Memory:
        """The memory of that name; it enters the database with its first sample."""
        return Memory(self.database, name)

    def close(self) -> None:
        """Close idle connections. Not needed for SQLite, which keeps none."""
        self.database.close()

    def __repr__(self) -> str:
        return f"<MemoryLog {self.database}>"


class Memory:
    """One named log. A handle without state of its own: cheap to make, safe to share."""

    def __init__(self, database: Database, name: str):
        if not re.fullmatch(r"(?! )[\w .-]{1,64}(?<! )", name):
            raise MemoryLogError(
                f'"{name}" cannot name a memory. A name has 1 to 64 letters, digits, spaces, '
                "underscores, hyphens and dots, and no space at either end. Choose such a name.")
        self.name = name
        self._database = database

    @property
    def feature_space(self) -> str | None:
        """The feature space of the first sample; None before it."""
        row = self._row()
        return row.feature_space if row else None

    @property
    def revision(self) -> int:
        """The length of the log."""
        row = self._row()
        return row.log_length if row else 0

    def stats(self) -> MemoryStats:
        """Counts and sizes, without a scan."""
        row = self._row()
        if row is None:
            return MemoryStats(self.name)
        with self._database.read() as connection:
            first, last = (rows.time_of(connection, row, revision)
                           for revision in (1, row.log_length))
        return MemoryStats(
            self.name, row.feature_space, row.log_length, row.live_samples,
            row.samples - row.live_samples, row.live_bytes, row.stored_bytes, first, last)

    def __repr__(self) -> str:
        return f"<Memory {self.stats()}>"

    # Reading. What a revision holds is fixed, so pages are read in transactions of their own: no
    # lock is held and no cursor is open while the caller computes.

    def entries(self, after: int = 0, upto: int | None = None) -> Iterator[Entry]:
        """Log rows after < revision <= upto (default: the last) in order, streamed.

        Samples whose payloads were dropped come without them, see Entry. Raises RevisionError.
        """
        row, upto = self._resolve(upto)
        self._resolve(after)
        return (decode_entry(found) for found in rows.stream(
            self._database, row, rows.EVERYTHING, entry.c.revision <= upto, after))

    def samples(self, at: int | None = None) -> Iterator[Entry]:
        """Samples alive at revision `at` (default: the last) in order, streamed.

        Raises RevisionError at once, and RevisionGoneError at the first sample that lacks its
        payloads.
        """
        row, at = self._resolve(at)
        return (decode_entry(found) for found in self._stream_alive(row, rows.EVERYTHING, at))

    def live(self, at: int | None = None) -> list[int]:
        """Revisions of the samples alive at revision `at` (default: the last), ascending."""
        row, at = self._resolve(at)
        with self._database.read() as connection:
            return rows.live_revisions(connection, row, at) if row else []

    def known(self, hashes: Sequence[str]) -> set[str]:
        """Those of the content hashes that live samples have."""
        row = self._row()
        with self._database.read() as connection:
            return rows.live_hashes(connection, row, hashes) if row else set()

    def embeddings(self, at: int | None = None) -> tuple[list[int], Tensor]:
        """Revisions and embeddings `[n, dim]`, float32, of the samples alive at revision `at`.

        An empty memory gives `[0, dim]`, or `[0, 0]` before its first sample. Raises RevisionError
        and RevisionGoneError.
        """
        row, at = self._resolve(at)
        revisions = self.live(at)
        embeddings = torch.empty(len(revisions), row.dim if row else 0)
        target = embeddings.numpy()
        for i, found in enumerate(self._stream_alive(row, rows.EMBEDDING, at)):
            target[i] = np.frombuffer(found.embedding, "<f4")
        return revisions, embeddings

    # Writing

    def append(self, samples: Sequence[Sample], feature_space: str) -> AppendResult:
        """Append samples in one transaction, all or none.

        A sample whose content hash is live already, or came earlier in the call, is left out and
        reported. Raises SampleError, and FeatureSpaceError if the memory is of another space.
        """
        if not samples or not feature_space:
            raise SampleError(
                f'append was given {len(samples)} samples and feature space "{feature_space}"; '
                "expected at least one sample and a name. Skip the call when nothing is new.")
        dim = samples[0].embedding.numel()
        with self._database.write() as connection:
            row = (rows.find(connection, self.name, lock=True)
                   or rows.create(connection, self.name, feature_space, dim))
            if row.feature_space != feature_space:
                raise FeatureSpaceError(
                    f'Memory "{self.name}" is of feature space "{row.feature_space}", the samples '
                    f'are of "{feature_space}". Spaces cannot be mixed: use another memory name.')
            known = rows.live_hashes(connection, row, [s.content_hash for s in samples])
            new, duplicates = [], []
            for sample in samples:
                if sample.content_hash in known:
                    duplicates.append(sample.content_hash)
                else:
                    known.add(sample.content_hash)
                    new.append(encode_sample(sample, row.dim))
            revision = rows.append(connection, row, new)
        return AppendResult(row.log_length + 1, revision, tuple(duplicates))

    def forget(self, revisions: Sequence[int], reason: str, missing_ok: bool = False) -> int:
        """Forget live samples by their revisions; the new revision. Raises RevisionError where one
        is no live sample, unless missing_ok.

        Payloads stay until `compact`, so that earlier revisions remain what they were.
        """
        asked = sorted(set(revisions))
        with self._database.write() as connection:
            row = rows.find(connection, self.name, lock=True)
            sizes = rows.live_sizes_of(connection, row, asked) if row else {}
            missing = [revision for revision in asked if revision not in sizes]
            if missing and not missing_ok:
                shown = ", ".join(map(str, missing[:10])) + ", ..." * (len(missing) > 10)
                raise RevisionError(
                    f'Memory "{self.name}" has no live sample at revision {shown}: forgotten '
                    "already, not a sample, or not in the log. Nothing was forgotten. Choose among "
                    "the live samples.")
            return rows.forget(connection, row, sizes, reason)

    def forget_last(self, count: int) -> int:
        """Forget the `count` newest live samples, or all if there are fewer; the new revision."""
        if count < 1:
            raise MemoryLogError(f"Cannot forget the last {count} samples; give a count from 1 on.")
        return self._forget_newest(count, f"user: last {count}")

    def forget_all(self) -> int:
        """Forget every live sample; the new revision. The feature space stays."""
        return self._forget_newest(None, "user: all")

    def enforce_cap(self, max_bytes: int, when_full: str = "oldest") -> list[int]:
        """Drop payloads until the memory holds at most `max_bytes`; the revisions newly forgotten.

        Payloads of samples that were forgotten before go first, in the order of forgetting. If that
        is not enough, live samples are forgotten, by a row whose reason is the cap, and their
        payloads go; which ones, see cap.py. Freed space serves later samples; `compact` shrinks the
        file.
        """
        row = self._row()
        if row is None or row.stored_bytes <= max_bytes:
            return []  # nothing to write, and so no wait for the disk
        with self._database.write() as connection:
            row = rows.find(connection, self.name, lock=True)
            return cap.enforce(connection, row, max_bytes, when_full)

    def compact(self) -> int:
        """Drop the payloads of all forgotten samples and shrink the file; the bytes dropped."""
        with self._database.write() as connection:
            row = rows.find(connection, self.name, lock=True)
            if row is None:
                return 0
            sizes = dict(map(tuple, rows.stored(connection, row, live=False)))
            rows.drop(connection, row, sizes, "compacted by the user")
        self._database.shrink()
        return sum(sizes.values())

    def _row(self) -> Row | None:
        with self._database.read() as connection:
            return rows.find(connection, self.name)

    def _resolve(self, at: int | None) -> tuple[Row | None, int]:
        """The memory's row and the revision meant. Raises RevisionError."""
        row = self._row()
        last = row.log_length if row else 0
        if at is not None and not 0 <= at <= last:
            raise RevisionError(
                f'Memory "{self.name}" has no revision {at}: it has revisions 0 to {last}. Choose '
                "one of these, or the latest.")
        return row, last if at is None else at

    def _forget_newest(self, count: int | None, reason: str) -> int:
        with self._database.write() as connection:
            row = rows.find(connection, self.name, lock=True)
            sizes = rows.live_sizes(connection, row, count) if row else {}
            return rows.forget(connection, row, sizes, reason)

    def _stream_alive(self, row: Row | None, columns: Sequence[Column], at: int) -> Iterator[Row]:
        """Samples alive at a revision. Raises RevisionGoneError if a payload was dropped."""
        for found in rows.stream(
                self._database, row, columns, rows.alive(at)):
            if found.dropped_time is not None:
                with self._database.read() as connection:
                    whole = rows.first_whole_revision(connection, row)
                raise RevisionGoneError(
                    f'Revision {at} of memory "{self.name}" needs the sample of revision '
                    f"{found.revision}, which was dropped on {found.dropped_time:%Y-%m-%d %H:%M} "
                    f"UTC ({found.dropped_reason}). Choose revision {whole} or later, or the "
                    "latest.")
            yield found
