"""The memory log against real databases: SQLite files, and PostgreSQL where a URL of an empty
database is given in UNCOMMON_TEST_DATABASE."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from sqlalchemy import create_engine, event, inspect, text

from guidance.memory import schema
from guidance.memory import (
    AppendResult,
    FeatureSpaceError,
    MemoryLog,
    MemoryLogError,
    RevisionError,
    RevisionGoneError,
    Sample,
    SampleError,
    StorageError,
)

ROOT = Path(__file__).resolve().parents[2]
SPACE = "latent/v1/PixelRGB/3"
DIM = 6
SHARED_DATABASE = os.environ.get("UNCOMMON_TEST_DATABASE")


def sample(number: int, **changes) -> Sample:
    """A sample whose every field tells its number."""
    generator = torch.Generator().manual_seed(number)
    fields = {
        "content_hash": hashlib.sha256(str(number).encode()).hexdigest(),
        "embedding": torch.randn(DIM, generator=generator),
        "prompt_embedding": torch.randn(5, generator=generator),
        "preview": bytes([number % 256]) * 100,
        "seed": 2 ** 64 - 1 - number,
        "settings": {"cfg": 3.0, "sampler": "euler", "positive": ["ein Bär"], "number": number},
    }
    return Sample(**{**fields, **changes})


def samples(*numbers: int) -> list[Sample]:
    return [sample(number) for number in numbers]


SAMPLE_BYTES = DIM * 4 + 5 * 2 + 100


@pytest.fixture(params=["sqlite", "shared"] if SHARED_DATABASE else ["sqlite"])
def url(request, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'memory.sqlite'}"
    engine = create_engine(SHARED_DATABASE)
    schema.metadata.drop_all(engine)
    engine.dispose()
    return SHARED_DATABASE


@pytest.fixture
def log(url: str) -> MemoryLog:
    log = MemoryLog(url)
    yield log
    log.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.sqlite"


# What a memory holds


def test_empty_memory(log: MemoryLog):
    memory = log.memory("new")
    assert (memory.revision, memory.feature_space, memory.live()) == (0, None, [])
    revisions, embeddings = memory.embeddings()
    assert revisions == [] and embeddings.shape == (0, 0)
    assert list(memory.entries()) == list(memory.samples()) == []
    assert memory.forget_all() == memory.forget_last(3) == memory.compact() == 0
    assert memory.enforce_cap(0) == []
    assert log.names() == []


def test_sample_round_trip(log: MemoryLog):
    memory, given = log.memory("my project"), sample(7)
    before = datetime.now(timezone.utc)
    assert memory.append([given], SPACE) == AppendResult(1, 1, ())
    [entry] = memory.entries()
    assert (entry.revision, entry.kind, entry.content_hash) == (1, "sample", given.content_hash)
    assert torch.equal(entry.embedding, given.embedding)
    assert torch.equal(entry.prompt_embedding, given.prompt_embedding.half().float())
    assert (entry.preview, entry.seed, entry.settings) == (
        given.preview, given.seed, given.settings)
    assert entry.size_bytes == SAMPLE_BYTES
    assert entry.forgotten_at is entry.dropped_time is None
    assert before <= entry.time <= before + timedelta(minutes=1)
    assert entry.time.utcoffset() == timedelta(0)
    assert log.names() == ["my project"]
    assert memory.feature_space == SPACE


def test_optional_parts_may_be_missing(log: MemoryLog):
    memory = log.memory("m")
    memory.append([sample(1, prompt_embedding=None, preview=None)], SPACE)
    [entry] = memory.samples()
    assert entry.prompt_embedding is entry.preview is None
    assert entry.size_bytes == DIM * 4


def test_memories_are_apart_and_names_case_sensitive(log: MemoryLog):
    log.memory("Cats").append(samples(1, 2), SPACE)
    log.memory("cats").append(samples(1), "latent/v1/SDXL/4")
    assert log.names() in (["Cats", "cats"], ["cats", "Cats"])  # the database's own order
    assert log.memory("Cats").live() == [1, 2]
    assert log.memory("cats").live() == [1]


def test_duplicates_are_reported_and_left_out(log: MemoryLog):
    memory = log.memory("m")
    memory.append(samples(1, 2), SPACE)
    one, three = sample(1).content_hash, sample(3).content_hash
    assert memory.append(samples(1, 3, 3), SPACE) == AppendResult(3, 3, (one, three))
    assert memory.append(samples(3), SPACE) == AppendResult(4, 3, (three,))
    memory.forget([1], "test")
    assert memory.append(samples(1), SPACE) == AppendResult(5, 5, ())
    memory.forget([5], "test")
    assert memory.append(samples(1), SPACE) == AppendResult(7, 7, ())
    assert memory.live() == [2, 3, 7]


def test_revisions_are_replayed(log: MemoryLog):
    """Every revision still gives what it gave when it was the latest."""
    memory = log.memory("m")
    seen = [(memory.live(), memory.embeddings()[1])]
    steps = [
        lambda: memory.append(samples(1), SPACE),
        lambda: memory.append(samples(2), SPACE),
        lambda: memory.forget([1], "test"),
        lambda: memory.append(samples(1), SPACE),
        lambda: memory.forget_last(2),
        lambda: memory.append(samples(3), SPACE),
        lambda: memory.forget_all(),
    ]
    for step in steps:
        step()
        assert memory.revision == len(seen)
        seen.append((memory.live(), memory.embeddings()[1]))
    assert [live for live, _ in seen] == [[], [1], [1, 2], [2], [2, 4], [], [6], []]
    for at, (live, embeddings) in enumerate(seen):
        revisions, again = memory.embeddings(at)
        assert revisions == live == memory.live(at)
        assert torch.equal(again.view(-1, DIM), embeddings.view(-1, DIM))
        assert [entry.revision for entry in memory.samples(at)] == live


def test_forget_rows_say_what_and_why(log: MemoryLog):
    memory = log.memory("m")
    memory.append(samples(*range(1, 9)), SPACE)
    assert memory.forget([8, 2, 3, 2], "too dark") == 9
    assert memory.forget_last(2) == 10
    assert memory.forget_all() == 11
    assert memory.forget_all() == memory.forget_last(1) == memory.forget([], "none") == 11
    rows = list(memory.entries(after=8))
    assert [(row.revision, row.kind, row.forgotten, row.reason) for row in rows] == [
        (9, "forget", (2, 3, 8), "too dark"),
        (10, "forget", (6, 7), "user: last 2"),
        (11, "forget", (1, 4, 5), "user: all"),
    ]
    assert [entry.forgotten_at for entry in memory.entries(upto=3)] == [11, 9, 9]


def test_what_is_not_live_any_more_may_be_left_out(log: MemoryLog):
    memory = log.memory("m")
    memory.append(samples(0, 1, 2), SPACE)
    memory.forget([2], "user: one")
    assert memory.forget([1, 2], "later pass", missing_ok=True) == 5
    assert memory.live() == [3]
    assert memory.forget([1, 2], "later pass", missing_ok=True) == 5


def test_forget_refuses_what_is_not_a_live_sample(log: MemoryLog):
    memory = log.memory("m")
    with pytest.raises(RevisionError, match="no live sample at revision 1"):
        memory.forget([1], "test")
    memory.append(samples(1, 2, 3), SPACE)
    memory.forget([2], "test")
    with pytest.raises(RevisionError, match="no live sample at revision 2, 4, 9"):
        memory.forget([1, 2, 4, 9], "test")
    assert memory.live() == [1, 3]
    with pytest.raises(MemoryLogError, match="last 0"):
        memory.forget_last(0)


def test_entries_are_streamed_in_order_over_pages(log: MemoryLog):
    memory = log.memory("m")
    count = 1203
    plain = {"prompt_embedding": None, "preview": None}
    numbers = range(count)
    memory.append([sample(n, **plain) for n in numbers], SPACE)
    assert memory.append([sample(n, **plain) for n in numbers], SPACE).duplicates[-1]
    assert [entry.revision for entry in memory.entries()] == list(range(1, count + 1))
    assert [entry.revision for entry in memory.entries(498, 1001)] == list(range(499, 1002))
    revisions, embeddings = memory.embeddings()
    assert revisions == list(range(1, count + 1))
    assert torch.equal(embeddings, torch.stack([sample(n).embedding for n in numbers]))
    entries = memory.entries()
    next(entries)
    memory.forget(list(range(1, count, 2)), "while a reader is at it")
    assert sum(entry.kind == "sample" for entry in entries) == count - 1
    assert memory.live() == list(range(2, count, 2)) + [count]


@pytest.mark.parametrize("at", [-1, 3])
def test_unknown_revision(log: MemoryLog, at: int):
    memory = log.memory("m")
    memory.append(samples(1, 2), SPACE)
    for call in (memory.live, memory.embeddings, memory.samples, memory.entries):
        with pytest.raises(RevisionError, match=f"no revision {at}: it has revisions 0 to 2"):
            call(at)


def test_feature_spaces_do_not_mix(log: MemoryLog):
    memory = log.memory("m")
    memory.append(samples(1), SPACE)
    memory.forget_all()
    with pytest.raises(FeatureSpaceError) as error:
        memory.append(samples(2), "latent/v1/SDXL/4")
    for part in (SPACE, "latent/v1/SDXL/4", "another memory name"):
        assert part in str(error.value)


@pytest.mark.parametrize("changes", [
    {"content_hash": "abc"},
    {"embedding": torch.zeros(DIM + 1)},
    {"embedding": torch.full((DIM,), float("nan"))},
    {"embedding": torch.zeros(2, DIM)},
    {"prompt_embedding": torch.full((3,), 1e6)},
    {"seed": -1},
    {"seed": 2 ** 64},
    {"settings": {"model": object()}},
    {"settings": {"cfg": float("inf")}},
], ids=lambda changes: next(iter(changes)))
def test_bad_sample_stores_nothing(log: MemoryLog, changes: dict):
    memory = log.memory("m")
    with pytest.raises(SampleError, match=next(iter(changes))):
        memory.append([sample(1), sample(2, **changes)], SPACE)
    assert memory.revision == 0 and log.names() == []


def test_append_of_nothing_is_refused(log: MemoryLog):
    with pytest.raises(SampleError):
        log.memory("m").append([], SPACE)
    with pytest.raises(SampleError):
        log.memory("m").append(samples(1), "")


@pytest.mark.parametrize("name", ["", " a", "a ", "a/b", "a\nb", "a" * 65, "..\\x", "a:b"])
def test_bad_name(log: MemoryLog, name: str):
    with pytest.raises(MemoryLogError, match="1 to 64 letters"):
        log.memory(name)


@pytest.mark.parametrize("name", ["a", "my project", "v1.2_final-b", "a" * 64, "猫", "Bär"])
def test_good_name(log: MemoryLog, name: str):
    log.memory(name).append(samples(1), SPACE)
    assert log.names() == [name]


def test_stats(log: MemoryLog):
    memory = log.memory("m")
    assert memory.stats().first_time is None
    memory.append(samples(1, 2, 3), SPACE)
    memory.forget([2], "test")
    stats = memory.stats()
    assert (stats.name, stats.feature_space, stats.revision) == ("m", SPACE, 4)
    assert (stats.live_samples, stats.forgotten_samples) == (2, 1)
    assert (stats.live_bytes, stats.total_bytes) == (2 * SAMPLE_BYTES, 3 * SAMPLE_BYTES)
    assert stats.first_time <= stats.last_time
    assert repr(memory) == (
        f'<Memory "m" at revision 4: 2 samples, 0.0 MB, 1 forgotten, feature space {SPACE}>')


# Bounded


def test_cap_evicts_the_oldest_and_leaves_a_tombstone(log: MemoryLog):
    memory = log.memory("m")
    memory.append(samples(*range(10)), SPACE)
    assert memory.enforce_cap(10 * SAMPLE_BYTES) == []
    assert memory.enforce_cap(7 * SAMPLE_BYTES) == [1, 2, 3]
    assert memory.revision == 11 and memory.live() == list(range(4, 11))
    assert memory.stats().total_bytes == 7 * SAMPLE_BYTES
    evicted, *_, row = memory.entries()
    assert (row.kind, row.forgotten, row.reason[:4]) == ("forget", (1, 2, 3), "cap ")
    assert evicted.dropped_time and evicted.dropped_reason == row.reason
    assert evicted.embedding is evicted.preview is None
    assert evicted.settings["number"] == 0
    assert memory.embeddings()[1].shape == memory.embeddings(11)[1].shape == (7, DIM)
    assert memory.embeddings(0)[0] == [] and memory.live(10) == list(range(1, 11))
    for request in (memory.embeddings, lambda at: list(memory.samples(at))):
        with pytest.raises(RevisionGoneError) as error:
            request(10)
        for part in ("Revision 10", "UTC (cap ", "revision 11 or later"):
            assert part in str(error.value)


def test_cap_drops_forgotten_payloads_before_live_samples(log: MemoryLog):
    memory = log.memory("m")
    memory.append(samples(*range(1, 7)), SPACE)
    memory.forget([5], "test")
    memory.forget([2], "test")
    assert memory.enforce_cap(5 * SAMPLE_BYTES) == []
    assert memory.revision == 8
    assert [entry.revision for entry in memory.entries() if entry.dropped_time] == [5]
    assert memory.embeddings(7)[0] == [1, 2, 3, 4, 6]
    assert memory.enforce_cap(3 * SAMPLE_BYTES) == [1]
    assert memory.live() == [3, 4, 6]
    assert memory.enforce_cap(0) == [3, 4, 6]
    assert memory.stats().total_bytes == 0
    assert memory.append(samples(1), SPACE).last_revision == 11


def arrivals(path: Path, when_full: str, salt: int, batch: int = 100) -> list[int]:
    """Which of 300 samples are still there when only 60 have room, by the order of arrival."""
    memory = MemoryLog(path).memory(f"{when_full} {salt} {batch}")
    size = 2 * 4
    for first in range(0, 300, batch):
        memory.append([Sample(
            content_hash=hashlib.sha256(f"{salt} {n}".encode()).hexdigest(),
            embedding=torch.ones(2), settings={"number": n})
            for n in range(first, first + batch)], SPACE)
        memory.enforce_cap(60 * size, when_full)
        assert memory.stats().total_bytes <= 60 * size
    return [entry.settings["number"] for entry in memory.samples()]


def test_reservoir_keeps_a_uniform_sample_of_all_that_came(path: Path):
    """Chi-square of the tenths of the history that survivors came in, over five histories."""
    def uniformity(when_full: str) -> float:
        kept = [n for salt in range(5) for n in arrivals(path, when_full, salt)]
        assert len(kept) == 300
        return chisquare(torch.tensor(kept).div(30, rounding_mode="floor").bincount(minlength=10)
                         .numpy()).pvalue

    assert uniformity("reservoir") > 0.01
    assert uniformity("oldest") < 1e-9


def test_reservoir_depends_on_the_log_alone(path: Path, tmp_path: Path):
    kept = arrivals(path, "reservoir", 0)
    assert kept == arrivals(tmp_path / "other.sqlite", "reservoir", 0)
    assert kept == arrivals(path, "reservoir", 0, batch=50)


def test_reservoir_drops_what_is_forgotten_first(log: MemoryLog):
    memory = log.memory("m")
    memory.append(samples(*range(1, 7)), SPACE)
    memory.forget([2, 5], "test")
    assert memory.enforce_cap(4 * SAMPLE_BYTES, "reservoir") == []
    gone = memory.enforce_cap(2 * SAMPLE_BYTES, "reservoir")
    by_lot = sorted((1, 3, 4, 6), key=lambda n: sample(n).content_hash)
    assert gone == sorted(by_lot[2:]) and memory.live() == sorted(by_lot[:2])
    with pytest.raises(MemoryLogError, match='when_full is "newest"; expected one of oldest'):
        memory.enforce_cap(0, "newest")


def test_compact_keeps_the_present(log: MemoryLog):
    memory = log.memory("m")
    memory.append(samples(1, 2, 3), SPACE)
    memory.forget([1, 3], "test")
    expected = memory.embeddings()
    assert memory.compact() == 2 * SAMPLE_BYTES
    assert memory.compact() == 0
    assert memory.revision == 4 and memory.embeddings()[0] == expected[0] == [2]
    assert torch.equal(memory.embeddings()[1], expected[1])
    with pytest.raises(RevisionGoneError, match="compacted"):
        memory.embeddings(3)


def test_capped_file_does_not_grow_and_compact_shrinks_it(path: Path):
    memory = MemoryLog(path).memory("m")
    sizes = []
    for start in range(0, 500, 100):
        memory.append([sample(start + n, preview=bytes(3000)) for n in range(100)], SPACE)
        memory.enforce_cap(100 * 3200)
        sizes.append(path.stat().st_size)
    assert sizes[-1] < 1.2 * sizes[1]  # tombstones only
    memory.forget_all()
    memory.compact()
    assert path.stat().st_size < .5 * sizes[-1]


# Several writers

WRITER = """
import hashlib, sys
import torch
from guidance.memory import MemoryLog, Sample

url, start, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
memory = MemoryLog(url).memory("m")
for number in range(start, start + count):
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    sample = Sample(content_hash=digest, embedding=torch.full((6,), float(number)), settings={})
    print(memory.append([sample], "space").last_revision, flush=True)
"""


def start_writer(url: str, start: int, count: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(start), str(count)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})


def check_whole(memory, count: int) -> None:
    """The log is gapless, and counters, entries and embeddings agree."""
    entries = list(memory.entries())
    assert [entry.revision for entry in entries] == list(range(1, count + 1))
    assert len({entry.content_hash for entry in entries}) == count
    assert memory.stats().live_samples == count
    assert memory.stats().live_bytes == sum(entry.size_bytes for entry in entries)
    assert len(memory.embeddings()[1]) == count


def test_two_processes_lose_nothing(url: str):
    writers = [start_writer(url, start, 50) for start in (0, 1000)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    reported = [[int(line) for line in writer.communicate()[0].split()] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(reported[0] + reported[1]) == list(range(1, 101))
    log = MemoryLog(url)
    check_whole(log.memory("m"), 100)
    log.close()


def test_killed_writer_loses_nothing_committed(url: str):
    with start_writer(url, 0, 100_000) as writer:
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "ready\n"
        for _ in range(5):
            reported = int(writer.stdout.readline())
        writer.kill()
        for line in writer.stdout.read().split():
            reported = int(line)
    log = MemoryLog(url)
    memory = log.memory("m")
    revision = memory.revision
    assert revision in (reported, reported + 1)  # the last commit may have outrun its report
    assert memory.append(samples(200_000), "space").last_revision == revision + 1
    check_whole(memory, revision + 1)
    log.close()


def test_threads_share_a_log(log: MemoryLog):
    memory = log.memory("m")

    def write(start: int) -> list[int]:
        return [memory.append(samples(start + n), SPACE).last_revision for n in range(10)]

    def read(_: int) -> bool:
        revisions, embeddings = memory.embeddings()
        return revisions == list(range(1, len(embeddings) + 1))

    with ThreadPoolExecutor(6) as pool:
        written = [pool.submit(write, start) for start in (0, 100, 200, 300)]
        assert all(pool.map(read, range(20)))
    assert sorted(n for one in written for n in one.result()) == list(range(1, 41))
    check_whole(memory, 40)


def test_created_by_many_at_once(url: str):
    def create(number: int) -> None:
        log = MemoryLog(url)
        log.memory("m").append(samples(number), SPACE)
        log.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(8)))
    log = MemoryLog(url)
    check_whole(log.memory("m"), 8)
    log.close()


# Errors of the database


def test_folders_are_made(tmp_path: Path):
    path = tmp_path / "user" / "?odd #name%20" / "memory.sqlite"
    MemoryLog(path).memory("m").append(samples(1), SPACE)
    assert path.is_file()
    assert [file.name for file in path.parent.iterdir()] == ["memory.sqlite"]


@pytest.mark.parametrize("url, part", [
    ("memory.sqlite", "sqlite:///FILE"),
    ("sqlite://", "outlive"),
    ("sqlite:///:memory:", "outlive"),
    ("nosuchdatabase://host/db", "driver"),
])
def test_bad_url(url: str, part: str):
    with pytest.raises(StorageError, match=part):
        MemoryLog(url)


def test_errors_hide_the_password():
    with pytest.raises(StorageError) as error:
        MemoryLog("postgresql:/user:secret@host/db")
    assert "secret" not in str(error.value)


def test_unusable_paths(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (tmp_path, file / "memory.sqlite"):
        with pytest.raises(StorageError, match="folder that this user may write") as error:
            MemoryLog(path)
        assert str(path) in str(error.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0,
                    reason="this user may write anywhere")
def test_read_only_folder(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="folder that this user may write"):
            MemoryLog(tmp_path / "memory.sqlite")
    finally:
        tmp_path.chmod(0o700)


def pragma(log: MemoryLog, text: str) -> None:
    event.listen(log.database.engine, "connect", lambda connection, _: connection.execute(text))


def test_read_only_database(path: Path):
    MemoryLog(path).memory("m").append(samples(1), SPACE)
    log = MemoryLog(path)
    pragma(log, "PRAGMA query_only = ON")
    with pytest.raises(StorageError, match="write permission") as error:
        log.memory("m").append(samples(2), SPACE)
    assert str(path) in str(error.value)
    check_whole(MemoryLog(path).memory("m"), 1)


def test_full_disk_loses_nothing(path: Path):
    log = MemoryLog(path)
    log.memory("m").append(samples(1), SPACE)
    pragma(log, "PRAGMA max_page_count = 40")
    with pytest.raises(StorageError, match="Free some space") as error:
        log.memory("m").append([sample(n, preview=bytes(10_000)) for n in range(50)], SPACE)
    assert str(path) in str(error.value)
    check_whole(log.memory("m"), 1)
    assert log.memory("m").append(samples(2), SPACE).last_revision == 2


def test_not_a_database(path: Path):
    path.write_bytes(b"GIF89a" * 1000)
    with pytest.raises(StorageError, match="Move the file away") as error:
        MemoryLog(path)
    assert str(path) in str(error.value)
    assert path.read_bytes() == b"GIF89a" * 1000


def test_file_deleted_while_in_use(path: Path):
    memory = MemoryLog(path).memory("m")
    memory.append(samples(1), SPACE)
    path.unlink()
    with pytest.raises(StorageError, match="deleted or replaced"):
        memory.append(samples(2), SPACE)


def test_damaged_database(path: Path):
    MemoryLog(path).memory("m").append(samples(*range(200)), SPACE)
    damaged = bytearray(path.read_bytes())
    damaged[4096:] = b"\xff" * (len(damaged) - 4096)
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match="damaged"):
        MemoryLog(path).memory("m").embeddings()


# Schema versions

VERSION_1 = """
CREATE TABLE novelty_schema (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE novelty_memory (
    id INTEGER NOT NULL, name VARCHAR(64) NOT NULL, feature_space TEXT NOT NULL,
    dim INTEGER NOT NULL, created DATETIME NOT NULL, log_length INTEGER NOT NULL,
    samples INTEGER NOT NULL, live_samples INTEGER NOT NULL, live_bytes BIGINT NOT NULL,
    stored_bytes BIGINT NOT NULL, PRIMARY KEY (id), UNIQUE (name)
);
CREATE TABLE novelty_entry (
    memory_id INTEGER NOT NULL, revision INTEGER NOT NULL, kind VARCHAR(8) NOT NULL,
    time DATETIME NOT NULL, forgotten TEXT, reason TEXT, content_hash VARCHAR(64),
    seed VARCHAR(20), settings TEXT, size_bytes INTEGER, forgotten_at INTEGER,
    dropped_time DATETIME, dropped_reason TEXT, PRIMARY KEY (memory_id, revision),
    UNIQUE (memory_id, content_hash, forgotten_at),
    FOREIGN KEY(memory_id) REFERENCES novelty_memory (id)
);
CREATE INDEX novelty_entry_live ON novelty_entry (memory_id, revision, forgotten_at);
CREATE INDEX novelty_entry_stored
    ON novelty_entry (memory_id, dropped_time, forgotten_at, revision, size_bytes);
CREATE TABLE novelty_payload (
    memory_id INTEGER NOT NULL, revision INTEGER NOT NULL, embedding BLOB NOT NULL,
    prompt_embedding BLOB, trajectory BLOB, preview BLOB, PRIMARY KEY (memory_id, revision),
    FOREIGN KEY(memory_id, revision) REFERENCES novelty_entry (memory_id, revision)
);
INSERT INTO novelty_schema VALUES (1);
INSERT INTO novelty_memory VALUES
    (1, 'old', 'space', 2, '2026-01-01 12:00:00.000000', 3, 2, 1, 14, 22);
INSERT INTO novelty_entry VALUES
    (1, 1, 'sample', '2026-01-01 12:00:00.000000', NULL, NULL, 'aa', '5', '{"cfg": 3}', 14,
     2147483647, NULL, NULL),
    (1, 2, 'sample', '2026-01-01 12:00:01.000000', NULL, NULL, 'bb', '6', '{}', 8, 3, NULL, NULL),
    (1, 3, 'forget', '2026-01-01 12:00:02.000000', '[[2, 2]]', 'user: last 1', NULL, NULL, NULL,
     NULL, NULL, NULL, NULL);
INSERT INTO novelty_payload VALUES
    (1, 1, X'0000803F00000040', NULL, X'000000000000', NULL),
    (1, 2, X'0000404000008040', NULL, NULL, NULL);
"""


@pytest.fixture
def version_1(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.close()
    return path


def version_of(path: Path) -> int:
    connection = sqlite3.connect(path)
    [(version,)] = connection.execute("SELECT version FROM novelty_schema").fetchall()
    connection.close()
    return version


def schema_of(path: Path) -> dict:
    inspector = inspect(create_engine(f"sqlite:///{path}"))
    return {table: (sorted((column["name"], str(column["type"]), column["nullable"])
                           for column in inspector.get_columns(table)),
                    sorted((index["name"], index["column_names"])
                           for index in inspector.get_indexes(table)),
                    inspector.get_unique_constraints(table))
            for table in sorted(inspector.get_table_names())}


def test_version_1_opens(version_1: Path, tmp_path: Path):
    memory = MemoryLog(version_1).memory("old")
    assert memory.revision == 3 and memory.live() == [1] and memory.live(2) == [1, 2]
    assert memory.embeddings(2)[1].tolist() == [[1, 2], [3, 4]]
    first, _, forget = memory.entries()
    assert (first.seed, first.settings, first.time.year) == (5, {"cfg": 3}, 2026)
    assert forget.forgotten == (2,)
    assert first.size_bytes == 8
    assert (memory.stats().live_bytes, memory.stats().total_bytes) == (8, 16)
    assert memory.append([sample(1, embedding=torch.ones(2))], "space").last_revision == 4
    MemoryLog(tmp_path / "new.sqlite")
    assert schema_of(version_1) == schema_of(tmp_path / "new.sqlite")


def test_the_space_of_trajectories_is_given_back(version_1: Path):
    connection = sqlite3.connect(version_1)
    for revision in range(4, 104):
        connection.execute(
            "INSERT INTO novelty_entry VALUES (1, ?, 'sample', '2026-01-02 12:00:00.000000', NULL, "
            f"NULL, ?, '5', '{{}}', 20008, {schema.STILL_LIVE}, NULL, NULL)",
            (revision, f"{revision:064}"))
        connection.execute("INSERT INTO novelty_payload VALUES (1, ?, ?, NULL, ?, NULL)",
                           (revision, bytes(8), bytes(20_000)))
    connection.execute("UPDATE novelty_memory SET log_length = 103, samples = 102, live_samples = "
                       "101, live_bytes = live_bytes + 2000800, stored_bytes = stored_bytes + "
                       "2000800")
    connection.commit()
    connection.close()
    before = version_1.stat().st_size
    log = MemoryLog(version_1)
    assert version_1.stat().st_size < before - 1_900_000
    memory = log.memory("old")
    assert memory.stats().live_bytes == sum(entry.size_bytes for entry in memory.samples()) == 808
    assert memory.stats().total_bytes == 816
    assert memory.enforce_cap(816) == [] and memory.embeddings(2)[1].tolist() == [[1, 2], [3, 4]]


def test_a_file_in_use_elsewhere_still_opens(version_1: Path, monkeypatch, caplog):
    def busy(self):
        raise StorageError("database is locked")

    monkeypatch.setattr("guidance.memory.database.Database.shrink", busy)
    assert MemoryLog(version_1).memory("old").live() == [1]
    assert "database is locked" in caplog.text


def add_note(connection) -> None:
    connection.execute(text("ALTER TABLE novelty_memory ADD COLUMN note TEXT"))


def fail(connection) -> None:
    raise RuntimeError("half-way")


def test_migrations_run_once_and_in_order(version_1: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "MIGRATIONS", (add_note,))
    for _ in range(2):  # a second run of add_note would fail
        assert MemoryLog(version_1).memory("old").live() == [1]
        assert version_of(version_1) == 2
    assert ("note", "TEXT", True) in schema_of(version_1)["novelty_memory"][0]


def test_failed_migration_changes_nothing(version_1: Path, monkeypatch: pytest.MonkeyPatch):
    before = schema_of(version_1)
    monkeypatch.setattr(schema, "MIGRATIONS", (add_note, fail))
    with pytest.raises(RuntimeError):
        MemoryLog(version_1)
    assert version_of(version_1) == 1 and schema_of(version_1) == before


def test_newer_database_is_refused(version_1: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_note))
    MemoryLog(version_1)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="version 3, newer than version 2.*Update this node"):
        MemoryLog(version_1)
