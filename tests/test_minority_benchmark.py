"""The measures of the avatars on sets whose figures are known, and one small set drawn."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import minority_costs, minority_report, minority_scores, minority_sets
from benchmarks.avatars_measures import AvatarsMeasure
from benchmarks.minority import BOOST, GUIDANCE, PARTS, SELF
from benchmarks.minority_orderings import ORDERINGS, RAREST, orderings_table
from benchmarks.minority_sets import Set, draw, is_drawn, load, save
from demo.avatars import ATTRIBUTES, avatars
from demo.avatars_reader import broken
from demo.workflow import widget_defaults

BATCH = 20
SMALL = Set(name="plain", count=BATCH, steps=2)


@pytest.fixture(scope="module")
def measure() -> AvatarsMeasure:
    return AvatarsMeasure(real=1500)


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    return avatars(300, seed=8, rates=dict.fromkeys(ATTRIBUTES, 0.1))[0]


def test_drawn_faces_are_intact_and_have_their_attributes(measure, faces):
    figures = measure.summary(faces)
    _, attributes = avatars(300, seed=8, rates=dict.fromkeys(ATTRIBUTES, 0.1))
    for i, name in enumerate(ATTRIBUTES):
        assert figures[name] == pytest.approx(attributes[:, i].float().mean().item(), abs=0.015)
    assert figures["intact"] > 0.95
    assert figures["precision"] > 0.85
    assert all(math.isfinite(value) for value in figures.values())


def test_broken_faces_are_found_out(measure, faces):
    spoilt = broken(faces, faces.roll(1, 0), torch.Generator().manual_seed(0))
    good, bad = measure.summary(faces), measure.summary(spoilt)
    assert bad["intact"] < 0.2
    assert bad["precision"] < good["precision"] - 0.1
    assert bad["avgknn"] > good["avgknn"]


def test_rare_faces_are_outliers(measure):
    rates = dict.fromkeys(ATTRIBUTES, 0.0)
    common = measure.summary(avatars(100, seed=9, rates=rates)[0])
    rare = measure.summary(avatars(100, seed=9, rates=rates | {"side": 1.0, "hat": 1.0})[0])
    assert rare["avgknn"] > 1.2 * common["avgknn"]
    assert rare["lof"] > common["lof"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder for sets."""
    for module in (minority_costs, minority_sets, minority_scores):
        monkeypatch.setattr(module, "WORK", tmp_path)
    monkeypatch.setattr(minority_sets, "BATCH", BATCH)
    monkeypatch.setattr(minority_report, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.results.RESULTS", tmp_path)
    monkeypatch.setattr(minority_report, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(
        "<!-- figures: from benchmarks/results/minority.md -->\n<!-- end of figures -->\nOther "
        "figures stay.\n<!-- end of figures -->", "utf-8")
    return tmp_path


@pytest.fixture
def bench_host(fresh_host):
    fresh_host.load_extra("nodes_preview_any")
    return fresh_host


def test_a_set_goes_on_where_it_stopped(bench_host, work):
    assert draw(bench_host, SMALL) == BATCH
    first = load(SMALL)
    assert first.shape == (BATCH, 3, 24, 24) and is_drawn(SMALL)
    larger = replace(SMALL, count=2 * BATCH)
    assert not is_drawn(larger)
    assert draw(bench_host, larger) == BATCH
    assert torch.equal(load(larger)[:BATCH], first)
    assert torch.equal(load(SMALL), first)


def test_the_score_ranks_rare_above_common(bench_host, work, monkeypatch):
    monkeypatch.setattr(minority_scores, "SIGMAS", (0.6,))
    rows = minority_scores.ranking(bench_host, common=24, rare=12)
    best = {row["distance"]: row["auc"] for row in rows}
    assert best["latent_l2"] > 0.85


def test_scores_of_a_smaller_set_are_not_those_of_a_larger_one(bench_host, work, faces):
    larger = replace(SMALL, count=2 * BATCH)
    save(larger, faces.repeat(4, 1, 1, 1)[:larger.count])
    np.save(minority_scores.scores_file(SMALL), np.ones(SMALL.count))
    assert len(minority_scores.load_scores(SMALL)) == SMALL.count
    assert minority_scores.load_scores(larger) is None
    minority_scores.score_set(bench_host, larger)
    assert len(minority_scores.load_scores(larger)) == larger.count


def test_costs_are_by_the_image_and_kept(bench_host, work, monkeypatch):
    monkeypatch.setattr(minority_costs, "IMAGES", 2)
    slower = replace(SMALL, name="more steps", steps=20)
    assert minority_costs.load_costs() == {}
    minority_costs.measure_costs(bench_host, [SMALL, slower])
    costs = minority_costs.load_costs()
    assert 0 < costs["plain"] < costs["more steps"]


def test_report(bench_host, work, faces):
    defaults = {name: widget_defaults(bench_host.pack_nodes[name].GET_NODE_INFO_V1())
                for name in (GUIDANCE, SELF, BOOST)}
    plan = {name: make(defaults)[:4] for name, make in PARTS.items()}
    rare = avatars(300, seed=8, rates=dict.fromkeys(ATTRIBUTES, 0.5))[0]
    for wanted in plan["main"]:
        save(wanted, (rare if "99" in wanted.name else faces).repeat(4, 1, 1, 1)[:wanted.count])
    trained = plan["ablation"][0]
    trained_file = minority_sets.classifier_file(trained.patch.classifier)
    trained_file.parent.mkdir(exist_ok=True)
    trained_file.write_bytes(b"weights")
    save(trained, faces.repeat(4, 1, 1, 1)[:trained.count])
    minority_report.write_report(plan, defaults)
    written = json.loads((work / "minority.json").read_text("utf-8"))
    assert len(written["sets"]["main"]) == len(plan["main"])
    assert written["summary"]["rare_rate_ratio"] > 2
    assert (work / "minority_grid.png").is_file()
    for file in ("minority.md", "README.md"):
        assert "| plain | 1000 |" in (work / file).read_text("utf-8")
    assert "Other figures stay." in (work / "README.md").read_text("utf-8")

    for file in (work / "minority").iterdir():
        file.unlink()
    (work / "minority_grid.png").unlink()
    minority_report.write_report(plan, defaults)
    again = json.loads((work / "minority.json").read_text("utf-8"))
    assert again["sets"] == written["sets"], "figures of sets whose images are not here are lost"
    assert [row["method"] for row in again["sets"]["ablation"]] == [trained.name]
    assert not (work / "minority_grid.png").is_file()


def test_what_the_paper_orders_is_drawn():
    defaults = {name: {"beta": 1.0} for name in (GUIDANCE, SELF, BOOST)}
    drawn = {one.name for make in PARTS.values() for one in make(defaults)} | {RAREST}
    assert not {name for one in ORDERINGS for name in one.sets} - drawn


def test_an_ordering_holds_only_where_every_value_is_larger():
    classes = ("class, rarity 0", "class, rarity 50", "class, rarity 99")
    scales = {"class, rarity 99, scale 6": {"lof_spread": 0.2},
              "class, rarity 99, scale 1": {"lof_spread": 0.1}}

    def table(*lof):
        return orderings_table({name: {"lof": value}
                                for name, value in zip(classes, lof, strict=True)} | scales)[2:]

    assert table(1.0, 1.1, 1.2)[0].endswith("| 1, 1.1, 1.2 | yes |")
    assert table(1.0, 1.1, 1.1)[0].endswith("| 1, 1.1, 1.1 | no |")
    assert "| 0.2, 0.1 | no: scale 1 leaves" in table(1.0, 1.1, 1.2)[1]
    assert len(table(1.0, 1.1, 1.2)) == 2, "what is not drawn is left out"
    assert orderings_table({}) == []
