"""Images with their minority scores, on disk: scored once, by content, and found again.

A set is one file. It belongs to one way of scoring: the settings, and what the scorer answers to a
fixed image (`minority_score.MinorityScorer.answer`), which tells models, prompts and VAEs apart.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from sqlalchemy import (
    URL,
    Column,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    NullPool,
    String,
    Table,
    Text,
    create_engine,
    event,
    select,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from torch import Tensor

from .minority_score import same_answer

VERSION = 1
BUSY_SECONDS = 30
LOOKUP = 500  # values in one question; SQLite takes up to 999

metadata = MetaData()
about = Table("scored_set", metadata, Column("key", String(16), primary_key=True),
              Column("value", Text, nullable=False))
image = Table(
    "scored_image", metadata,
    Column("id", Integer, primary_key=True),
    Column("content_hash", String(64), nullable=False, unique=True),
    Column("score", Float, nullable=False),
)
# In a table of its own: reading scores shall not read these.
latent = Table(
    "scored_latent", metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("values", LargeBinary, nullable=False),  # float16, as the sampler sees latents
    Column("shape", String(64), nullable=False),
)
# Files whose content is known, so that a later run need not read them.
known_file = Table(
    "scored_file", metadata,
    Column("path", Text, primary_key=True),
    Column("stamp", String(64), nullable=False),
    Column("content_hash", String(64), nullable=False),
)


class ScoredSetError(ValueError):
    """A set that cannot be read or written, or does not hold what was asked for."""


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How images were scored. space, channels: of the latents; size: (width, height) in pixels;
    log_snr: the model's log SNR at percent 0, 1/64, ... 1, within [-10, 10]."""

    space: str
    channels: int
    distance: str
    sigma: float
    draws: int
    seed: int
    size: tuple[int, int]
    log_snr: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The same for the same settings; log_snr is the model's and not among them."""
        chosen = asdict(self)
        del chosen["log_snr"]
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Scored:
    """One image to keep; latent: `[channels, ...]` as the sampler sees it; path, stamp: of its
    file, and what changes when the file does."""

    content_hash: str
    score: float
    latent: Tensor
    path: str = ""
    stamp: str = ""


class ScoredSet:
    """The file of one set. Safe to share between threads and processes. Raises ScoredSetError."""

    def __init__(self, path: Path, settings: ScoreSettings):
        self.path = path
        self.settings = settings
        self._engine = _engine(path)

    @classmethod
    def open(cls, folder: Path, settings: ScoreSettings, answer: Sequence[float]) -> ScoredSet:
        """The set in a folder with these settings whose scorer gave this answer; made if new."""
        for path in sorted(folder.glob(f"{settings.name}-*.sqlite")):
            found = cls(path, settings)
            kept = found._about()
            if kept and kept["version"] == VERSION and same_answer(kept["answer"], answer):
                return found
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ScoredSetError(f'Scores cannot be kept in "{folder}": {error}. Give this user '
                                 "permission to write there.") from error
        numbered = (cls(folder / f"{settings.name}-{number}.sqlite", settings)
                    for number in itertools.count())
        made = next(one for one in numbered if not one.path.exists()
                    or one._about() is None)  # interrupted while it was made
        kept = {"version": VERSION, "settings": asdict(settings), "answer": list(answer)}
        with made._transaction(make=True) as connection:
            metadata.create_all(connection)
            connection.execute(insert(about).on_conflict_do_nothing(), {
                "key": "about", "value": json.dumps(kept)})
        return made

    def scores(self, hashes: Sequence[str]) -> dict[str, float]:
        """Content hash -> score, of those that are known."""
        with self._transaction() as connection:
            return {key: score for chunk in _chunks(hashes) for key, score in connection.execute(
                select(image.c.content_hash, image.c.score)
                .where(image.c.content_hash.in_(chunk)))}

    def known_files(self, paths: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Path -> (stamp, content hash), of the files that were scored at some time."""
        given = {_as_text(path): path for path in paths}
        with self._transaction() as connection:
            return {given[path]: (stamp, key) for chunk in _chunks([*given])
                    for path, stamp, key in connection.execute(
                        select(known_file).where(known_file.c.path.in_(chunk)))}

    def note_files(self, files: Iterable[tuple[str, str, str]]) -> None:
        """Notes (path, stamp, content hash) of files whose content is scored already."""
        with self._transaction() as connection:
            for path, stamp, key in files:
                note = {"stamp": stamp, "content_hash": key}
                connection.execute(insert(known_file).values(path=_as_text(path), **note)
                                   .on_conflict_do_update(index_elements=["path"], set_=note))

    def add(self, scored: Sequence[Scored]) -> None:
        """Keeps images, all or none; what is known stays as it is."""
        with self._transaction() as connection:
            for one in scored:
                new = connection.execute(insert(image).values(
                    content_hash=one.content_hash, score=one.score).on_conflict_do_nothing())
                if new.rowcount == 1:
                    values = one.latent.detach().cpu().to(torch.float16).contiguous().numpy()
                    connection.execute(insert(latent).values(
                        id=new.inserted_primary_key[0], values=values.tobytes(),
                        shape=",".join(map(str, values.shape))))
        self.note_files((one.path, one.stamp, one.content_hash) for one in scored if one.path)

    def latents(self, hashes: Sequence[str]) -> Tensor:
        """`[k, channels, ...]`, float32, in the order of the hashes, which may repeat."""
        found: dict[str, Tensor] = {}
        with self._transaction() as connection:
            for chunk in _chunks(sorted({*hashes})):
                rows = connection.execute(
                    select(image.c.content_hash, latent.c["values"], latent.c.shape)
                    .join(latent, latent.c.id == image.c.id)
                    .where(image.c.content_hash.in_(chunk)))
                for key, values, shape in rows:
                    array = np.frombuffer(values, np.float16).astype(np.float32)
                    found[key] = torch.from_numpy(array.reshape([*map(int, shape.split(","))]))
        if missing := {*hashes} - {*found}:
            raise ScoredSetError(f'"{self.path}" lacks {len(missing)} of the images that were '
                                 "scored. Run Minority Score again.")
        shapes = sorted({tuple(found[key].shape) for key in hashes})
        if len(shapes) > 1:
            raise ScoredSetError(
                f"The scored images have latents of {len(shapes)} sizes, such as {shapes[0]} and "
                f"{shapes[-1]}, and one size is needed. Set width and height in Minority Score.")
        return torch.stack([found[key] for key in hashes])

    def _about(self) -> dict | None:
        with self._transaction() as connection:
            if not connection.dialect.has_table(connection, about.name):
                return None
            kept = connection.execute(select(about.c.value)).scalar()
        return None if kept is None else json.loads(kept)

    @contextmanager
    def _transaction(self, make: bool = False) -> Iterator:
        if not make and not self.path.exists():
            raise ScoredSetError(f'The scores in "{self.path}" were deleted. Run Minority Score '
                                 "again.")
        try:
            with self._engine.begin() as connection:
                yield connection
        except (DBAPIError, sqlite3.Error) as error:
            raise ScoredSetError(
                f'The scores in "{self.path}" cannot be used: {getattr(error, "orig", error)}. '
                "What was kept before is untouched. Check the disk and its free space; if the file "
                "is damaged or was deleted, delete what is left of it and run Minority Score "
                "again.") from error


@dataclass(frozen=True)
class ScoredImages:
    """The members of one run, rarest first: what the wire UNCOMMON_SCORED_IMAGES carries.

    paths: where each member's file was, "" for one that came by wire; pictures: these, by content
    hash; to_wire: latents as the sampler sees them -> as they are on a wire.
    """

    kept: ScoredSet
    hashes: tuple[str, ...]
    scores: Tensor
    paths: tuple[str, ...]
    pictures: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    to_wire: Callable[[Tensor], Tensor] = field(default=lambda latents: latents, repr=False)

    @classmethod
    def ranked(cls, kept: ScoredSet, members: Mapping[str, tuple[float, str]],
               **more) -> ScoredImages:
        """members: content hash -> (score, path)."""
        order = sorted(members, key=lambda key: (-members[key][0], key))
        return cls(kept, tuple(order), torch.tensor([members[key][0] for key in order]),
                   tuple(members[key][1] for key in order), **more)

    @property
    def settings(self) -> ScoreSettings:
        return self.kept.settings

    def __len__(self) -> int:
        return len(self.hashes)

    def latents(self, indices: Sequence[int] | Tensor) -> Tensor:
        """`[k, channels, ...]`, float32, as the sampler sees them. Raises ScoredSetError if their
        sizes differ, or the file is gone."""
        return self.kept.latents([self.hashes[int(i)] for i in indices])

    def extreme(self, count: int, rarest: bool) -> list[int]:
        """The indices of the rarest or of the most common, the most extreme first."""
        order = range(len(self)) if rarest else range(len(self) - 1, -1, -1)
        return [*order][:count]


def _chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), LOOKUP):
        yield values[start:start + LOOKUP]


def _as_text(path: str) -> str:
    """The same for all but names that are no text, which a database does not take."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _engine(path: Path):
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool,
                           connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # the driver shall not begin transactions: begin() does
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # the last scores may be lost, no others

    @event.listens_for(engine, "begin")
    def begin(connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
