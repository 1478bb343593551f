"""The vision benchmark: a vision model that learns, in the real KSampler; and tables of chains."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import chain_table, chains, results, vision, vision_encoder
from benchmarks.chain_table import Table, lines
from benchmarks.chains import Chain, Drawn, Sampler, draw
from benchmarks.measures import DigitsMeasure
from benchmarks.vision import ROWS, known_again
from demo.data import digits
from demo.workflow import widget_defaults

CHAIN = Chain(sampler=Sampler("euler", 2), cfg=1.0, label=3, count=8)


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(chains, "WORK", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    return tmp_path


@pytest.fixture
def encoder(fresh_host, work, monkeypatch):
    file = work / "encoder.safetensors"
    monkeypatch.setattr(vision, "ENCODER", file)
    monkeypatch.setattr(vision_encoder, "STEPS", 60)
    vision_encoder.train(file)
    vision_encoder.register(file)
    fresh_host.load_extra("nodes_preview_any")
    return file


def test_turned_and_shifted_digits_differ_and_stay_pictures():
    images = digits()[0][:8]
    moved = vision_encoder.turned_and_shifted(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.abs().max() <= 1
    assert ((moved - images).abs().mean(dim=(1, 2, 3)) > 0.05).all()


def test_the_vision_model_knows_turned_digits_again_and_guides(fresh_host, encoder):
    from demo.host.small_models import fill

    images = digits()[0][:100]
    turned = vision_encoder.turned_and_shifted(images, torch.Generator().manual_seed(1))
    untrained = vision_encoder.empty()
    fill(untrained.model, 0)
    known = []
    for clip_vision in (untrained, vision_encoder.loaded(encoder)):
        with torch.no_grad():
            one, other = (vision_encoder.embed(clip_vision, some) for some in (images, turned))
        assert known_again(one, one) == 1
        known.append(known_again(other, one))
    assert known[1] > 2 * known[0], known

    defaults = widget_defaults(
        fresh_host.pack_nodes[chains.GUIDANCE_NODE].GET_NODE_INFO_V1())
    rows = {row.what: row for row in ROWS}
    plain, every_2nd, every = (
        draw(fresh_host, replace(rows[what].chains(defaults)[1], sampler=Sampler("euler", 6),
                                 count=2)).images
        for what in ("seed change only", "every 2nd step", "every step"))
    assert torch.equal(plain[0], every[0])  # nothing was remembered yet
    assert len({str(images[1].tolist()) for images in (plain, every_2nd, every)}) == 3


def test_rows_of_the_benchmark_have_files_of_their_own(encoder):
    defaults = {"radius": 0.0, "early_push": "auto", "repulsion": "net", "candidates": 1,
                "vision_every_n_steps": 2}
    files = [chain.file for row in ROWS for chain in row.chains(defaults)]
    assert len(set(files)) == len(files)


def test_a_table_keeps_what_is_measured_when_the_images_are_gone(work):
    measure = DigitsMeasure()
    other = replace(CHAIN, seeds=1)
    images = digits()[0][digits()[1] == 3][:8]
    Drawn(images, torch.arange(8.0), "code").save(CHAIN)
    table = Table("some")
    assert table.missing([CHAIN, other]) == [other]
    assert table.row("both", [CHAIN, other], measure) == []
    rows = table.row("one", [CHAIN], measure)
    found, = rows[0]["chains"]
    assert found["distinct_good"] == int(measure.distinct_good(images, 3)[-1])
    assert found["seconds"] == 3.0

    results.write_json("some", {"rows": rows})
    CHAIN.file.unlink()
    assert chain_table.Table("some").row("one", [CHAIN], measure) == json.loads(json.dumps(rows))
    assert chain_table.Table("some").missing([CHAIN]) == []
    assert lines(rows, [3])[-1].startswith(f"| one | {found['distinct_good']} (")
