"""The plan of the matrix benchmark, and what it keeps and reports."""

from __future__ import annotations

import itertools
import json

from benchmarks import matrix
from benchmarks.pairwise import all_pairs, pairs, pairwise

AXES = {"model": ["a", "b", "c"], "sampler": ["p", "q", "r", "s"], "cfg": [1.0, 3.0]}


def outcome(row: dict, **changes) -> dict:
    return {"case": row, "code": "x", "failures": [], "refused": None, "evaluations": 4,
            "off_grid": 1, "outside": 2, "pushed": 3, "early": 0} | changes


def test_the_plan_is_the_product_with_every_pair_first():
    rows = matrix.plan(AXES)
    first = rows[:len(pairwise(AXES))]
    assert set().union(*map(pairs, first)) == all_pairs(AXES)
    product = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
    assert sorted(map(matrix.key, rows)) == sorted(map(matrix.key, product))
    assert rows == matrix.plan(AXES)


def test_what_a_crash_cut_off_is_drawn_again_and_the_last_of_a_case_counts(tmp_path, monkeypatch):
    one, other, third = matrix.plan(AXES)[:3]
    lines = [outcome(one, failures=["off"]), outcome(other), outcome(one)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + json.dumps(outcome(third))[:40]
    (tmp_path / "matrix.jsonl").write_text(text, "utf-8")
    monkeypatch.setattr(matrix, "DRAWN", tmp_path / "matrix.jsonl")
    found = matrix.kept()
    assert {*found} == {matrix.key(one), matrix.key(other)}
    assert found[matrix.key(one)]["failures"] == []


def test_failures_and_refusals_are_counted_by_value():
    rows = matrix.plan(AXES)[:4]
    drawn = [outcome(row) for row in rows[:2]] + [
        outcome(rows[2], failures=["off by one"]), outcome(rows[3], refused="ValueError")]
    summary = matrix.summarise(drawn, 24, 12)
    assert (summary["cases"], summary["of"], summary["every_pair_with"]) == (4, 24, 12)
    assert (summary["failed"], summary["refused_by_the_host"], summary["pushed"]) == (1, 1, 12)
    table = matrix.by_value(drawn, AXES)
    assert table["model"][rows[2]["model"]]["failed"] == 1
    assert sum(cell["cases"] for cell in table["sampler"].values()) == 4


def test_nothing_kept_is_nothing_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "DRAWN", tmp_path / "none.jsonl")
    assert matrix.kept() == {}
