"""Merge Memories, Export Memory and Import Memory in the host."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from demo.host import Interrupted, Prompt, PromptRejected, RunFailed


@pytest.fixture
def memory_only(novelty_graph):
    """A graph without a sampler: the memory `memory`, `other`, and more nodes."""
    def graph(memory: dict | None = None, other: dict | None = None, **more) -> Prompt:
        whole = novelty_graph(memory=memory, more=more | {"other": ("UncommonNoveltyMemory", {
            "name": "other", "mode": "learn", "revision": -1, "max_megabytes": 64}
            | (other or {}))})
        return {name: node for name, node in whole.items()
                if name in ("memory", "other") or name in more}
    return graph


@pytest.fixture
def draws(fresh_host, novelty_graph):
    """Draws into a memory; returns the sampled latents."""
    def draw(name: str = "test", count: int = 1, **inputs) -> list:
        return [fresh_host.run(novelty_graph(memory={"name": name}, **{"seed": seed} | inputs))
                .outputs["sampled"][0]["samples"] for seed in range(count)]
    return draw


@pytest.fixture
def held(fresh_host):
    """The content hashes that a memory holds."""
    def read(name: str) -> list[str]:
        memory = fresh_host.pack("guidance.novelty_memory").NoveltyMemory
        url = fresh_host.pack("nodes._host").default_database()
        return [entry.content_hash for entry in memory(url=url, name=name).log.samples()]
    return read


@pytest.fixture
def exported(fresh_host, draws, memory_only):
    """A file of three samples in the input folder."""
    draws(count=3)
    report = fresh_host.run(memory_only(out=export())).outputs["out"][0]
    target = fresh_host.directory / "input" / "shared.safetensors"
    shutil.move(report.splitlines()[-1], target)
    yield target
    target.unlink(missing_ok=True)


def merge(**inputs) -> tuple[str, dict]:
    return ("UncommonMergeMemories",
            {"memory": ["other", 0], "source": ["memory", 0]} | inputs)


def export(**inputs) -> tuple[str, dict]:
    return ("UncommonExportMemory", {"memory": ["memory", 0], "filename_prefix": "m/kept"} | inputs)


def bring_in(**inputs) -> tuple[str, dict]:
    return ("UncommonImportMemory", {"memory": ["other", 0], "file": "shared.safetensors"} | inputs)


def test_merging_adds_what_is_new(fresh_host, draws, memory_only, held):
    draws(count=3)
    draws("other", seed=0)  # the very first image of `test`
    run = fresh_host.run(memory_only(merged=merge()))
    assert run.outputs["merged"][1].startswith(
        "other: 2 new from test@3, 1 remembered already\nMemory now: 3 samples")
    assert run.ui["merged"]["text"] == [run.outputs["merged"][1]]
    assert held("other") == held("test")
    again = fresh_host.run(memory_only(merged=merge()))
    assert "0 new from test@3, 3 remembered already" in again.outputs["merged"][1]
    earlier = memory_only(memory={"mode": "frozen", "revision": 2}, other={"name": "third"},
                          merged=merge())
    assert "2 new from test@2" in fresh_host.run(earlier).outputs["merged"][1]


def test_what_was_merged_pushes(fresh_host, draws, memory_only):
    first = draws()[0]
    fresh_host.run(memory_only(merged=merge()))
    pushed = draws("other")[0]
    assert not torch.allclose(first, pushed, atol=0.05)


def test_a_memory_travels_as_a_file(fresh_host, draws, memory_only, held, exported):
    run = fresh_host.run(memory_only(imported=bring_in()))
    assert run.outputs["imported"][1].startswith(
        "other: 3 new from shared.safetensors, 0 remembered already")
    assert held("other") == held("test")
    drawn, elsewhere = draws("test", seed=9)[0], draws("other", seed=9)[0]
    assert torch.equal(drawn, elsewhere)  # both memories push alike


def test_exporting_again_replaces_nothing(fresh_host, draws, memory_only):
    draws(count=2)
    files = []
    for _ in range(2):
        report = fresh_host.run(memory_only(
            memory={"mode": "frozen", "revision": len(files) + 1}, out=export())).outputs["out"][0]
        assert report.startswith(f"test@{len(files) + 1}: {len(files) + 1} samples, ")
        files.append(Path(report.splitlines()[-1]))
    assert files[0] != files[1]
    assert all(file.is_relative_to(fresh_host.directory / "output" / "m") for file in files)
    for count, file in enumerate(files, start=1):
        with safe_open(file, "pt") as stored:
            assert len(stored.get_tensor("embedding")) == count


def test_export_after_a_sampler_has_the_new_image(fresh_host, novelty_graph):
    run = fresh_host.run(novelty_graph(more={"out": export(after=["sampled", 0])}))
    assert run.outputs["out"][0].startswith("test@1: 1 samples")


def test_nothing_leaves_the_output_folder(fresh_host, draws, memory_only, tmp_path):
    draws()
    with pytest.raises(RunFailed) as failed:
        fresh_host.run(memory_only(out=export(filename_prefix="../../escaped")))
    assert "output" in failed.value.message.lower()


def test_an_empty_memory_is_not_exported(fresh_host, memory_only):
    with pytest.raises(RunFailed, match="holds no samples") as failed:
        fresh_host.run(memory_only(out=export()))
    assert failed.value.node_id == "out"


@pytest.mark.parametrize("file", ["gone.safetensors", "../user/x.safetensors", "/etc/passwd"])
def test_a_file_that_is_not_in_the_input_folder(fresh_host, memory_only, exported, file):
    with pytest.raises(PromptRejected) as rejected:
        fresh_host.run(memory_only(imported=bring_in(file=file)))
    assert "input folder: it holds" in str(rejected.value) and exported.name in str(rejected.value)


def test_a_file_that_is_no_memory(fresh_host, memory_only, exported, held):
    exported.write_bytes(exported.read_bytes()[:-50])
    with pytest.raises(RunFailed, match="cannot be imported") as failed:
        fresh_host.run(memory_only(imported=bring_in()))
    assert failed.value.node_id == "imported"
    assert held("other") == []


def test_a_file_that_changed_is_read_again(fresh_host, memory_only, exported):
    graph = memory_only(imported=bring_in())
    for _ in range(2):
        fresh_host.run(graph)
    assert "imported" not in fresh_host.run(graph).executed
    exported.write_bytes(exported.read_bytes())
    assert "imported" in fresh_host.run(graph).executed


def test_an_interrupted_import_goes_on(fresh_host, memory_only, exported, held, monkeypatch):
    monkeypatch.setattr(fresh_host.pack("guidance.memory.exchange"), "PAGE", 1)

    def stop(node_id, step, steps):
        assert steps == 3
        if step == 2:
            fresh_host.interrupt()

    with pytest.raises(Interrupted):
        fresh_host.run(memory_only(imported=bring_in()), on_progress=stop)
    assert 2 <= len(held("other")) < 4
    fresh_host.run(memory_only(imported=bring_in()))
    assert held("other") == held("test")


@pytest.mark.parametrize("node", ["merge", "import"])
def test_a_frozen_memory_is_refused(fresh_host, memory_only, exported, node):
    added = merge() if node == "merge" else bring_in()
    with pytest.raises(RunFailed, match='Memory "other" is frozen'):
        fresh_host.run(memory_only(other={"mode": "frozen"}, added=added))


def test_another_feature_space_is_refused(fresh_host, memory_only, exported, held):
    memory = fresh_host.pack("guidance.novelty_memory").NoveltyMemory(
        url=fresh_host.pack("nodes._host").default_database(), name="other")
    memory.record(memory.bank.at(), "latent/1/Flux/16", hashes=["0" * 64],
                  embedding=torch.zeros(1, 8), prompt=None, seed=0, settings={}, previews=[None])
    for added in (merge(), bring_in()):
        with pytest.raises(RunFailed, match="Spaces are never mixed") as failed:
            fresh_host.run(memory_only(added=added))
        assert "Flux" in failed.value.message and "latent-8x8" in failed.value.message
    assert held("other") == ["0" * 64]
