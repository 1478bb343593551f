"""Pushes that reach as far at high noise as at low, in the host."""

from __future__ import annotations

import re

import pytest
import torch

pytestmark = pytest.mark.usefixtures("page_with_texts")

REMEMBERED = 32
FROZEN = {"mode": "frozen", "revision": REMEMBERED}
TEACHER, STUDENT = "digits", "digits_distilled"


@pytest.fixture
def draw(fresh_host, novelty_graph):
    """Draws with images of the model itself remembered, which no draw adds to."""
    remember(fresh_host, novelty_graph)

    def drawn(early: str | None, model: str = STUDENT, guidance: dict | None = None, **options):
        early_push = {} if early is None else {"early_push": early}
        return fresh_host.run(novelty_graph(
            memory=FROZEN | {"name": model}, guidance=early_push | (guidance or {}),
            more=load(model), **options))

    return drawn


def remember(host, novelty_graph) -> dict:
    """Has each model's own memory remember images of it; the runs, by the model."""
    return {name: host.run(novelty_graph(seed=1, batch=REMEMBERED, cfg=1.0, memory={"name": name},
                                         more=load(name))) for name in (TEACHER, STUDENT)}


def load(model: str) -> dict:
    return {"model": ("UncommonLoadADM", {"model_name": model})}


def latent(run) -> torch.Tensor:
    return run.outputs["sampled"][0]["samples"]


def shown(run) -> str:
    return "\n".join(data[1] for event, data in run.events if event == "progress_text")


def early_steps(run) -> int:
    told = re.search(r"Early push in (\d+) of these steps", shown(run))
    return int(told[1]) if told else 0


def test_graphs_from_before_the_input_are_drawn_as_they_were(draw):
    assert torch.equal(latent(draw(None, cfg=1.0)), latent(draw("off", cfg=1.0)))


def test_auto_pushes_early_what_settles_early(draw):
    high_noise = {"cfg": 1.0, "steps": 20, "guidance": {"radius": 0.5, "end_percent": 0.25}}
    student, teacher = draw("auto", **high_noise), draw("auto", TEACHER, **high_noise)
    plain, all_steps = draw("off", **high_noise), early_steps(draw("on", TEACHER, **high_noise))
    assert early_steps(student) == all_steps > 2
    assert early_steps(teacher) <= 1
    assert early_steps(plain) == 0
    assert not torch.equal(latent(student), latent(plain))


def test_auto_is_off_under_cfg(draw):
    assert torch.equal(latent(draw("auto", cfg=3.0)), latent(draw("off", cfg=3.0)))
    assert not torch.equal(latent(draw("on", cfg=3.0)), latent(draw("off", cfg=3.0)))


@pytest.mark.parametrize(("early", "cfg", "steps", "looks"), [
    ("auto", 1.0, 10, True), ("auto", 1.0, 11, False), ("auto", 1.5, 10, False),
    ("on", 1.5, 10, True), ("off", 1.0, 10, False)])
def test_few_steps_are_pushed_from_the_first_on_and_the_node_says_so(draw, early, cfg, steps,
                                                                     looks):
    assert ("asked once more" in shown(draw(early, cfg=cfg, steps=steps))) is looks


def test_nothing_is_looked_at_before_the_window(draw):
    late = {"cfg": 1.0, "steps": 4, "guidance": {"start_percent": 0.3}}
    assert "asked once more" not in shown(draw("auto", **late))


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
