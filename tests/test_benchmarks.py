"""The benchmark's measures on sets whose figures are known, and one small chain."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import Tensor

from benchmarks import chains
from benchmarks.chains import Chain, Sampler, draw, guidance_defaults, is_drawn, load
from benchmarks.measures import MANIFOLD_K, DigitsMeasure, vendi_score
from benchmarks.novelty import PARTS, is_outdated
from benchmarks.novelty_report import summarise
from benchmarks.novelty_rows import Earlier, grouped, measured, ratio, worth
from demo.data import digits
from dev import ROOT

LABEL = 3
CHAIN = Chain(sampler=Sampler("euler_ancestral", 3), cfg=1.5, label=LABEL, count=3)
COMMANDS = [*(file.stem for file in (ROOT / "benchmarks").glob("*.py")
              if "__main__" in file.read_text("utf-8")), "peers.command"]


@pytest.fixture(scope="module")
def measure() -> DigitsMeasure:
    return DigitsMeasure()


@pytest.fixture(scope="module")
def threes() -> Tensor:
    images, labels = digits()
    return images[labels == LABEL]


def test_duplicates_count_once(measure, threes):
    same = threes[:1].repeat(5, 1, 1, 1)
    assert measure.distinct_good(same, LABEL).tolist() == [1] * 5


def test_junk_counts_nothing(measure):
    noise = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert measure.distinct_good(noise, LABEL)[-1] == 0


def test_real_digits_of_another_class_count_nothing(measure, threes):
    assert measure.distinct_good(threes[:6], LABEL + 1)[-1] == 0


def test_a_real_digit_is_measured_by_the_others(measure):
    real = measure.real.features
    is_good = measure.good_real(LABEL)
    threes = (measure.real.labels == LABEL).nonzero()[:, 0]
    for is_one_good in (True, False):
        for number in threes[is_good == is_one_good][:4].tolist():
            others = torch.cat([real[:number], real[number + 1:]])
            distance = torch.cdist(others, others)
            radius = distance.kthvalue(MANIFOLD_K + 1, dim=1).values
            inside = (torch.cdist(real[number:number + 1], others)[0] <= radius).any()
            assert inside == is_one_good


def test_distinct_real_digits_are_good_ones(measure):
    curve = measure.distinct_real(LABEL)
    assert len(curve) == len(measure.good_real(LABEL))
    assert 1 < curve[-1] <= measure.good_real(LABEL).sum()
    assert not torch.equal(curve, measure.distinct_real(LABEL, order=1))


def test_digits_far_apart_all_count(measure, threes):
    good = threes[measure.good(threes, LABEL)]
    features = measure.features(good)
    far = [0]
    while len(far) < 6:
        far.append(int(torch.cdist(features, features[far]).min(dim=1).values.argmax()))
    assert measure.distinct_good(good[far], LABEL).tolist() == [1, 2, 3, 4, 5, 6]


def test_vendi_score():
    assert math.isclose(vendi_score(torch.ones(7, 4)), 1, rel_tol=1e-6)
    assert math.isclose(vendi_score(torch.eye(7)), 7, rel_tol=1e-6)


def test_summary_of_real_digits(measure, threes):
    figures = measure.summary(threes, LABEL)
    assert figures["precision"] == figures["recall"] == figures["coverage"] == 1
    assert figures["good"] > 0.98
    assert figures["class_accuracy"] > 0.98
    assert all(math.isfinite(value) for value in figures.values())


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder for chains."""
    monkeypatch.setattr(chains, "WORK", tmp_path)


@pytest.fixture
def bench_host(fresh_host):
    fresh_host.load_extra("nodes_preview_any")
    return fresh_host


def test_a_chain_with_memory(bench_host, work):
    guided = replace(CHAIN, guidance=guidance_defaults(bench_host))
    plain, pushed = draw(bench_host, CHAIN), draw(bench_host, guided)
    assert pushed.images.shape == (3, 3, 16, 16)
    assert torch.equal(plain.images[0], pushed.images[0])  # the memory is empty
    assert not torch.equal(plain.images[2], pushed.images[2])  # it lived on when it was reopened
    pushed.save(guided)
    assert is_drawn(guided) and not is_drawn(CHAIN)
    assert torch.equal(load(guided).images, pushed.images.half().float())


def test_a_plain_chain_goes_on_where_it_stopped(bench_host, work):
    short = replace(CHAIN, count=1)
    draw(bench_host, short).save(short)
    assert is_drawn(short) and not is_drawn(CHAIN)
    seen = []
    run = bench_host.run
    bench_host.run = lambda prompt: seen.append(prompt["sampled"]["inputs"]["seed"]) or run(prompt)
    try:
        assert len(draw(bench_host, CHAIN).images) == 3
    finally:
        del bench_host.run
    assert seen == [1, 2]


def test_a_chain_drawn_again_is_as_long_as_it_was(bench_host, work):
    guided = replace(CHAIN, guidance=guidance_defaults(bench_host))
    draw(bench_host, guided).save(guided)
    assert len(draw(bench_host, replace(guided, count=2)).images) == 3


def test_features_are_a_method_of_their_own(work):
    guidance = {"repulsion": "net", "strength": 0.3, "radius": 0.15, "cfg_start_percent": 0.35}
    latent = replace(CHAIN, guidance=guidance, count=128)
    features = replace(latent, memory={"space": "features"})
    images, labels = digits()
    for chain in (latent, features):
        chains.Drawn(images[labels == LABEL][:128], torch.ones(128), "code").save(chain)
    rows = measured([latent, features])
    assert [row.method for row in rows] == ["net", "features"]
    assert [row.is_default(guidance) for row in rows] == [True, False]
    assert len(grouped(rows)) == 2


def test_headline_figures(work):
    """Ours: 64 different digits, each twice; plain: 32 different ones, then the other 32."""
    images, labels = digits()
    guidance = {"repulsion": "exact", "strength": 0.3, "radius": 0.2, "cfg_start_percent": 0.35}
    one = images[labels == LABEL][:64]
    plain = Chain(sampler=CHAIN.sampler, cfg=3.0, label=LABEL, count=256)
    ours = replace(plain, guidance=guidance, count=128)
    for chain, drawn in ((plain, torch.cat([one[:32].repeat(4, 1, 1, 1), one.repeat(2, 1, 1, 1)])),
                         (ours, one.repeat(2, 1, 1, 1))):
        chains.Drawn(drawn, torch.ones(len(drawn)), "code").save(chain)
    rows = measured([plain, ours, replace(plain, cfg=6.0)])
    assert [row.method for row in rows] == ["plain", "exact"]
    groups = grouped(rows)
    ratio_here = ratio(groups[1], groups[0])
    assert ratio_here > 1.2
    times, is_bound = worth(groups[1], groups[0])
    assert 1 < times <= 1.5 and not is_bound
    (plain_row,), (our_row,) = (group.values() for group in groups)
    shorter = replace(plain_row, curve=plain_row.curve[:160])
    assert worth({0: our_row, 1: our_row}, {0: plain_row, 1: shorter}) == (times, is_bound)
    summary = summarise(groups, guidance, 3.0)
    assert summary["distinct_ratio_same_cfg"] == summary["distinct_ratio_best_cfg"] == ratio_here
    assert summary["worth_plain_images"] == times
    assert summary["distinct_ratio_ball"] is None and summary["distinct_ratio_late_cfg"] is None
    assert summary["chains"] == 1


def test_parts_are_named_once_and_start_with_the_shipped_defaults():
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert {} in PARTS[0].guidance and None in PARTS[0].guidance


def test_figures_outlive_the_images(work, monkeypatch):
    images, labels = digits()
    chain = replace(CHAIN, count=192)
    chains.Drawn(images[labels == LABEL][:192].repeat(2, 1, 1, 1)[:192], torch.ones(192),
                 "code").save(chain)
    [row] = measured([chain])
    chain.file.unlink()
    earlier = Earlier([json.loads(json.dumps(row.as_json()))])
    assert measured([chain]) == []
    [again] = measured([chain], earlier)
    assert torch.equal(again.curve, row.curve)
    assert again.as_json() == row.as_json()
    assert earlier.row(chain) and earlier.row(replace(chain, count=193)) is None
    chains.Drawn(images[:128], torch.ones(128), "code").save(chain)  # drawn anew, not as far
    [again] = measured([chain], earlier)
    assert torch.equal(again.curve, row.curve)


def test_only_what_other_code_guided_is_outdated(work):
    plain = replace(CHAIN, count=128)
    guided = replace(plain, guidance={"repulsion": "exact"})
    for code, outdated in ((chains.code_hash(), False), ("another", True)):
        earlier = Earlier({"file": chain.file.stem, "images": 128, "code": code}
                          for chain in (plain, guided))
        assert is_outdated(guided, earlier) is outdated
        assert not is_outdated(plain, earlier)
        assert not is_outdated(replace(guided, label=8), earlier)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_starts_nothing(name, monkeypatch, capsys):
    benchmark = import_module(f"benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert benchmark.__doc__.splitlines()[0] in capsys.readouterr().out
