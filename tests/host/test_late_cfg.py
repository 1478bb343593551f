"""CFG that begins within the denoising."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("page_with_texts")

FROZEN = {"mode": "frozen", "revision": 1}


@pytest.fixture
def draw(fresh_host, novelty_graph):
    """Draws with one image remembered, which no draw adds to."""
    fresh_host.run(novelty_graph(seed=1))

    def drawn(start: float | None, **options):
        guidance = {} if start is None else {"cfg_start_percent": start}
        return fresh_host.run(novelty_graph(
            memory=FROZEN, guidance=guidance | options.pop("guidance", {}), **options))

    return drawn


def latent(run) -> torch.Tensor:
    return run.outputs["sampled"][0]["samples"]


def shown(run) -> str:
    return "\n".join(data[1] for event, data in run.events if event == "progress_text")


def test_as_long_as_cfg_has_not_begun_the_run_is_that_of_cfg_1(draw):
    late, never = draw(1.0, cfg=3.0), draw(0.0, cfg=1.0)
    assert torch.equal(latent(late), latent(never))
    assert not torch.equal(latent(late), latent(draw(0.0, cfg=3.0)))


def test_graphs_from_before_the_input_are_drawn_as_they_were(draw):
    assert torch.equal(latent(draw(None, cfg=3.0)), latent(draw(0.0, cfg=3.0)))


@pytest.mark.parametrize(("sampler", "per_step"), [("euler", 1), ("heun", 2)])
def test_begins_at_its_noise_level(draw, fresh_host, sampler, per_step):
    run = draw(0.35, cfg=3.0, sampler=sampler, steps=20)
    sampling = run.outputs["guided"][0].get_model_object("model_sampling")
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 20)
    before = int((sigmas > sampling.percent_to_sigma(0.35)).sum())
    assert 3 < before < 10
    # The second evaluation of a heun step is at the next step's noise level.
    assert f"CFG began after {per_step * before - (per_step - 1)} evaluations" in shown(run)


@pytest.mark.parametrize("options", [{"cfg": 1.0}, {"guidance": {"strength": 0.0}}])
def test_says_nothing_where_nothing_was_changed(draw, options):
    run = draw(0.35, **options)
    assert "CFG began" not in shown(run)
    assert torch.equal(latent(run), latent(draw(0.0, **options)))


def test_an_error_leaves_the_cfg_as_it_was(host):
    late = host.pack("nodes._late_cfg").LateCFG(1.0)
    guider = SimpleNamespace(cfg=7.0)
    with pytest.raises(RuntimeError), late.evaluation(guider, torch.tensor([2.0])):
        assert guider.cfg == 1.0
        raise RuntimeError
    assert guider.cfg == 7.0
    with late.evaluation(guider, torch.tensor([0.5])):
        assert guider.cfg == 7.0
    assert late.skipped == 1
