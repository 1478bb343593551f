"""A sample repels in proportion to the similarity of the prompts, on the digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from demo.host import InProcessHost

from .test_novelty import shown

FULL_OF, OTHER, COUNT = 8, 3, 24
RADIUS = 0.8  # so wide that by distance alone every digit is near every other
SAMPLER = {"seed": 5, "steps": 6, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal",
           "denoise": 1.0}


@pytest.fixture
def full(fresh_host, novelty_graph) -> InProcessHost:
    """A host whose memory is full of class 8, drawn without guidance."""
    graph = novelty_graph(FULL_OF, batch=COUNT, more={
        "kept": ("UncommonRememberSamples", {
            "model": ["model", 0], "memory": ["memory", 0], "latent": ["sampled", 0],
            "conditioning": ["positive", 0]}),
        "sampled": ("KSampler", SAMPLER | {
            "model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0],
            "latent_image": ["latent", 0]})})
    assert f"{COUNT} new" in fresh_host.run(graph).outputs["kept"][1]
    return fresh_host


@pytest.fixture
def pushed(full, novelty_graph):
    """How far the memory moves four images of a class at the same seeds, `[4]`."""
    def move(label: int, **guidance) -> Tensor:
        drawn = [full.run(novelty_graph(
            label, seed=11, batch=4, cfg=3.0, memory={"mode": "frozen"},
            guidance={"batch_repulsion": 0.0, "radius": RADIUS} | guidance | strength))
            .outputs["sampled"][0]["samples"] for strength in ({}, {"strength": 0.0})]
        return (drawn[0] - drawn[1]).flatten(1).norm(dim=1)
    return move


@pytest.mark.parametrize("repulsion", ["net", "exact", "ball"])
def test_a_memory_of_one_class_leaves_another_alone(pushed, repulsion):
    """At equal seeds class 3 moves by at most 1 % of what class 8 moves by; without the prompts it
    moves as well."""
    same = pushed(FULL_OF, repulsion=repulsion)
    assert (same > 0.5).all()
    assert (pushed(OTHER, repulsion=repulsion) <= 0.01 * same.min()).all()
    assert (pushed(OTHER, repulsion=repulsion, prompt_aware=False) > 0.1 * same.mean()).all()


@pytest.mark.usefixtures("page_with_texts")
def test_what_guidance_records_pushes_only_prompts_like_its_own(fresh_host, novelty_graph):
    fresh_host.run(novelty_graph(OTHER))
    assert "no remembered sample has a prompt like this one" in shown(
        fresh_host.run(novelty_graph(FULL_OF)))
    assert "Pushed in" in shown(fresh_host.run(novelty_graph(OTHER)))


def test_a_prompt_is_its_pooled_encoding_or_the_mean_of_its_tokens(fresh_host):
    encoded = fresh_host.pack("nodes._host").encoded_prompt
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 8, generator=generator)
    tokens = torch.randn(1, 5, 8, generator=generator)
    assert torch.equal(encoded({"positive": [{"pooled_output": a, "cross_attn": tokens}]}), a[0])
    assert torch.allclose(encoded({"positive": [{"cross_attn": tokens}]}), tokens[0].mean(0))
    both = [{"pooled_output": a}, {"pooled_output": b, "cross_attn": tokens}]
    assert torch.allclose(encoded({"positive": both, "negative": [{"pooled_output": -a}]}),
                          (a + b)[0] / 2)
    assert torch.equal(encoded({"negative": [{"pooled_output": b}]}), b[0])  # guiders of their own
    other_width = [{"pooled_output": a}, {"pooled_output": torch.ones(1, 3)}]
    assert torch.equal(encoded({"positive": other_width}), a[0])
    assert encoded({"positive": []}) is encoded({}) is None
