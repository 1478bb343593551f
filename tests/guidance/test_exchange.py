"""Memories as files to share, and put together."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from guidance.memory import FeatureSpaceError, Memory, MemoryLog, Sample
from guidance.memory.errors import ExchangeError
from guidance.memory.exchange import Merged, export_memory, import_memory, merge
from guidance.prompt import PROMPT_DIM

SPACE, DIM = "latent/v1/Test/3", 6


def preview(number: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, 0, 0)).save(file, "PNG")
    return file.getvalue()


def sample(number: int, **changes) -> Sample:
    generator = torch.Generator().manual_seed(number)
    fields = {
        "content_hash": hashlib.sha256(str(number).encode()).hexdigest(),
        "embedding": torch.randn(DIM, generator=generator),
        "prompt_embedding": torch.randn(PROMPT_DIM, generator=generator),
        "preview": preview(number), "seed": 2 ** 64 - 1 - number,
        "settings": {"number": number, "name": "Bär", "nearest": None}}
    return Sample(**{**fields, **changes})


@pytest.fixture
def log(tmp_path: Path) -> MemoryLog:
    return MemoryLog(tmp_path / "memory.sqlite")


@pytest.fixture
def full(log: MemoryLog) -> Memory:
    """Samples of every kind, and one that is forgotten."""
    memory = log.memory("full")
    memory.append([sample(1), sample(2, prompt_embedding=None), sample(3, preview=None),
                   sample(4, settings={}), sample(5)], SPACE)
    memory.forget([5], "test")
    return memory


def content(memory: Memory) -> list[tuple]:
    return [(one.content_hash, one.embedding.tolist(), one.seed, one.settings, one.preview,
             None if one.prompt_embedding is None else one.prompt_embedding.tolist())
            for one in memory.samples()]


@pytest.fixture
def file(full: Memory, tmp_path: Path) -> Path:
    path = tmp_path / "shared.safetensors"
    assert export_memory(full, path) == 4
    return path


def test_what_is_exported_comes_back_the_same(full, log, file):
    other = log.memory("other")
    assert import_memory(other, file) == Merged(4, 0)
    assert content(other) == content(full)
    assert other.feature_space == SPACE
    assert import_memory(other, file) == Merged(0, 4)
    assert other.revision == 4


def test_the_file_tells_what_it_is(file):
    with safe_open(file, "pt") as stored:
        assert stored.metadata() == {
            "format": "uncommon-memory", "version": "1", "feature_space": SPACE, "memory": "full",
            "revision": "6", "samples": "4"}
        assert stored.get_tensor("embedding").shape == (4, DIM)
    assert [found.name for found in file.parent.glob("shared*")] == ["shared.safetensors"]


def test_an_earlier_revision_is_exported(full, log, tmp_path):
    assert export_memory(full, tmp_path / "all", at=5) == 5
    import_memory(log.memory("other"), tmp_path / "all")
    assert len(log.memory("other").live()) == 5


def test_duplicates_count_once_and_the_forgotten_may_come_again(full, log, file, tmp_path):
    other = log.memory("other")
    other.append([sample(2), sample(9)], SPACE)
    assert import_memory(other, file) == Merged(3, 1)
    assert len(other.live()) == 5
    full.forget_all()
    assert import_memory(full, file) == Merged(4, 0)


def test_merging_twice_adds_nothing(full, log):
    other = log.memory("other")
    other.append([sample(4), sample(9)], SPACE)
    assert merge(full, other) == Merged(3, 1)
    assert merge(full, other) == Merged(0, 4)
    assert {one.settings.get("number", 4) for one in other.samples()} == {1, 2, 3, 4, 9}
    assert merge(log.memory("empty"), other) == Merged(0, 0)
    assert merge(full, full) == Merged(0, 4)
    assert merge(full, log.memory("earlier"), at=2) == Merged(2, 0)


def test_samples_keep_whose_revision_guided_them(log, tmp_path):
    drawn = log.memory("drawn")
    drawn.append([sample(1, settings={"revision": 0}), sample(2)], SPACE)
    export_memory(drawn, tmp_path / "file")
    import_memory(log.memory("imported"), tmp_path / "file")
    merge(log.memory("imported"), log.memory("merged"))
    for name in ("imported", "merged"):
        first, by_hand = log.memory(name).samples()
        assert first.settings == {"revision": 0, "memory": "drawn"}
        assert "memory" not in by_hand.settings


def test_memories_of_two_databases_are_merged(full, tmp_path):
    other = MemoryLog(tmp_path / "other.sqlite").memory("full")
    assert merge(full, other) == Merged(4, 0)
    assert content(other) == content(full)


def test_spaces_are_never_mixed(full, log, file):
    other = log.memory("other")
    other.append([sample(1)], "latent/v1/Flux/16")
    for attempt in (lambda: import_memory(other, file), lambda: merge(full, other)):
        with pytest.raises(FeatureSpaceError, match="choose a memory of the same space") as error:
            attempt()
        assert SPACE in str(error.value) and "latent/v1/Flux/16" in str(error.value)
    assert other.revision == 1


def test_many_samples_come_in_pages_that_can_be_stopped(log, tmp_path):
    many, told = log.memory("many"), []
    many.append([sample(n, preview=None) for n in range(1203)], SPACE)
    export_memory(many, tmp_path / "many")

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 1000 and len(told) == 2:
            raise KeyboardInterrupt

    other = log.memory("other")
    with pytest.raises(KeyboardInterrupt):
        import_memory(other, tmp_path / "many", stop)
    assert told == [(500, 1203), (1000, 1203)] and len(other.live()) == 1000
    assert import_memory(other, tmp_path / "many", stop) == Merged(203, 1000)
    assert told[-1] == (1203, 1203)
    assert content(other) == content(many)


def test_nothing_to_export(log, tmp_path):
    with pytest.raises(ExchangeError, match="holds no samples at revision 0"):
        export_memory(log.memory("new"), tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_folder_that_is_not_there(full, tmp_path):
    with pytest.raises(ExchangeError, match="could not be exported"):
        export_memory(full, tmp_path / "no" / "f")


def test_a_failed_export_leaves_the_former_file(full, file, monkeypatch):
    before = file.read_bytes()

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr("guidance.memory.exchange.save_file", fail)
    with pytest.raises(ExchangeError, match="disk is full"):
        export_memory(full, file)
    assert file.read_bytes() == before
    assert len(list(file.parent.glob("shared*"))) == 1


def rewrite(file: Path, metadata: dict | None = None, **changes: torch.Tensor | None) -> None:
    with safe_open(file, "pt") as stored:
        kept = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        told = stored.metadata()
    tensors = {name: tensor for name, tensor in (kept | changes).items() if tensor is not None}
    save_file(tensors, file, told | (metadata or {}))


def raw(*parts: bytes) -> dict:
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    return {"": torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8), "_end": ends}


def replaced(name: str, *parts: bytes) -> dict:
    return {f"{name}{key}": tensor for key, tensor in raw(*parts).items()}


@pytest.mark.parametrize(("changes", "message"), [
    ({"metadata": {"format": "other"}}, "it is no exported memory"),
    ({"metadata": {"version": "7"}}, "version 7, and this pack knows version 1"),
    ({"embedding": None}, "it lacks embedding"),
    ({"embedding": torch.zeros(4, DIM).half()}, "it lacks embedding"),
    ({"embedding": torch.zeros(3, DIM)}, "wrong shapes"),
    ({"content_hash": torch.zeros(4, 31, dtype=torch.uint8)}, "wrong shapes"),
    ({"embedding": torch.full((4, DIM), torch.nan)}, "not finite"),
    ({"preview_end": torch.tensor([5, 3, 3, 9])}, "preview_end does not fit"),
    ({"preview_end": torch.tensor([0, 0, 0, -1])}, "preview_end does not fit"),
    ({"prompt_end": torch.tensor([0, 0, 0, 3 * PROMPT_DIM + 1])}, "prompt_end does not fit"),
    ({"prompt_end": torch.tensor([0, 0, 0, 3 * PROMPT_DIM])}, "the prompt of sample 3"),
    (replaced("settings", b"{}", b"{}", b"[1]", b"{}"), "the settings of sample 2"),
    (replaced("settings", b"{}", b'{"a": NaN}', b"{}", b"{}"), "the settings of sample 1"),
    (replaced("settings", b'{"nearest": "far"}', b"{}", b"{}", b"{}"), "the settings of sample 0"),
    (replaced("preview", preview(1), b"<svg></svg>", b"", b""), "the preview of sample 1"),
    (replaced("preview", preview(1)[:50], b"", b"", b""), "the preview of sample 0"),
    (replaced("preview", b"", b"", b"", preview(1, 600)), "the preview of sample 3"),
], ids=lambda case: case if isinstance(case, str) else "")
def test_a_file_that_is_no_memory_changes_nothing(log, file, changes, message):
    rewrite(file, **changes)
    with pytest.raises(ExchangeError, match=message) as error:
        import_memory(log.memory("other"), file)
    assert '"shared.safetensors"' in str(error.value) and "Nothing was imported" in str(error.value)
    assert log.memory("other").revision == 0


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:-100]),
                                    lambda file: file.write_text(json.dumps({})),
                                    lambda file: file.write_bytes(b"")])
def test_a_damaged_file(log, file, damage):
    damage(file)
    with pytest.raises(ExchangeError, match="cannot be imported"):
        import_memory(log.memory("other"), file)


def test_a_file_that_is_gone(log, tmp_path):
    with pytest.raises(ExchangeError, match="There is no file"):
        import_memory(log.memory("other"), tmp_path / "gone")
