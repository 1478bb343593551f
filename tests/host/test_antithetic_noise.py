"""Batches that start from antithetic noises, in the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.antithetic_noise import antithetic

from .test_novelty import advanced, sampler, shown, spread

pytestmark = pytest.mark.usefixtures("page_with_texts")

FROZEN = {"mode": "frozen"}
TOLD = "started from antithetic noises"


@pytest.fixture
def run(fresh_host, novelty_graph, monkeypatch):
    """Runs a graph with nothing remembered; what the node shows, x_t of the first step, and what
    was drawn."""
    import comfy.samplers

    real, seen = comfy.samplers.sampling_function, []

    def watched(model, x, *args, **kwargs):
        seen.append(x.clone())
        return real(model, x, *args, **kwargs)

    monkeypatch.setattr(comfy.samplers, "sampling_function", watched)

    def ran(on: bool | None, guidance: dict | None = None, **options) -> tuple[str, Tensor, Tensor]:
        seen.clear()
        given = dict(guidance or {}) | ({} if on is None else {"antithetic_noise": on})
        ran = fresh_host.run(novelty_graph(memory=FROZEN, guidance=given, **options))
        return shown(ran), seen[0], ran.outputs["sampled"][0]["samples"]
    return ran


@pytest.mark.parametrize(("batch", "amount"), [(2, 1.0), (4, 1.0), (3, 0.5)])
def test_a_batch_starts_from_antithetic_noises(run, batch, amount):
    guidance = {"batch_repulsion": amount}
    _, plain, _ = run(False, guidance, batch=batch)
    told, x, _ = run(True, guidance, batch=batch)
    assert TOLD in told
    assert torch.allclose(x, antithetic(plain, amount), atol=1e-4)


def test_of_two_nodes_one_makes_the_noises_antithetic(run):
    """Twice would make the noise larger, since it is not independent any more."""
    second = {"memory2": ("UncommonNoveltyMemory", {
                  "name": "second", "revision": -1, "max_megabytes": 64, **FROZEN}),
              "guided2": ("UncommonNoveltyGuidance", {
                  "model": ["guided", 0], "memory": ["memory2", 0], "strength": 0.5,
                  "start_percent": 0.0, "end_percent": 1.0, "repulsion": "exact",
                  "antithetic_noise": True})}
    _, once, _ = run(True, batch=2)
    _, twice, _ = run(True, batch=2, more=second | {"sampled": sampler("latent", model="guided2")})
    assert torch.equal(once, twice)


def test_the_images_of_a_batch_differ_more(run):
    pairs = [[spread(run(on, {"end_percent": 0.01}, batch=2, seed=seed)[2]) for on in (False, True)]
             for seed in range(12)]
    before, after = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    assert after > 1.02 * before


def test_graphs_from_before_the_input_are_drawn_as_they_were(run):
    assert torch.equal(run(None, batch=3)[2], run(False, batch=3)[2])


@pytest.mark.parametrize(("guidance", "options"), [
    ({"strength": 0.0}, {"batch": 2}), ({"batch_repulsion": 0.0}, {"batch": 2}), ({}, {})])
def test_where_no_image_pushes_another_the_noise_stays(run, guidance, options):
    told, _, drawn = run(True, guidance, **options)
    assert "antithetic" not in told
    assert torch.equal(drawn, run(False, guidance, **options)[2])


@pytest.mark.parametrize(("options", "reason"), [
    ({"guidance": {"start_percent": 0.2}}, "start_percent leaves the start alone"),
    ({"more": {"sampled": advanced("latent", noise="disable")}}, "the noise is disabled"),
    ({"more": {"copies": ("LatentBatchSeedBehavior", {"samples": ["latent", 0],
                                                      "seed_behavior": "fixed"}),
               "sampled": sampler("copies")}}, "images of the batch share a noise")])
def test_says_why_the_noises_stay(run, fresh_host, options, reason):
    fresh_host.load_extra("nodes_latent")
    told, _, drawn = run(True, batch=2, **options)
    assert f"Not used: antithetic_noise, since {reason}." in told
    assert torch.equal(drawn, run(False, batch=2, **options)[2])
