"""Runs that go on with one another, and what saved images tell of them."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from .test_novelty import HIRES, memory, open_memory, sampler, shown, upscaled  # noqa: F401

pytestmark = pytest.mark.usefixtures("page_with_texts")

SECOND = {"up": upscaled("sampled"), "second": sampler("up", seed=1, denoise=0.3),
          "images": ("VAEDecode", {"samples": ["second", 0], "vae": ["vae", 0]})}


def carried(host, run, node: str = "saved") -> list[dict]:
    """The prompts that the images carry which a run has saved."""
    found = []
    for image in run.ui[node]["images"]:
        with Image.open(host.directory / "output" / image["filename"]) as opened:
            found.append(json.loads(opened.info["prompt"]))
    return found


def test_a_hires_pass_goes_on_when_the_cap_drops_what_guided_the_first(
        fresh_host, novelty_graph, memory, monkeypatch):  # noqa: F811
    previews = iter(range(10 ** 6))
    monkeypatch.setattr(  # large, so that a megabyte is soon full
        fresh_host.pack("nodes._host"), "preview",
        lambda *_: next(previews).to_bytes(8, "little") * 2 ** 14)
    for seed in range(12):
        run = fresh_host.run(novelty_graph(seed=seed, steps=2, more=HIRES,
                                           memory={"max_megabytes": 1}))
        assert "in place of 1 from the pass before" in shown(run)
    assert memory.log.stats().live_samples < 9
    assert {entry.settings["node"] for entry in memory.log.samples()} == {"second"}


def test_a_sample_forgotten_during_its_hires_pass(fresh_host, novelty_graph, memory):  # noqa: F811
    def forget(node, value, total):
        if node == "second" and memory.log.stats().live_samples:
            memory.log.forget([1], "user: chosen")

    run = fresh_host.run(novelty_graph(more=SECOND), on_progress=forget)
    assert "Recorded 1" in shown(run)
    [entry] = memory.log.samples()
    [prompt] = carried(fresh_host, run)
    assert prompt["guided"]["_meta"]["uncommon"]["second"]["recorded"] == [entry.revision]


@pytest.fixture
def listed(fresh_host):
    """Nodes with which the sampler runs once for each of three latents, and then once more."""
    fresh_host.load_extra("nodes_rebatch")
    return {"latent": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 3}),
            "list": ("RebatchLatents", {"latents": ["latent", 0], "batch_size": 1}),
            "sampled": sampler("list"), **SECOND}


def test_each_of_a_list_takes_the_place_of_its_own_first_pass(
        fresh_host, novelty_graph, memory, listed):  # noqa: F811
    fresh_host.run(novelty_graph(more=listed))
    found = list(memory.log.samples())
    assert [entry.settings["node"] for entry in found] == ["second"] * 3
    assert [entry.settings["revision"] for entry in found] == [0, 1, 2]


def test_images_of_a_list_tell_of_each_of_its_runs(fresh_host, novelty_graph, listed):
    [prompt, *_] = carried(fresh_host, fresh_host.run(novelty_graph(more=listed)))
    notes = prompt["guided"]["_meta"]["uncommon"]
    assert [*notes] == ["sampled", "sampled (2)", "sampled (3)",
                        "second", "second (2)", "second (3)"]
    assert [note["memory"] for note in notes.values()] == 2 * ["test@0", "test@1", "test@2"]
    # Queued again as the image carries it, a prompt tells of its own runs alone.
    again = {name: node for name, node in prompt.items() if name not in ("list",)}
    again["sampled"]["inputs"]["latent_image"] = ["latent", 0]
    [prompt, *_] = carried(fresh_host, fresh_host.run(again))
    assert [*prompt["guided"]["_meta"]["uncommon"]] == ["sampled", "second"]


def test_an_image_that_only_shapes_another_stays_remembered(
        fresh_host, novelty_graph, memory):  # noqa: F811
    """Here as the mask of its prompt: the second sampler's latent is a photo."""
    fresh_host.load_extra("nodes_mask")
    Image.effect_noise((16, 16), 60).convert("RGB").save(
        fresh_host.directory / "input" / "photo.png")
    run = fresh_host.run(novelty_graph(more={
        "first": ("VAEDecode", {"samples": ["sampled", 0], "vae": ["vae", 0]}),
        "shape": ("ImageToMask", {"image": ["first", 0], "channel": "red"}),
        "masked": ("ConditioningSetMask", {
            "conditioning": ["positive", 0], "mask": ["shape", 0], "strength": 1.0,
            "set_cond_area": "default"}),
        "photo": ("LoadImage", {"image": "photo.png"}),
        "start": ("VAEEncode", {"pixels": ["photo", 0], "vae": ["vae", 0]}),
        "second": sampler("start", denoise=0.5, positive=["masked", 0]),
        "images": SECOND["images"]}))
    assert "in place of" not in shown(run)
    assert [entry.settings["node"] for entry in memory.log.samples()] == ["sampled", "second"]


class Loop:
    """What loop nodes of other packs do: makes nodes of a part of the graph as it runs."""

    @classmethod
    def INPUT_TYPES(cls):
        names = {"model": "MODEL", "memory": "*", "positive": "CONDITIONING",
                 "negative": "CONDITIONING", "latent": "LATENT", "vae": "VAE"}
        return {"required": {name: (kind,) for name, kind in names.items()}}

    RETURN_TYPES = ("IMAGE", "STRING")
    FUNCTION = "run"
    CATEGORY = "test"

    def run(self, model, memory, positive, negative, latent, vae):  # noqa: F811
        from comfy_execution.graph_utils import GraphBuilder

        graph = GraphBuilder()
        guided = graph.node("UncommonNoveltyGuidance", model=model, memory=memory, strength=0.5,
                            start_percent=0.0, end_percent=1.0, repulsion="exact")
        kind, inputs = sampler("latent")
        drawn = graph.node(kind, **inputs | {
            "model": guided.out(0), "positive": positive, "negative": negative,
            "latent_image": latent})
        images = graph.node("VAEDecode", samples=drawn.out(0), vae=vae)
        kept = graph.node("UncommonKeepNovel", image=images.out(0), latent=drawn.out(0),
                          measure="distance", percentile=10.0, distance=0.01, memory=memory,
                          model=model)
        return {"result": (images.out(0), kept.out(3)), "expand": graph.finalize()}


def test_in_a_loop_runs_are_noted_as_anywhere(fresh_host, novelty_graph, monkeypatch):
    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestLoop", Loop)
    fresh_host.load_extra("nodes_preview_any")
    graph = novelty_graph(more={
        "images": ("TestLoop", {name: [name, 0] for name in (
            "model", "memory", "positive", "negative", "latent", "vae")}),
        "report": ("PreviewAny", {"source": ["images", 1]})})
    del graph["guided"], graph["sampled"]
    run = fresh_host.run(graph)
    [report] = run.ui["report"]["text"]
    assert "Kept all 1" in report
    [prompt] = carried(fresh_host, run)
    [note] = prompt["images"]["_meta"]["uncommon"].values()
    assert (note["memory"], note["recorded"]) == ("test@0", [1])


@pytest.mark.parametrize(("revision", "state"), [(1, "test@1"), (-1, "test@2")])
def test_images_of_a_sampler_that_did_not_run_again_tell_of_the_memory(
        fresh_host, novelty_graph, revision, state):
    for seed in (0, 1):
        fresh_host.run(novelty_graph(seed=seed))
    for name in ("before", "after"):
        graph = novelty_graph(memory={"mode": "frozen", "revision": revision})
        graph["saved"]["inputs"]["filename_prefix"] = name
        run = fresh_host.run(graph)
        [prompt] = carried(fresh_host, run)
        assert prompt["memory"]["_meta"]["uncommon_state"] == state
        assert prompt["memory"]["_meta"]["uncommon_made_with"]["comfyui"]
    assert run.executed == ["saved"]


def test_a_model_path_that_the_host_cannot_look_up_costs_no_image(
        fresh_host, novelty_graph, monkeypatch):
    """As on Windows one on another drive than ComfyUI's."""
    import folder_paths

    found = folder_paths.get_full_path

    def looked_up(folder, name):
        if name.startswith("D:"):
            raise ValueError("path is on mount 'D:', start on mount 'C:'")
        return found(folder, name)

    monkeypatch.setattr(folder_paths, "get_full_path", looked_up)
    for extra in ("nodes_primitive", "nodes_preview_any"):
        fresh_host.load_extra(extra)
    run = fresh_host.run(novelty_graph(more={
        "path": ("PrimitiveString", {"value": "D:\\\\loras\\\\style.safetensors"}),
        "shows": ("PreviewAny", {"source": ["path", 0]})}))
    [prompt] = carried(fresh_host, run)
    assert prompt["guided"]["_meta"]["uncommon_made_with"]["files"] == {}


# Linked inputs: the host does not tell their values before the run

def test_a_memory_whose_database_is_linked_is_followed(fresh_host, novelty_graph, tmp_path):
    fresh_host.load_extra("nodes_primitive")
    url = f"sqlite:///{(tmp_path / 'shared.sqlite').as_posix()}"
    graph = novelty_graph(memory={"database": ["url", 0]},
                          more={"url": ("PrimitiveString", {"value": url})})
    for _ in range(2):
        assert "sampled" in fresh_host.run(graph).executed


def test_a_frozen_revision_runs_once_though_the_name_is_linked(fresh_host, novelty_graph):
    fresh_host.load_extra("nodes_primitive")
    fresh_host.run(novelty_graph())
    graph = novelty_graph(memory={"name": ["name", 0], "mode": "frozen", "revision": 1},
                          more={"name": ("PrimitiveString", {"value": "test"})})
    assert ["sampled" in fresh_host.run(graph).executed for _ in range(2)] == [True, False]


def test_a_linked_folder_or_file_is_looked_at_each_time(fresh_host):
    for name, given in (("UncommonRememberSamples", "folder"), ("UncommonImportMemory", "file")):
        asked = fresh_host.pack_nodes[name].fingerprint_inputs(**{given: None})
        assert math.isnan(asked)
