"""Novelty Memory and Novelty Guidance with the host's own samplers around them."""

from __future__ import annotations

import json
import random
import re
import sqlite3

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from demo.host import Interrupted, PromptRejected, RunFailed

pytestmark = pytest.mark.usefixtures("page_with_texts")

SAMPLED = ["sampled", 0]


@pytest.fixture
def draw(fresh_host, novelty_graph):
    """Runs a graph; what it drew as `[batch, 3, height, width]`."""
    def run(*args, of: str = "sampled", **kwargs) -> Tensor:
        return fresh_host.run(novelty_graph(*args, **kwargs)).outputs[of][0]["samples"]
    return run


@pytest.fixture
def memory(fresh_host):
    """The memory that the graphs use, as a NoveltyMemory."""
    return open_memory(fresh_host)


def open_memory(host, name: str = "test"):
    url = host.pack("nodes._host").default_database()
    return host.pack("guidance.novelty_memory").NoveltyMemory(url=url, name=name)


def shown(run, node: str = "guided") -> str:
    """The last text that a node of the page was told to show."""
    texts = [data for event, data in run.events if event == "progress_text" and data[0] == node]
    return texts[-1][1]


def unguided(graph: dict) -> dict:
    """The graph as the page queues it with Novelty Guidance bypassed."""
    graph = {name: node for name, node in graph.items() if name not in ("guided", "memory")}
    for node in graph.values():
        node["inputs"] = {key: ["model", 0] if value == ["guided", 0] else value
                          for key, value in node["inputs"].items()}
    return graph


def sampler(latent: str, *, seed: int = 0, denoise: float = 1.0, model: str = "guided",
            steps: int = 6, **changes) -> tuple[str, dict]:
    return ("KSampler", {
        "model": [model, 0], "positive": ["positive", 0], "negative": ["negative", 0],
        "latent_image": [latent, 0], "seed": seed, "steps": steps, "cfg": 2.0,
        "sampler_name": "euler", "scheduler": "normal", "denoise": denoise} | changes)


def advanced(latent: str, *, start: int = 0, end: int = 10000, noise: str = "enable",
             leftover: str = "disable") -> tuple[str, dict]:
    return ("KSamplerAdvanced", {
        "model": ["guided", 0], "positive": ["positive", 0], "negative": ["negative", 0],
        "latent_image": [latent, 0], "noise_seed": 0, "steps": 6, "cfg": 2.0,
        "sampler_name": "euler", "scheduler": "normal", "add_noise": noise,
        "start_at_step": start, "end_at_step": end, "return_with_leftover_noise": leftover})


def upscaled(samples: str, size: int = 256) -> tuple[str, dict]:
    """LatentUpscale counts eight pixels a latent: 256 is 32 of ours."""
    return ("LatentUpscale", {"samples": [samples, 0], "upscale_method": "bilinear",
                              "width": size, "height": size, "crop": "disabled"})


def shows(samples: str) -> tuple[str, dict]:
    return ("SaveLatent", {"samples": [samples, 0], "filename_prefix": "shown"})


# Without effect

@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_strength_zero_is_the_plain_host_bit_for_bit(fresh_host, novelty_graph, draw, memory, name):
    draw(seed=1, sampler=name)
    graph = novelty_graph(seed=2, batch=2, sampler=name, guidance={"strength": 0.0})
    guided = fresh_host.run(graph)
    bypassed = fresh_host.run(unguided(graph))
    assert torch.equal(guided.outputs["sampled"][0]["samples"],
                       bypassed.outputs["sampled"][0]["samples"])
    assert "Nothing pushed: strength is 0." in shown(guided)
    assert len(memory.bank.at()) == 3


def test_empty_memory_is_the_plain_host_bit_for_bit(fresh_host, novelty_graph):
    graph = novelty_graph()
    guided, bypassed = fresh_host.run(graph), fresh_host.run(unguided(graph))
    assert torch.equal(guided.outputs["sampled"][0]["samples"],
                       bypassed.outputs["sampled"][0]["samples"])
    assert "Nothing pushed: the memory is empty." in shown(guided)


@pytest.mark.parametrize("window", [(0.6, 0.5), (0.0, 0.0)])
def test_a_closed_window_is_the_plain_host_bit_for_bit(fresh_host, novelty_graph, draw, window):
    """With all that the page switches on by default."""
    draw(seed=1)
    graph = novelty_graph(seed=2, batch=2, memory={"mode": "frozen"}, guidance=dict(
        zip(("start_percent", "end_percent"), window, strict=True), cfg_start_percent=0.35,
        early_push="auto", candidates=0, antithetic_noise=True))
    guided, bypassed = fresh_host.run(graph), fresh_host.run(unguided(graph))
    assert torch.equal(guided.outputs["sampled"][0]["samples"],
                       bypassed.outputs["sampled"][0]["samples"])
    assert "no step lies between start_percent and end_percent" in shown(guided)
    assert "CFG began" not in shown(guided) and "antithetic" not in shown(guided)


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_sde"])
def test_global_random_states_are_as_without_guidance(fresh_host, novelty_graph, draw, name):
    draw(seed=1)
    states = []
    for graph in (novelty_graph(seed=2, sampler=name, batch=2), novelty_graph(
            seed=2, sampler=name, batch=2)):
        del graph["saved"], graph["images"]  # saving draws a random file name
        graph["shown"] = {"class_type": "SaveLatent",
                          "inputs": {"samples": SAMPLED, "filename_prefix": "shown"}}
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        fresh_host.run(unguided(graph) if states else graph)
        states.append((torch.random.get_rng_state(), np.random.get_state()[1].tolist(),
                       random.getstate()))
    (ours, *rest), (theirs, *others) = states
    assert torch.equal(ours, theirs)
    assert rest == others


# Samplers

@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_sde", "euler_ancestral",
                                  "uni_pc"])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_samplers_are_pushed_away(draw, memory, name, cfg):
    first = draw(sampler=name, cfg=cfg)
    again = draw(sampler=name, cfg=cfg)
    assert first.isfinite().all() and again.isfinite().all()
    assert (first - again).square().mean().sqrt() > 0.1
    assert memory.log.stats().live_samples == 2


@pytest.mark.parametrize("repulsion", ["exact", "ball"])
def test_every_repulsion_pushes(draw, repulsion):
    first, again = (draw(guidance={"repulsion": repulsion}) for _ in range(2))
    assert again.isfinite().all()
    assert not torch.allclose(first, again, atol=0.05)


def test_stronger_pushes_farther(draw, novelty_graph, fresh_host, memory):
    first = draw()
    frozen = {"mode": "frozen", "revision": 1}
    moved = [(draw(memory=frozen, guidance={"strength": strength}) - first).norm().item()
             for strength in (0.0, 0.05, 0.2, 0.6)]
    assert moved[0] == 0
    assert moved == sorted(moved)


def test_custom_samplers(fresh_host, novelty_graph, memory):
    def graph(guider: tuple[str, dict]) -> dict:
        return novelty_graph(more={
            "noise": ("RandomNoise", {"noise_seed": 0}),
            "guider": guider,
            "solver": ("KSamplerSelect", {"sampler_name": "euler"}),
            "sigmas": ("BasicScheduler", {"model": ["guided", 0], "scheduler": "normal",
                                          "steps": 6, "denoise": 1.0}),
            "sampled": ("SamplerCustomAdvanced", {
                "noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["solver", 0],
                "sigmas": ["sigmas", 0], "latent_image": ["latent", 0]})})

    basic = graph(("BasicGuider", {"model": ["guided", 0], "conditioning": ["positive", 0]}))
    dual = graph(("DualCFGGuider", {
        "model": ["guided", 0], "cond1": ["positive", 0], "cond2": ["positive", 0],
        "negative": ["negative", 0], "cfg_conds": 2.0, "cfg_cond2_negative": 2.0,
        "style": "regular"}))
    for count, one in enumerate((basic, basic, dual, dual), 1):
        run = fresh_host.run(one)
        assert memory.log.stats().live_samples == count
        if count % 2 == 0:
            assert "Pushed in" in shown(run)


def test_weights_made_by_a_loader_of_the_host(fresh_host, novelty_graph, monkeypatch):
    """These are inference tensors, which no gradient can pass."""
    loader = fresh_host.pack_nodes["UncommonLoadADM"]
    load = loader.execute.__func__

    def as_the_host_does(cls, *args, **kwargs):
        output = load(cls, *args, **kwargs)
        net = output.args[0].model.diffusion_model
        assert torch.is_inference_mode_enabled()
        net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
        assert all(p.is_inference() for p in net.parameters())
        return output

    monkeypatch.setattr(loader, "execute", classmethod(as_the_host_does))
    first, again = (fresh_host.run(novelty_graph()) for _ in range(2))
    assert "Pushed in" in shown(again)
    assert not torch.equal(first.outputs["sampled"][0]["samples"],
                           again.outputs["sampled"][0]["samples"])


FAMILIES = pytest.mark.parametrize("family", [
    ("ModelSamplingSD3", {"shift": 3.0}),
    ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": False}),
    ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": True}),
    ("ModelSamplingContinuousEDM", {"sampling": "edm", "sigma_max": 120.0, "sigma_min": 0.002})])


def of_family(family: tuple[str, dict]) -> dict:
    """Nodes that make digits a model of another family: it draws nonsense, but it draws."""
    kind, inputs = family
    return {"other": (kind, {"model": ["model", 0], **inputs}), "guided": (
        "UncommonNoveltyGuidance", {"model": ["other", 0], "memory": ["memory", 0],
                                    "strength": 0.5, "start_percent": 0.0, "end_percent": 1.0,
                                    "radius": 2.0, "repulsion": "exact"})}


@FAMILIES
@pytest.mark.parametrize("repulsion", ["exact", "ball"])
def test_families(fresh_host, draw, memory, family, repulsion):
    fresh_host.load_extra("nodes_model_advanced")
    more = of_family(family)
    more["guided"][1]["repulsion"] = repulsion
    first, again = (draw(more=more) for _ in range(2))
    assert first.isfinite().all() and again.isfinite().all()
    assert not torch.allclose(first, again, atol=1e-3)
    assert memory.log.stats().live_samples == 2


@FAMILIES
def test_noise_level_is_the_hosts_own(fresh_host, novelty_graph, family):
    fresh_host.load_extra("nodes_model_advanced")
    run = fresh_host.run(novelty_graph(steps=1, more=of_family(family)))
    sampling = run.outputs["other"][0].get_model_object("model_sampling")
    for percent in (0.2, 0.5, 0.9):
        sigma = torch.tensor([sampling.percent_to_sigma(percent)])
        level = fresh_host.pack("nodes._host").noise_level(sampling, sigma)
        x0, noise = torch.randn(2, 1, 3, 4, 4)
        expected = sampling.noise_scaling(sigma.view(1, 1, 1, 1), noise, x0)
        found = level.like(level.signal, x0) * x0 + level.like(level.noise, x0) * noise
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


# Batches, masks

def test_each_of_a_batch_is_recorded_as_its_own_sample(draw, memory):
    drawn = draw(batch=3, seed=5)
    entries = list(memory.log.samples())
    assert [entry.settings["item"] for entry in entries] == [0, 1, 2]
    assert {entry.seed for entry in entries} == {5}
    assert all(entry.preview.startswith(b"\x89PNG") for entry in entries)
    hashes = memory.__class__.record.__globals__["content_hashes"](drawn)
    assert [entry.content_hash for entry in entries] == hashes


def spread(x: Tensor) -> float:
    return torch.pdist(x.flatten(1)).min().item()


def test_batch_mates_repel_each_other(draw):
    frozen = {"mode": "frozen"}
    alone = draw(batch=3, memory=frozen, guidance={"batch_repulsion": 0.0})
    apart = draw(batch=3, memory=frozen, guidance={"batch_repulsion": 1.0})
    assert spread(apart) > spread(alone)


def test_without_batch_repulsion_a_batch_is_as_if_its_images_were_alone(fresh_host, novelty_graph,
                                                                        draw, memory):
    """Item i of the batch, its noise chosen by batch_index, drawn alone."""
    draw(batch=2, seed=9)
    settings = {"memory": {"mode": "frozen", "revision": 2}, "guidance": {"batch_repulsion": 0.0}}
    together = draw(batch=3, **settings)
    for i in range(3):
        one = draw(**settings, batch=3, more={
            "one": ("LatentFromBatch", {"samples": ["latent", 0], "batch_index": i, "length": 1}),
            "sampled": sampler("one")})
        assert torch.allclose(together[i:i + 1], one, atol=1e-3)


def test_a_masked_area_is_kept(fresh_host, draw, memory):
    fresh_host.load_extra("nodes_mask")
    kept = draw(seed=3)
    masked = {
        "source": sampler("latent", seed=3, model="model"),
        "mask": ("SolidMask", {"value": 0.0, "width": 16, "height": 16}),
        "hole": ("SolidMask", {"value": 1.0, "width": 8, "height": 16}),
        "half": ("MaskComposite", {"destination": ["mask", 0], "source": ["hole", 0], "x": 0,
                                   "y": 0, "operation": "add"}),
        "masked": ("SetLatentNoiseMask", {"samples": ["source", 0], "mask": ["half", 0]}),
        "sampled": sampler("masked", seed=4)}
    filled = draw(more=masked)
    assert torch.allclose(filled[..., 8:], kept[..., 8:], atol=1e-5)
    assert not torch.allclose(filled[..., :8], kept[..., :8], atol=0.1)
    assert memory.log.stats().live_samples == 2


# What is recorded, and when

def test_a_net_that_has_much_to_learn_shows_how_far_it_is_and_can_be_cancelled(
        fresh_host, novelty_graph, memory, monkeypatch):
    points = torch.randn(40, 192, generator=torch.Generator().manual_seed(0))
    memory.record(
        memory.bank.at(), "latent-8x8/1/PixelSpace/3", hashes=[f"{n:064x}" for n in range(40)],
        embedding=points, prompt=None, seed=0, settings={}, previews=[None] * 40)
    fresh_host.pack("guidance.novelty_memory").shared_nets.cache_clear()
    monkeypatch.setattr(fresh_host.pack("guidance.memory.net_cache"), "PAGE", 10)
    graph = novelty_graph(guidance={"repulsion": "net"})

    def stop(node_id, step, steps):
        if steps == 40:
            steps_told.append((node_id, step))
            if step == 20:
                fresh_host.interrupt()

    steps_told: list = []
    with pytest.raises(Interrupted):
        fresh_host.run(graph, on_progress=stop)
    assert steps_told == [("sampled", 10), ("sampled", 20)]
    assert memory.log.revision == 40
    steps_told.clear()
    run = fresh_host.run(graph, on_progress=lambda *told: steps_told.append(told))
    assert [step for _, step, steps in steps_told if steps == 40] == [30]
    texts = [data for event, data in run.events if event == "progress_text"]
    assert texts[0] == ("guided", "Learning what is remembered: 30 of 40")
    assert memory.log.revision == 41


def test_an_interrupted_run_records_nothing(fresh_host, novelty_graph, memory):
    def stop(node_id, step, steps):
        if node_id == "sampled" and step == 3:
            fresh_host.interrupt()

    with pytest.raises(Interrupted):
        fresh_host.run(novelty_graph(), on_progress=stop)
    assert memory.log.stats().revision == 0
    fresh_host.run(novelty_graph())
    assert memory.log.stats().revision == 1


def test_a_failed_run_records_nothing(fresh_host, novelty_graph, memory):
    def fail(node_id, step, steps):
        if node_id == "sampled" and step == 3:
            raise ValueError("no power")

    with pytest.raises(RunFailed, match="no power"):
        fresh_host.run(novelty_graph(), on_progress=fail)
    assert memory.log.stats().revision == 0


def test_a_partial_pass_records_nothing_and_the_pass_that_ends_it_once(fresh_host, novelty_graph,
                                                                       memory):
    first = {"sampled": advanced("latent", end=3, leftover="enable")}
    run = fresh_host.run(novelty_graph(more=first))
    assert memory.log.stats().revision == 0
    assert "this pass ends before the last step" in shown(run)
    second = first | {"second": advanced("sampled", start=3, noise="disable"),
                      "ended": shows("second")}
    fresh_host.run(novelty_graph(more=second))
    assert memory.log.stats().revision == 1


HIRES = {"up": upscaled("sampled"), "second": sampler("up", seed=1, denoise=0.5),
         "ended": shows("second")}


def test_a_hires_pass_takes_the_place_of_the_first(fresh_host, novelty_graph, memory):
    for count in (1, 2):
        run = fresh_host.run(novelty_graph(batch=2, more=HIRES))
        assert memory.log.stats().live_samples == 2 * count
        assert "in place of 2 from the pass before" in shown(run)
    hashes = memory.__class__.record.__globals__["content_hashes"]
    live = [entry.content_hash for entry in memory.log.samples()][2:]
    assert live == hashes(run.outputs["second"][0]["samples"])


def test_a_hires_pass_is_not_pushed_from_its_own_first_pass(fresh_host, novelty_graph, memory):
    run = fresh_host.run(novelty_graph(more=HIRES))
    assert "Nothing pushed: the memory is empty." in shown(run)
    assert [entry.settings["revision"] for entry in memory.log.samples()] == [0]


@pytest.mark.parametrize(("record", "mode"), [(False, "learn"), (True, "frozen")])
def test_nor_is_one_that_does_not_record(fresh_host, novelty_graph, memory, record, mode):
    last = {"memory2": ("UncommonNoveltyMemory", {"name": "test", "mode": mode, "revision": -1,
                                                  "max_megabytes": 63}),
            "guided2": ("UncommonNoveltyGuidance", {
                "model": ["model", 0], "memory": ["memory2", 0], "strength": 0.5,
                "start_percent": 0.0, "end_percent": 1.0, "repulsion": "exact",
                "record": record})}
    run = fresh_host.run(novelty_graph(more=HIRES | last | {
        "second": sampler("up", seed=1, denoise=0.5, model="guided2")}))
    assert "Nothing pushed: the memory is empty." in shown(run, "guided2")
    assert [entry.settings["node"] for entry in memory.log.samples()] == ["sampled"]


def test_a_hires_pass_of_one_of_a_batch_leaves_the_others(fresh_host, novelty_graph, memory):
    fresh_host.run(novelty_graph(batch=3, more={
        "chosen": ("LatentFromBatch", {"samples": SAMPLED, "batch_index": 1, "length": 1}),
        "up": upscaled("chosen"), "second": sampler("up", seed=1, denoise=0.3),
        "ended": shows("second")}))
    found = list(memory.log.samples())
    assert [entry.settings["node"] for entry in found] == ["sampled", "sampled", "second"]
    assert [entry.settings["item"] for entry in found] == [0, 2, 0]


def test_a_chain_frozen_at_its_revision_comes_out_again(fresh_host, novelty_graph, memory):
    fresh_host.run(novelty_graph(seed=8))
    learning = fresh_host.run(novelty_graph(more=HIRES)).outputs["second"][0]["samples"]
    frozen = fresh_host.run(novelty_graph(more=HIRES, memory={"mode": "frozen", "revision": 1}))
    assert torch.equal(learning, frozen.outputs["second"][0]["samples"])
    assert memory.log.stats().live_samples == 2


def test_two_samplers_on_one_model_both_work_and_record(fresh_host, novelty_graph, memory):
    run = fresh_host.run(novelty_graph(more={"other": advanced("latent"),
                                             "ended": shows("other")}))
    first, other = (run.outputs[name][0]["samples"] for name in ("sampled", "other"))
    assert not torch.allclose(first, other, atol=0.05)  # the same seed: the later one was pushed
    found = list(memory.log.samples())
    assert {entry.settings["node"] for entry in found} == {"sampled", "other"}


def test_two_guidance_nodes_alike_each_show_their_report(fresh_host, novelty_graph):
    alike = {"guided2": ("UncommonNoveltyGuidance", novelty_graph()["guided"]["inputs"]),
             "other": sampler("latent", seed=1, model="guided2"), "ended": shows("other")}
    run = fresh_host.run(novelty_graph(more=alike))
    assert "Recorded 1" in shown(run, "guided") and "Recorded 1" in shown(run, "guided2")


def test_two_guidance_nodes_in_a_row(fresh_host, novelty_graph, memory):
    second = {
        "memory2": ("UncommonNoveltyMemory", {"name": "second", "mode": "learn", "revision": -1,
                                              "max_megabytes": 64}),
        "guided2": ("UncommonNoveltyGuidance", {
            "model": ["guided", 0], "memory": ["memory2", 0], "strength": 0.5,
            "start_percent": 0.0, "end_percent": 1.0, "repulsion": "exact"}),
        "sampled": sampler("latent", model="guided2")}
    for count in (1, 2):
        run = fresh_host.run(novelty_graph(more=second))
        for name in ("test", "second"):
            assert open_memory(fresh_host, name).log.stats().live_samples == count
    assert "Pushed in" in shown(run, "guided") and "Pushed in" in shown(run, "guided2")


def test_recording_can_be_switched_off(fresh_host, novelty_graph, memory):
    run = fresh_host.run(novelty_graph(guidance={"record": False}))
    assert memory.log.stats().revision == 0
    assert "recording is switched off" in shown(run)


def test_an_image_that_the_host_itself_breaks_is_not_remembered(fresh_host, novelty_graph, memory):
    run = fresh_host.run(novelty_graph(sampler="seeds_3", scheduler="kl_optimal", steps=1))
    assert not run.outputs["sampled"][0]["samples"].isfinite().all()
    assert memory.log.stats().revision == 0
    assert "left out 1 whose values are no numbers" in shown(run)


def test_a_failed_recording_does_not_cost_the_image(fresh_host, novelty_graph, memory, monkeypatch,
                                                    caplog):
    log = fresh_host.pack("guidance.memory").Memory

    def full(*_):
        raise fresh_host.pack("guidance.memory").StorageError("database or disk is full. Free it.")

    with monkeypatch.context() as patch:
        patch.setattr(log, "append", full)
        run = fresh_host.run(novelty_graph())
    assert run.outputs["sampled"][0]["samples"].isfinite().all()
    assert "saved" in run.ui
    assert "is not remembered: database or disk is full" in shown(run)
    assert "is not remembered" in caplog.text
    assert memory.log.stats().revision == 0


# The same seed again

def test_same_seed_gives_a_new_image_each_time_while_learning(draw, memory):
    drawn = torch.cat([draw(steps=10) for _ in range(4)])
    assert spread(drawn) > 1
    assert memory.log.stats().live_samples == 4


def test_frozen_at_one_revision_gives_the_same_image(fresh_host, draw):
    for _ in range(2):
        draw()
    third = draw()  # guided by revision 2
    draw(seed=4)
    frozen = {"memory": {"mode": "frozen", "revision": 2}}
    assert torch.equal(draw(**frozen), third)
    fresh_host.restart()
    assert torch.equal(draw(**frozen), third)
    fresh_host.pack("guidance.novelty_memory").shared_bank.cache_clear()
    fresh_host.restart()
    assert torch.equal(draw(**frozen), third)


def test_only_what_depends_on_the_memory_runs_again(fresh_host, novelty_graph):
    fresh_host.run(novelty_graph())
    again = fresh_host.run(novelty_graph()).executed
    assert again == ["memory", "guided", "sampled", "images", "saved"]
    frozen = novelty_graph(memory={"mode": "frozen"})
    fresh_host.run(frozen)
    assert fresh_host.run(frozen).executed == []


def test_the_radius_comes_from_the_memory(fresh_host, novelty_graph, memory):
    """A frozen memory gives the same radius again."""
    fitted = {"guidance": {"radius": 0.0}}
    first = fresh_host.run(novelty_graph(batch=8, **fitted))
    assert "Radius 0.180, until 4 samples of this prompt are remembered" in shown(first)
    graph = novelty_graph(seed=1, memory={"mode": "frozen", "revision": 8}, **fitted)
    [told] = [line for line in shown(fresh_host.run(graph)).splitlines() if "Radius" in line]
    assert re.fullmatch(r"Radius 0\.\d{3}, from the distances in the memory", told)
    run = fresh_host.run(novelty_graph(seed=1, **fitted))
    assert told in shown(run)
    *_, entry = memory.log.samples()
    assert f"{entry.settings['radius']:.3f}" == told.split()[1].rstrip(",")
    assert entry.settings["radius"] != pytest.approx(0.18)


def test_saved_images_tell_memory_revision_strength_and_seed(fresh_host, novelty_graph):
    for seed in (6, 7):
        run = fresh_host.run(novelty_graph(seed=seed, more={
            "other": sampler("latent", seed=11), "ended": shows("other")}))
    file = run.ui["saved"]["images"][0]["filename"]
    with Image.open(fresh_host.directory / "output" / file) as image:
        prompt = json.loads(image.info["prompt"])
    note = prompt["guided"]["_meta"]["uncommon"]["sampled"]
    assert note["memory"] in ("test@2", "test@3")  # the host may run either sampler first
    assert (note["strength"], note["seed"]) == (0.5, 7)
    assert note["recorded"] == [int(note["memory"].split("@")[1]) + 1]


# Errors on the node

def test_another_models_memory_is_refused_and_both_spaces_are_named(fresh_host, novelty_graph,
                                                                    draw, memory, monkeypatch):
    draw()
    space = fresh_host.pack("guidance.latent_space").LatentSpace
    monkeypatch.setattr(fresh_host.pack("nodes._latents"), "latent_space",
                        lambda model: space("Flux", 16))
    with pytest.raises(RunFailed) as failed:
        draw(seed=1)
    assert failed.value.node_id == "guided"
    assert "PixelSpace/3" in failed.value.message and "Flux/16" in failed.value.message
    assert memory.log.stats().revision == 1


@pytest.mark.parametrize(("inputs", "message"), [
    ({"mode": "frozen", "revision": 7}, "has no revision 7: it has revisions 0 to 1"),
    ({"name": "../secret"}, "cannot name a memory"),
    ({"name": ""}, "cannot name a memory"),
    ({"database": "sqlite:////proc/no/such/place.sqlite"}, "in a folder that this user may write"),
    ({"database": "nonsense"}, "is not a database URL"),
])
def test_bad_memories_say_what_to_do(draw, inputs, message):
    draw()
    with pytest.raises(RunFailed) as failed:
        draw(memory=inputs)
    assert failed.value.node_id == "memory"
    assert message in failed.value.message


@pytest.mark.parametrize(("inputs", "message"), [
    ({"mode": "learn", "revision": 3}, "Set revision to -1, or mode to frozen"),
    ({"mode": "forget"}, "expected one of learn, frozen"),
    ({"mode": "frozen", "revision": -2}, "expected -1 for the latest"),
])
def test_settings_that_contradict_are_rejected_at_once(fresh_host, novelty_graph, inputs, message):
    with pytest.raises(PromptRejected, match=message):
        fresh_host.run(novelty_graph(memory=inputs))


def test_a_linked_revision_is_checked_when_it_is_known(fresh_host, novelty_graph, draw):
    number = {"number": ("PrimitiveInt", {"value": 1})}
    fresh_host.load_extra("nodes_primitive")
    draw()
    draw(more=number, memory={"mode": "frozen", "revision": ["number", 0]})
    with pytest.raises(RunFailed, match="Set revision to -1, or mode to frozen"):
        draw(more=number, memory={"mode": "learn", "revision": ["number", 0]})


def test_a_damaged_file_is_left_as_it_is(fresh_host, draw, tmp_path):
    file = tmp_path / "damaged.sqlite"
    file.write_bytes(b"SQLite format 3\0" + b"junk" * 1000)
    with pytest.raises(RunFailed, match="Nothing was changed"):
        draw(memory={"database": f"sqlite:///{file}"})
    assert file.read_bytes() == b"SQLite format 3\0" + b"junk" * 1000


def test_the_log_is_an_ordinary_database(draw, memory):
    draw()
    url = memory.url.removeprefix("sqlite:///")
    with sqlite3.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM novelty_entry").fetchone() == (1,)
