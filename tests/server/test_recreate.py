"""Saved images are made again from what they carry, and what differs is told."""

from __future__ import annotations

import copy
import io
import itertools
import json
import sys
import time

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from demo import recreate
from demo.recreate import NotRecreatable, differences, frozen, prompt_of


@pytest.fixture(scope="module")
def drawn(server, novelty_graph):
    """The third image of a memory that goes on to learn, as it was saved."""
    graph = novelty_graph(seed=5, memory={"name": "recreated"})
    images = [server.images(server.run(graph), "saved") for _ in range(4)]
    return images[2][0]


def opened(content: bytes, **changes) -> Image.Image:
    """The image; changes: of the note of its guidance."""
    image = Image.open(io.BytesIO(content))
    prompt = json.loads(image.info["prompt"])
    made_with = changes.pop("made_with", {})
    for name in ("guided", "memory"):
        prompt[name]["_meta"]["uncommon_made_with"] |= made_with
    prompt["guided"]["_meta"]["uncommon"]["sampled"] |= changes
    image.info["prompt"] = json.dumps(prompt)
    return image


def test_the_same_image_comes_out_although_the_memory_has_learnt_since(server, drawn):
    found = recreate.recreate(server, opened(drawn), "it.png")
    assert found.identical and found.differences == []
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found.image))),
                          np.asarray(Image.open(io.BytesIO(drawn))))


def test_of_two_guided_chains_each_image_comes_out(server, novelty_graph):
    """The first is saved before the second is drawn, and so tells nothing of it."""
    graph = novelty_graph(seed=5, memory={"name": "two chains"})
    chain = {number: copy.deepcopy(graph[number])
             for number in ("guided", "sampled", "images", "saved")}
    chain["sampled"]["inputs"] |= {"model": ["guided 2", 0], "seed": 6}
    chain["images"]["inputs"]["samples"] = ["sampled 2", 0]
    chain["saved"]["inputs"]["images"] = ["images 2", 0]
    entry = server.run(graph | {f"{number} 2": node for number, node in chain.items()})
    for number in ("saved", "saved 2"):
        [content] = server.images(entry, number)
        image = Image.open(io.BytesIO(content))
        assert recreate.recreate(server, image, "it.png").identical


@pytest.mark.parametrize("revision", [1, -1])
def test_an_image_whose_sampler_did_not_run_again_comes_out(server, novelty_graph, revision):
    name = f"cached {revision}"
    server.run(novelty_graph(seed=4, memory={"name": name}))
    graph = novelty_graph(seed=5, memory={"name": name, "mode": "frozen", "revision": revision})
    server.run(graph)
    graph["saved"]["inputs"]["filename_prefix"] = "again"
    [content] = server.images(server.run(graph), "saved")
    image = Image.open(io.BytesIO(content))
    assert "uncommon" not in prompt_of(image, "it.png")["guided"].get("_meta", {})
    server.run(novelty_graph(seed=6, memory={"name": name}))
    found = recreate.recreate(server, image, "it.png")
    assert found.identical and found.differences == []


def test_no_memory_learns_whoever_uses_it(server, novelty_graph):
    graph = novelty_graph(seed=5, memory={"name": "kept"}) | {
        "kept": {"class_type": "UncommonKeepNovel", "inputs": {
            "latent": ["sampled", 0], "image": ["images", 0], "measure": "distance",
            "percentile": 10.0, "distance": 0.01, "memory": ["memory", 0], "model": ["model", 0]}}}
    graph["saved"]["inputs"]["images"] = ["kept", 0]
    [content] = server.images(server.run(graph), "saved")
    image = Image.open(io.BytesIO(content))
    again = recreate.frozen(prompt_of(image, "it.png"))
    memories = [node["inputs"] for node in again.values()
                if node["class_type"] == "UncommonNoveltyMemory"]
    assert [(one["mode"], one["revision"]) for one in memories] == 2 * [("frozen", 0)]
    assert recreate.recreate(server, image, "it.png").identical


def test_it_waits_as_long_as_it_takes(server, drawn, monkeypatch):
    hours = itertools.count(step=3600.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(hours))
    assert recreate.recreate(server, opened(drawn), "it.png").identical


def test_another_revision_gives_another_image_and_remembers_nothing(server, drawn):
    found = recreate.recreate(server, opened(drawn, memory="recreated@0"), "it.png")
    assert not found.identical
    assert found.largest > 0 and found.share > 0.01
    again = recreate.recreate(server, opened(drawn), "it.png")
    assert again.identical


def test_what_was_different_is_told(server, drawn):
    image = opened(drawn, made_with={"comfyui": "0.29.1", "files": {"gone.safetensors": "ab"}})
    found = recreate.recreate(server, image, "it.png")
    assert found.identical
    assert found.differences == ["ComfyUI was 0.29.1, and is 0.30.0",
                                 "the model file gone.safetensors is not here"]


def test_a_revision_that_is_missing_is_named(server, drawn):
    with pytest.raises(NotRecreatable, match='Memory "recreated" has no revision 77'):
        recreate.recreate(server, opened(drawn, memory="recreated@77"), "it.png")


def test_a_node_that_is_missing_is_named(server, drawn):
    image = opened(drawn)
    prompt = json.loads(image.info["prompt"])
    prompt["sampled"]["class_type"] = "NoSuchSampler"
    image.info["prompt"] = json.dumps(prompt)
    with pytest.raises(NotRecreatable, match="NoSuchSampler.*(.|\n)*Install the node packs"):
        recreate.recreate(server, image, "it.png")


@pytest.mark.parametrize(("change", "code", "told"), [
    (False, 0, "The same, bit for bit"), (True, 1, "Not the same")])
def test_command(server, drawn, tmp_path, monkeypatch, capsys, change, code, told):
    file = tmp_path / "it.png"
    file.write_bytes(drawn)
    if change:
        image, text = Image.open(file), PngInfo()
        text.add_text("prompt", image.info["prompt"])
        pixels = np.asarray(image).copy()
        pixels[0, 0] ^= 1
        Image.fromarray(pixels).save(file, pnginfo=text)
    monkeypatch.setattr(sys, "argv", ["recreate", str(file), "--out", str(tmp_path / "out"),
                                      "--url", f"{server.url}/"])
    assert recreate.main() == code
    assert told in capsys.readouterr().out
    assert (tmp_path / "out" / "it.png").is_file()


def test_the_image_itself_is_never_replaced(drawn, tmp_path, monkeypatch, capsys):
    file = tmp_path / "it.png"
    file.write_bytes(drawn)
    monkeypatch.setattr(sys, "argv", ["recreate", str(file), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        recreate.main()
    assert "give another one" in capsys.readouterr().err
    assert file.read_bytes() == drawn


def test_an_image_without_a_prompt_is_refused(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "bare.png")
    monkeypatch.setattr(sys, "argv", ["recreate", str(tmp_path / "bare.png")])
    assert recreate.main() == 2
    assert "bare.png carries no prompt" in capsys.readouterr().err


def test_a_server_that_does_not_run_is_named(drawn, tmp_path, monkeypatch, capsys):
    (tmp_path / "it.png").write_bytes(drawn)
    monkeypatch.setattr(sys, "argv", ["recreate", str(tmp_path / "it.png"),
                                      "--url", "http://127.0.0.1:9"])
    assert recreate.main() == 2
    assert "No ComfyUI answers at http://127.0.0.1:9" in capsys.readouterr().err


# What is run

GRAPH = {
    "memory": {"class_type": "UncommonNoveltyMemory",
               "inputs": {"name": "a", "mode": "learn", "revision": -1, "max_megabytes": 64}},
    "remembered": {"class_type": "UncommonRememberSamples",
                   "inputs": {"model": ["model", 0], "memory": ["memory", 0], "folder": "old"}},
    "model": {"class_type": "UncommonLoadADM", "inputs": {"model_name": "digits"}},
    "guided": {"class_type": "UncommonNoveltyGuidance",
               "inputs": {"model": ["model", 0], "memory": ["remembered", 0], "strength": 0.3},
               "_meta": {"uncommon": {"sampled": {"memory": "a@7", "recorded": [8]}}}},
    "sampled": {"class_type": "KSampler", "inputs": {"model": ["guided", 0], "seed": 3}},
    "saved": {"class_type": "SaveImage", "inputs": {"images": ["sampled", 0]}},
    "forgotten": {"class_type": "UncommonForgetSamples", "inputs": {"memory": ["memory", 0]}}}


def test_only_what_the_image_depends_on_runs_with_a_frozen_memory():
    before = copy.deepcopy(GRAPH)
    found = frozen(GRAPH)
    assert before == GRAPH
    assert set(found) == {"memory of guided", "model", "guided", "sampled", "saved"}
    assert found["memory of guided"] == {"class_type": "UncommonNoveltyMemory", "inputs": {
        "name": "a", "mode": "frozen", "revision": 7, "max_megabytes": 64}}
    assert found["guided"]["inputs"]["memory"] == ["memory of guided", 0]
    assert "_meta" not in found["guided"]


def test_a_guidance_that_has_no_part_in_the_image_tells_nothing():
    unlinked = copy.deepcopy(GRAPH["guided"])
    unlinked.pop("_meta")
    assert frozen(GRAPH | {"unlinked": unlinked}) == frozen(GRAPH)


def test_an_image_without_notes_is_refused():
    graph = copy.deepcopy(GRAPH)
    graph["guided"].pop("_meta")
    with pytest.raises(NotRecreatable, match="0 states of the memory for node guided"):
        frozen(graph)


def test_a_guidance_that_two_samplers_used_at_different_states_is_refused():
    graph = copy.deepcopy(GRAPH)
    graph["guided"]["_meta"]["uncommon"]["other"] = {"memory": "a@8"}
    with pytest.raises(NotRecreatable, match="2 states of the memory.*a@7, a@8"):
        frozen(graph)


def test_a_graph_that_shows_nothing_is_refused():
    graph = {name: node for name, node in GRAPH.items() if name != "saved"}
    with pytest.raises(NotRecreatable, match="SaveImage, PreviewImage"):
        frozen(graph)


def test_differences():
    then = {"comfyui": "1", "torch": "2", "files": {"a.ckpt": "x", "b.ckpt": "y"}}
    assert differences(then, then) == []
    assert differences(then, {"comfyui": "2", "torch": "2", "files": {"a.ckpt": "z"}}) == [
        "ComfyUI was 1, and is 2", "the model file a.ckpt is another one",
        "the model file b.ckpt is not here"]
    assert "does not tell" in differences({}, then)[0]


def test_an_image_tells_what_it_was_made_with(drawn):
    made_with = prompt_of(opened(drawn), "it.png")["guided"]["_meta"]["uncommon_made_with"]
    assert made_with["comfyui"] == "0.30.0"
    assert set(made_with) == {"comfyui", "uncommon", "torch", "device", "files"}
