"""The benchmark of the features space's design: it changes what it says, and nothing stays so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import chains, features
from benchmarks.chains import Chain, Sampler, draw, guidance_defaults
from benchmarks.features import DESIGNS, DIT, HOOKS, LABELS, Design, behind
from benchmarks.models import DIGITS
from benchmarks.peers.node import register

BASE = {"cfg_start_percent": 0.0, "radius": 0.3}
SAME_PLACE = {
    DIGITS: behind(lambda net: net.middle_block),
    DIT: behind(lambda net: net.double_blocks[-1], features._image_tokens)}


@pytest.fixture
def drawn(fresh_host, tmp_path, monkeypatch):
    monkeypatch.setattr(chains, "WORK", tmp_path)
    register(fresh_host)
    fresh_host.load_extra("nodes_preview_any")
    defaults = guidance_defaults(fresh_host)

    def draw_with(design: Design) -> torch.Tensor:
        chain = replace(design.chains(defaults)[0], sampler=Sampler("euler", 3), count=3)
        with design.applied(fresh_host):
            return draw(fresh_host, chain).images
    return draw_with


@pytest.mark.parametrize("model", LABELS)
def test_a_hook_is_as_good_as_the_patch_point(drawn, model):
    """At the shipped place, and both do something there."""
    shipped = Design(what="shipped", model=model, guidance=BASE)
    hooked = replace(shipped, what="hooked", values={(HOOKS, "tapped"): SAME_PLACE[model]})
    images = drawn(shipped)
    assert torch.equal(drawn(hooked), images)
    assert not torch.allclose(drawn(Design(what="none", model=model, plain=True)), images)


def test_every_change_ends(drawn):
    """Each design draws other images than the shipped one, which draws the same after all."""
    shipped = Design(what="shipped", guidance=BASE)
    images = drawn(shipped)
    for design in DESIGNS:
        if design.model == DIGITS and design.values:
            assert not torch.equal(drawn(design), images), design.what
    assert torch.equal(drawn(shipped), images)


def test_only_what_changes_the_code_has_a_file_of_its_own():
    defaults = {"radius": 0.0, "cfg_start_percent": 0.35, "early_push": "auto",
                "repulsion": "net"}
    shipped = next(one for one in DESIGNS if one.what == "shipped").chains(defaults)[0]
    same = Chain(sampler=shipped.sampler, cfg=3.0, label=0, guidance=defaults | BASE,
                 memory={"space": "features"})
    assert shipped.file == same.file
    files = [chain.file for design in DESIGNS for chain in design.chains(defaults)]
    assert len(set(files)) == len(files)
