"""Pushes that reach as far at high noise as at low, in the host."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.usefixtures("page_with_texts")

FROZEN = {"mode": "frozen", "revision": 1}


@pytest.fixture
def draw(fresh_host, novelty_graph):
    """Draws with one image remembered, which no draw adds to."""
    fresh_host.run(novelty_graph(seed=1))

    def drawn(early: str | None, **options):
        guidance = {} if early is None else {"early_push": early}
        memory = FROZEN | options.pop("memory", {})
        return fresh_host.run(novelty_graph(
            memory=memory, guidance=guidance | options.pop("guidance", {}), **options))

    return drawn


def latent(run) -> torch.Tensor:
    return run.outputs["sampled"][0]["samples"]


def shown(run) -> str:
    return "\n".join(data[1] for event, data in run.events if event == "progress_text")


def test_graphs_from_before_the_input_are_drawn_as_they_were(draw):
    assert torch.equal(latent(draw(None, cfg=1.0)), latent(draw("off", cfg=1.0)))


def test_auto_is_on_without_cfg_only(draw):
    assert torch.equal(latent(draw("auto", cfg=1.0)), latent(draw("on", cfg=1.0)))
    assert not torch.equal(latent(draw("auto", cfg=1.0)), latent(draw("off", cfg=1.0)))
    assert torch.equal(latent(draw("auto", cfg=3.0)), latent(draw("off", cfg=3.0)))
    assert not torch.equal(latent(draw("on", cfg=3.0)), latent(draw("off", cfg=3.0)))


@pytest.mark.parametrize(("steps", "looks"), [(10, True), (11, False)])
def test_few_steps_are_pushed_from_the_first_on_and_the_node_says_so(draw, steps, looks):
    assert ("asked once more" in shown(draw("auto", cfg=1.0, steps=steps))) is looks


def test_a_single_step_is_pushed(draw):
    assert "single step" in shown(draw("off", cfg=1.0, steps=1))
    assert "single step" not in shown(draw("auto", cfg=1.0, steps=1))


def test_where_nothing_is_pushed_nothing_is_looked_at(draw):
    still = {"guidance": {"strength": 0.0}, "cfg": 1.0, "steps": 4}
    assert torch.equal(latent(draw("on", **still)), latent(draw("off", **still)))
    assert "asked once more" not in shown(draw("on", **still))


def test_of_no_use_to_ball_and_the_node_says_so(draw):
    ball = {"guidance": {"repulsion": "ball"}, "cfg": 1.0}
    run = draw("on", **ball)
    assert "Not used: early_push" in shown(run)
    assert torch.equal(latent(run), latent(draw("off", **ball)))
