"""The gallery, the map and the undoing of forgetting: what a person does with a memory."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from guidance.curation import chosen_numbers, forget
from guidance.memory import MemoryLog, MemoryLogError, RevisionError, Sample, gallery, projection
from guidance.memory.bank import Bank
from guidance.memory.projection import MemoryMap, principal_axes
from guidance.memory.undo import undo_forgetting
from guidance.novelty_memory import NoveltyMemory

DIM = 12
PNG = b"\x89PNG small"


@pytest.fixture
def log(tmp_path):
    return MemoryLog(tmp_path / "log.sqlite")


@pytest.fixture
def memory(log):
    return log.memory("test")


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    """`[count, DIM]` with decreasing variance along rotated axes."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))
    spread = 2.0 ** -torch.arange(DIM)
    return torch.randn(count, DIM, generator=generator) * spread @ rotation + 3


def add(memory, embedding: torch.Tensor, **fields) -> None:
    start = memory.revision
    memory.append([Sample(**{
        "content_hash": hashlib.sha256(f"{start} {i} {one.sum()}".encode()).hexdigest(),
        "embedding": one, "seed": i, "prompt_embedding": torch.ones(4), "preview": PNG,
        "settings": {"nearest": 0.25 * i if i else None, "revision": start, "strength": 0.3},
    } | fields) for i, one in enumerate(embedding)], "space")


def live(log) -> list[int]:
    return gallery.live_numbers(log.database, "test")[1].tolist()


# Gallery

def test_summaries_tell_what_each_memory_holds(log, memory):
    add(memory, vectors(5))
    add(log.memory("another"), vectors(2))
    memory.forget([2, 3], "user: chosen")
    other, mine = gallery.summaries(log.database)
    stats = memory.stats()
    assert mine == {"name": "test", "revision": 6, "samples": 3, "forgotten": 2,
                    "bytes": stats.live_bytes, "stored_bytes": stats.total_bytes,
                    "feature_space": "space"}
    assert (other["name"], other["samples"]) == ("another", 2)


def test_numbers_and_samples_are_those_that_live(log, memory):
    assert live(log) == []
    add(memory, vectors(5))
    memory.forget([2], "user: chosen")
    assert gallery.live_numbers(log.database, "test")[0] == 6
    assert live(log) == [1, 3, 4, 5]
    shown = gallery.samples(log.database, "test", [1, 2, 4, 6, 99])
    assert [one["number"] for one in shown] == [4, 1]
    assert shown[0] | {"time": None, "prompt": None} == {
        "number": 4, "time": None, "seed": "3", "bytes": DIM * 4 + 8 + len(PNG), "nearest": 0.75,
        "prompt": None, "preview": "data:image/png;base64,iVBORyBzbWFsbA==", "guided_at": 0,
        "strength": 0.3}
    assert shown[1]["nearest"] is None
    assert shown[0]["time"].endswith("+00:00")


def test_equal_prompts_have_equal_fingerprints(log, memory):
    add(memory, vectors(2))
    add(memory, vectors(1, seed=1), prompt_embedding=torch.arange(4.0), seed=2 ** 64 - 1)
    add(memory, vectors(1, seed=2), prompt_embedding=None, preview=None)
    none, other, *same = gallery.samples(log.database, "test", [1, 2, 3, 4])
    assert same[0]["prompt"] == same[1]["prompt"] != other["prompt"]
    assert (none["prompt"], none["preview"]) == (None, None)
    assert other["seed"] == str(2 ** 64 - 1)


@pytest.mark.parametrize("count", [0, gallery.PAGE + 1])
def test_a_page_has_bounds(log, count):
    with pytest.raises(RevisionError, match=f"expected 1 to {gallery.PAGE}"):
        gallery.samples(log.database, "test", range(1, count + 1))


# Map

def test_axes_are_the_principal_components():
    x = vectors(400)
    axes = principal_axes(x)
    variances, directions = torch.linalg.eigh(torch.cov(x.T))
    expected = directions[:, [-1, -2]]
    assert (axes.directions * expected).sum(0).abs().tolist() == pytest.approx([1, 1], abs=1e-4)
    assert axes.share == pytest.approx((variances[-2:].sum() / variances.sum()).item(), rel=1e-3)
    assert (axes.directions.T @ axes.directions - torch.eye(2)).abs().max() < 1e-5


def test_axes_leave_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    first = principal_axes(vectors(50))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(principal_axes(vectors(50)).directions, first.directions)


def test_axes_keep_the_signs_of_those_before():
    x = vectors(100)
    flipped = principal_axes(x)
    flipped = projection.Axes(flipped.mean, -flipped.directions, flipped.share)
    assert torch.allclose(principal_axes(x, flipped).directions, flipped.directions, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_or_equal_samples_give_finite_points(count):
    for x in (vectors(count), torch.ones(count, DIM), torch.arange(float(count))[:, None]):
        axes = principal_axes(x)
        assert torch.isfinite(axes.project(x)).all()
        assert axes.project(x).shape == (count, 2)
        assert 0 <= axes.share <= 1


def test_the_map_follows_the_memory(log, memory):
    map_ = MemoryMap(log.database, "test")
    assert len(map_.latest().numbers) == 0
    x = vectors(60)
    add(memory, x[:50])
    first = map_.latest()
    assert map_.latest() is first
    assert first.revision == 50 and first.numbers.tolist() == [*range(1, 51)]
    assert np.allclose(first.points, principal_axes(x[:50]).project(x[:50]), atol=1e-4)
    assert first.nearest[:3].tolist() == [np.inf, 0.25, 0.5]

    add(memory, x[50:52])  # little: what is on the map stays where it is
    memory.forget([7, 8], "user: chosen")
    later = map_.latest()
    assert later.numbers.tolist() == [n for n in range(1, 53) if n not in (7, 8)]
    assert np.array_equal(later.points[:6], first.points[:6])
    assert np.allclose(later.points[-2:], principal_axes(x[:50]).project(x[50:52]), atol=1e-4)

    add(memory, x[52:])  # much: the directions are those of all
    kept = torch.cat([x[:6], x[8:]])
    latest = map_.latest()
    expected = principal_axes(kept).project(kept).numpy()
    assert np.allclose(np.abs(latest.points), np.abs(expected), atol=1e-3)

    memory.forget_all()
    assert map_.latest().points.shape == (0, 2)


@pytest.mark.parametrize("chunk", [7, 8])  # the last chunk: of a few, and whole
def test_directions_of_many_come_from_some_of_them(log, memory, monkeypatch, chunk):
    monkeypatch.setattr(projection, "FITTED_ON", 40)
    monkeypatch.setattr(projection, "CHUNK", chunk)
    x = vectors(120)
    add(memory, x)
    expected = principal_axes(x[2::3]).project(x)  # numbers 3, 6, ...
    assert np.allclose(MemoryMap(log.database, "test").latest().points, expected, atol=1e-4)


# Undo

def entries(memory) -> list[tuple]:
    """What the live samples hold, without their numbers."""
    return sorted((e.content_hash, e.seed, e.time, e.preview, str(e.settings),
                   tuple(e.embedding.tolist()), tuple(e.prompt_embedding.tolist()))
                  for e in memory.samples())


def test_undo_brings_samples_back_as_new_rows(log, memory):
    add(memory, vectors(6))
    before, size = entries(memory), memory.stats().live_bytes
    revision = memory.forget([2, 3, 5], "user: chosen")
    restored = undo_forgetting(log.database, "test")
    assert restored.numbers == (8, 9, 10)
    assert restored.revision == memory.revision == revision + 3
    assert live(log) == [1, 4, 6, 8, 9, 10]
    assert entries(memory) == before
    stats = memory.stats()
    assert (stats.live_samples, stats.live_bytes) == (6, size)
    assert stats.total_bytes == size * 9 // 6
    assert memory.live(6) == [1, 2, 3, 4, 5, 6] and memory.live(7) == [1, 4, 6]
    assert len(Bank(memory).at()) == 6


def test_undo_goes_back_one_forgetting_at_a_time(log, memory):
    add(memory, vectors(4))
    before = entries(memory)
    memory.forget([1], "user: one")
    memory.forget_last(1)
    assert undo_forgetting(log.database, "test").numbers == (7,)
    assert undo_forgetting(log.database, "test").numbers == (8,)
    assert entries(memory) == before
    assert undo_forgetting(log.database, "test").numbers == ()
    memory.forget_all()
    assert len(undo_forgetting(log.database, "test").numbers) == 4
    assert entries(memory) == before


def test_undo_leaves_what_the_user_did_not_forget(log, memory):
    assert undo_forgetting(log.database, "test").numbers == ()
    add(memory, vectors(4))
    memory.forget([1], "a later pass went on with it")
    size = memory.stats().live_bytes // 3
    memory.enforce_cap(2 * size)
    assert undo_forgetting(log.database, "test").numbers == ()
    assert live(log) == [3, 4]


def test_undo_tells_what_was_dropped(log, memory):
    add(memory, vectors(4))
    memory.forget([1, 2], "user: chosen")
    memory.compact()
    memory.forget([3], "user: one")
    restored = undo_forgetting(log.database, "test")
    assert (restored.numbers, restored.lost) == ((7,), 0)
    restored = undo_forgetting(log.database, "test")
    assert (restored.numbers, restored.lost) == ((), 2)


def test_undo_leaves_out_what_came_again(log, memory):
    add(memory, vectors(2), content_hash="0" * 64)
    memory.forget_all()
    add(memory, vectors(1), content_hash="0" * 64)
    assert undo_forgetting(log.database, "test").numbers == ()
    assert len(live(log)) == 1


# What nodes say

def test_the_node_forgets_chosen_samples_and_takes_it_back(log, memory, tmp_path):
    add(memory, vectors(9))
    novelty = NoveltyMemory(url=str(log.database.url), name="test")
    assert forget(novelty, "chosen", 1, 1, "2, 4-6").startswith("test: forgot 4 of 9 samples")
    assert live(log) == [1, 3, 7, 8, 9]
    assert forget(novelty, "undo", 1, 1).startswith(
        "test: 4 samples came back, as numbers 11 to 14\nMemory now: 9 samples")
    assert forget(novelty, "undo", 1, 1).startswith("test: nothing to take back\n")
    forget(novelty, "one", 1, 1)
    memory.compact()
    assert "1 were dropped for good" in forget(novelty, "undo", 1, 1)


@pytest.mark.parametrize(("text", "expected"), [
    ("3", [3]), (" 3, 5 ,8-10,", [3, 5, 8, 9, 10])])
def test_chosen_numbers(text, expected):
    assert chosen_numbers(text) == expected


@pytest.mark.parametrize("text", ["x", "0", "5-3", "1-", "-4", "1-99999999999", "1.5", "²"])
def test_numbers_that_are_none_are_named(text):
    with pytest.raises(MemoryLogError, match="does not name samples. Write numbers and spans"):
        chosen_numbers(f"1, {text}")


def test_no_numbers_say_what_to_write():
    with pytest.raises(MemoryLogError, match="No samples are chosen"):
        chosen_numbers(" , ")
