"""Starting noises that are tried before a run, in the host."""

from __future__ import annotations

import re

import pytest
import torch

from guidance.latent_space import LatentSpace

from .test_early_push import FROZEN, STUDENT, TEACHER, latent, load, remember, shown

pytestmark = pytest.mark.usefixtures("page_with_texts")

FAR = {"radius": 0.2}  # so that most images are near a remembered one


@pytest.fixture
def draw(fresh_host, novelty_graph):
    """Draws with images of the model itself remembered, which no draw adds to."""
    remembered = {name: latent(run) for name, run in remember(fresh_host, novelty_graph).items()}

    def drawn(candidates: int | None, model: str = STUDENT, guidance: dict | None = None,
              more: dict | None = None, sampler: dict | None = None, on_progress=None, **options):
        given = FAR | (guidance or {})
        if candidates is not None:
            given["candidates"] = candidates
        graph = novelty_graph(memory=FROZEN | {"name": model}, guidance=given,
                              more=load(model) | (more or {}), **options)
        graph["sampled"]["inputs"].update(sampler or {})
        return fresh_host.run(graph, on_progress=on_progress)

    drawn.remembered = remembered
    return drawn


def started(run) -> tuple[int, int, str] | None:
    """The number of the noise, how many were tried, and by what."""
    told = re.search(r"Started from noise (\d+) of (\d+) tried, by (.+)", shown(run))
    return (int(told[1]), int(told[2]), told[3]) if told else None


def distance(run, remembered: torch.Tensor) -> float:
    """To the nearest remembered image."""
    space = LatentSpace("Test", 3)
    return torch.cdist(space.embed(latent(run)), space.embed(remembered)).min().item()


def test_a_run_without_a_step_has_no_choice(draw):
    """As the high half of sigmas that are split at their first."""
    whole = draw(4, more={
        "schedule": ("BasicScheduler", {"model": ["guided", 0], "scheduler": "normal", "steps": 4,
                                        "denoise": 1.0}),
        "halves": ("SplitSigmas", {"sigmas": ["schedule", 0], "step": 0}),
        "euler": ("KSamplerSelect", {"sampler_name": "euler"}),
        "sampled": ("SamplerCustom", {
            "model": ["guided", 0], "add_noise": True, "noise_seed": 0, "cfg": 1.0,
            "positive": ["positive", 0], "negative": ["negative", 0], "sampler": ["euler", 0],
            "sigmas": ["halves", 0], "latent_image": ["latent", 0]})})
    assert "Not used: candidates, since the run has no step." in shown(whole)


def test_graphs_from_before_the_input_are_drawn_as_they_were(draw):
    assert torch.equal(latent(draw(None, cfg=1.0)), latent(draw(1, cfg=1.0)))


def test_another_noise_leads_farther_from_what_is_remembered(draw):
    farther = []
    for seed in range(5, 11):
        alone, tried = (draw(candidates, cfg=1.0, seed=seed) for candidates in (1, 16))
        assert torch.equal(latent(alone), latent(tried)) is (started(tried)[0] == 1)
        if started(tried)[0] > 1:
            farther.append(distance(tried, draw.remembered[STUDENT])
                           > distance(alone, draw.remembered[STUDENT]))
    assert len(farther) >= 3 and sum(farther) > 0.7 * len(farther)


def test_a_look_tells_on_a_distilled_model_and_a_preview_on_others(draw):
    assert started(draw(2, cfg=1.0))[2] == "one look at each"
    assert started(draw(2, TEACHER, cfg=3.0))[2] == "a preview of 4 steps each"


@pytest.mark.parametrize(("options", "reason"), [
    ({"sampler": {"denoise": 0.5}}, "does not start from pure noise"),
    ({"guidance": {"start_percent": 0.2}}, "start_percent leaves the start alone"),
    ({"guidance": {"strength": 0.0}}, "nothing to stay away from"),
])
def test_says_why_no_noise_is_tried(draw, options, reason):
    run = draw(4, cfg=1.0, **options)
    assert reason in shown(run) and started(run) is None
    assert torch.equal(latent(run), latent(draw(1, cfg=1.0, **options)))


def test_a_masked_latent_keeps_its_noise(draw, fresh_host):
    fresh_host.load_extra("nodes_mask")
    masked = {"more": {
        "mask": ("SolidMask", {"value": 1.0, "width": 16, "height": 16}),
        "masked": ("SetLatentNoiseMask", {"samples": ["latent", 0], "mask": ["mask", 0]})},
        "sampler": {"latent_image": ["masked", 0]}, "cfg": 1.0}
    run = draw(4, **masked)
    assert "the latent has a mask" in shown(run)
    assert torch.equal(latent(run), latent(draw(1, **masked)))


def test_previews_run_without_cfg_and_leave_it_to_the_run(draw, monkeypatch):
    import comfy.samplers

    seen, real = [], comfy.samplers.sampling_function

    def watched(model, x, timestep, uncond, cond, cfg, *args, **kwargs):
        seen.append(cfg)
        return real(model, x, timestep, uncond, cond, cfg, *args, **kwargs)

    monkeypatch.setattr(comfy.samplers, "sampling_function", watched)
    tried = started(draw(3, TEACHER, cfg=3.0, steps=8,
                         guidance={"cfg_start_percent": 0.0}))[1]
    assert seen == [1.0] * 4 * tried + [3.0] * 8


@pytest.mark.parametrize("cache", ["LazyCache", "EasyCache"])
def test_looks_do_not_disturb_a_cache_nor_it_them(draw, fresh_host, cache):
    """With the given noise good enough, the run is that without a look; with others to try, the
    choice is that without a cache."""
    fresh_host.load_extra("nodes_easycache")
    cached = {"more": {"cached": (cache, {"model": ["guided", 0], "reuse_threshold": 3.0,
                                          "start_percent": 0.0, "end_percent": 1.0,
                                          "verbose": False})},
              "sampler": {"model": ["cached", 0]}}
    settings = {"model": TEACHER, "cfg": 1.0, "steps": 8}
    far = {"guidance": {"radius": 0.01}} | settings
    looked, alone = (draw(candidates, **far, **cached) for candidates in (4, 1))
    assert started(looked)[:2] == (1, 1)
    assert torch.equal(latent(looked), latent(alone))
    assert not torch.equal(latent(alone), latent(draw(1, **far)))  # the cache is at work
    assert started(draw(8, **settings, **cached)) == started(draw(8, **settings))


def test_the_progress_bar_counts_the_looks(draw):
    seen = []
    run = draw(8, TEACHER, cfg=1.0, steps=5,
               on_progress=lambda node, step, steps: seen.append((node, step, steps)))
    looks = [(step, steps) for node, step, steps in seen if node == "sampled" and steps == 8 * 4]
    assert looks == [(number, 32) for number in range(1, 4 * started(run)[1] + 1)]


@pytest.fixture
def learn(fresh_host, novelty_graph):
    """Draws image after image into a memory, with candidates at 0; the runs."""
    def learned(count: int, model: str = STUDENT, cfg: float = 1.0, steps: int = 20,
                memory: dict | None = None, guidance: dict | None = None, first: int = 1):
        given = {"radius": 0.0, "early_push": "auto", "candidates": 0} | (guidance or {})
        return [fresh_host.run(novelty_graph(
            seed=seed, cfg=cfg, steps=steps, memory={"name": "learnt"} | (memory or {}),
            guidance=given, more=load(model))) for seed in range(first, first + count)]
    return learned


def test_by_itself_it_looks_where_the_images_before_were_settled(learn):
    """Two remembered images tell whether the next is settled; then those after it know."""
    told = [started(run) for run in learn(8)]
    assert told[:3] == [None] * 3
    assert all(tried <= 4 and by == "one look at each" for _, tried, by in told[-3:])
    assert max(tried for _, tried, _ in told[-3:]) > 1
    assert started(learn(1, steps=12, first=9)[0])[1] <= 2


def test_by_itself_it_does_not_look_at_what_settles_late(learn):
    assert [started(run) for run in learn(8, model=TEACHER)] == [None] * 8


@pytest.mark.parametrize("settings", [
    {"cfg": 3.0}, {"steps": 4}, {"guidance": {"early_push": "off"}},
    {"guidance": {"candidates": 1}}, {"guidance": {"repulsion": "ball"}}])
def test_by_itself_it_looks_nowhere_else(learn, settings):
    learn(7)
    assert [started(run) for run in learn(2, first=8, **settings)] == [None] * 2


def test_a_frozen_memory_gives_the_same_image_again_by_itself(learn, fresh_host):
    drawn = learn(8)[-1]
    fresh_host.restart()
    again, = learn(1, memory={"mode": "frozen", "revision": 7}, first=8)
    assert started(again) == started(drawn) is not None
    assert torch.equal(latent(again), latent(drawn))


def test_only_runs_from_pure_noise_tell_whether_they_were_settled(fresh_host, learn,
                                                                  novelty_graph):
    learn(8)
    graph = novelty_graph(seed=9, cfg=1.0, steps=20, memory={"name": "learnt"}, more=load(STUDENT),
                          guidance={"early_push": "auto", "candidates": 0})
    graph["sampled"]["inputs"]["denoise"] = 0.5
    fresh_host.run(graph)
    memory = fresh_host.pack("guidance.novelty_memory").NoveltyMemory(
        url=fresh_host.pack("nodes._host").default_database(), name="learnt")
    told = [entry.settings.get("settled") for entry in memory.log.samples()]
    assert told[:2] == [None, None] and told[-1] is None
    assert told[2:-1].count(True) > 3 and None not in told[2:-1]
