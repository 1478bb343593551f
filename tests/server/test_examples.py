"""The example workflows open and run as they are, in a real server."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from benchmarks.novelty import CFG, SHIPPED
from demo.workflow import bypass, find, to_api, widget_defaults
from dev import ROOT

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
NOVELTY = ROOT / "example_workflows" / "novelty.json"


def read(path):
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def nodes(server):
    return server.object_info()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_runs_as_it_is(server, nodes, path):
    prompt = to_api(read(path), nodes)
    entry = server.run(prompt)
    assert server.images(entry, find(prompt, "SaveImage"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_has_no_input_that_its_nodes_lack(nodes, path):
    for node in to_api(read(path), nodes).values():
        inputs = nodes[node["class_type"]]["input"]
        known = {*inputs.get("required", ()), *inputs.get("optional", ())}
        assert set(node["inputs"]) <= known
        assert set(inputs.get("required", ())) <= set(node["inputs"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_has_a_small_picture(path):
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size < 200_000
    assert Image.open(picture).format == "JPEG"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_node_lies_on_another(path):
    title = 30  # pixels, above a node's position
    boxes = [(x, y - title, x + width, y + height) for node in read(path)["nodes"]
             for (x, y), (width, height) in [(node["pos"], node["size"])]]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)


def test_novelty_has_the_shipped_defaults(nodes):
    """What the benchmark measures, and what the page sets, is what the example does."""
    prompt = to_api(read(NOVELTY), nodes)
    guidance = prompt[find(prompt, "UncommonNoveltyGuidance")]["inputs"]
    defaults = widget_defaults(nodes["UncommonNoveltyGuidance"])
    assert {name: guidance[name] for name in defaults} == defaults
    sampler = prompt[find(prompt, "KSampler")]["inputs"]
    assert (sampler["sampler_name"], sampler["steps"], sampler["scheduler"], sampler["cfg"]) == (
        SHIPPED.name, SHIPPED.steps, SHIPPED.scheduler, CFG)


def test_a_bypassed_node_passes_its_model_on(nodes):
    prompt = to_api(bypass(read(NOVELTY), "UncommonNoveltyGuidance"), nodes)
    assert "UncommonNoveltyGuidance" not in {node["class_type"] for node in prompt.values()}
    model = prompt[find(prompt, "KSampler")]["inputs"]["model"]
    assert model == [find(prompt, "UncommonLoadADM"), 0]


def test_a_node_that_the_host_lacks_is_named(nodes):
    workflow = read(NOVELTY)
    workflow["nodes"][0]["type"] = "NoSuchNode"
    with pytest.raises(ValueError, match="no node NoSuchNode, which node 1 is"):
        to_api(workflow, nodes)


def test_values_of_another_version_of_a_node_are_refused(nodes):
    workflow = read(NOVELTY)
    workflow["nodes"][0]["widgets_values"].append("more")
    with pytest.raises(ValueError, match="has 7 saved values, but the host's node has 6 widgets"):
        to_api(workflow, nodes)
