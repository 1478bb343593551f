"""The benchmarks of scale and overhead: what they build, keep and report."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import overhead_report, scale, scale_memories, scale_report
from benchmarks.scale_memories import SPACE, build, opened, synthetic
from guidance.novelty_memory import shared_bank, shared_nets

SIZE = 60


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty place for memories and figures."""
    for module in (scale_memories, scale):
        monkeypatch.setattr(module, "WORK", tmp_path)
    monkeypatch.setattr(scale, "FIGURES", tmp_path / "figures.json")
    monkeypatch.setattr(scale_memories, "BLOCK", 25)
    for shared in (shared_bank, shared_nets):
        shared.cache_clear()
    return tmp_path


def test_builds_a_memory_as_the_log_would(folder):
    build(SIZE)
    memory = opened(SIZE)
    assert memory.log.stats().live_samples == memory.log.revision == SIZE
    remembered = memory.bank.at()
    assert torch.equal(remembered.embedding[:25], synthetic(0, 25)[0])
    assert torch.equal(remembered.prompt[25:50], synthetic(25, 25)[1].half().float())
    entry = next(iter(memory.log.samples()))
    assert entry.size_bytes == SPACE.dim * 4 + 64 * 2 + 6_000
    total = sum(one.size_bytes for one in memory.log.samples())
    assert memory.log.stats().live_bytes == total


def test_goes_on_where_it_stopped(folder):
    build(30)
    path = scale_memories.file(30)
    path.rename(scale_memories.file(SIZE))
    build(SIZE)
    assert opened(SIZE).log.revision == SIZE


def test_samples_of_one_prompt_are_nearer_than_others():
    embedding, prompt = synthetic(0, 600)
    distance = torch.cdist(embedding, embedding)
    same = (prompt @ prompt.T > 0.99).fill_diagonal_(False)
    other = ~same.clone().fill_diagonal_(True)
    assert distance[same].mean() < 0.7 * distance[other].mean()


def test_measures_and_reports_a_small_memory(folder, monkeypatch):
    monkeypatch.setattr(scale, "in_new_process", scale.open_cold)
    monkeypatch.setattr(scale, "ROUNDS", 3)
    monkeypatch.setattr(scale_report, "RESULTS", folder)
    monkeypatch.setattr(scale_report, "write_json", lambda name, content: (
        folder / f"{name}.json").write_text(json.dumps(content)))
    monkeypatch.setattr(scale_report, "circumstances", lambda command: {
        "command": command, "date": "", "machine": {"processor": "", "cores": 1},
        "versions": {"torch": ""}})
    figures = scale.measure([SIZE])
    assert figures[f"agreement {SIZE}"]["rank_correlation"] == pytest.approx(1)  # it is not full
    assert figures[f"record {SIZE}"]["median"] > 0
    assert opened(SIZE).log.stats().live_samples == SIZE + scale.RECORDED  # when full none is added
    scale_report.write_report(figures, scale.KINDS)
    assert f"| {SIZE} |" in (folder / "scale.md").read_text()
    assert scale.measure([SIZE]) == figures  # everything is kept


def test_own_time_of_a_step_is_told_from_the_models():
    runs = [{"variant": "plain", "round": 0, "model": [[9.0, 2.0], [1.0, 1.0], [1.0, 1.0]]},
            {"variant": "both", "round": 0, "model": [[9.0, 2.0], [1.0, 1.0], [1.0, 1.0]],
             "novelty": [[5.0, 5.0], [0.1, 0.1], [0.1, 0.1]],
             "minority": [[4.0, 0.6], [0.0, 0.0], [0.0, 0.0]], "novelty run": [[0.7, 0.5]]}]
    table = overhead_report.rows(runs)
    assert table["both"]["ratio"] == pytest.approx(1.3)
    assert table["both"]["image_in_steps"] == pytest.approx(0.5)
    assert table["both"]["side_by_side"][0] == pytest.approx(20.2 / 11)
    headline = overhead_report.summary({"sd15 batch 1": runs})
    assert headline["sd15_novelty_latent"] == pytest.approx(1.1)
    assert headline["sd15_minority"] == pytest.approx(1.2)
    assert headline["novelty_us_per_step"] is None
