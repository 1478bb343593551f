"""The example workflows open and run as they are, in a real server."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from benchmarks.minority_sets import SHIPPED as SHIPPED_CLASSIFIER
from benchmarks.minority_sets import Set, graph
from benchmarks.novelty import CFG, SHIPPED
from demo.host import PromptRejected
from demo.minority_classifier import write_faces
from demo.templates import TEMPLATES, template
from demo.workflow import bypass, find, to_api, widget_defaults
from dev import ROOT

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
FAMILIES = [path for path in EXAMPLES if path.stem.startswith("novelty_")]  # their models are large
COMPLETE = [path for path in EXAMPLES if path not in FAMILIES]
OLD = sorted((ROOT / "tests" / "workflows").glob("*/*.json"))  # as they were in each version
NOVELTY = ROOT / "example_workflows" / "novelty.json"
MINORITY = ROOT / "example_workflows" / "minority.json"
EXPLORE = ROOT / "example_workflows" / "explore_then_keep_8.json"
REPORT = ROOT / "example_workflows" / "diversity_report.json"
TRAINING = ROOT / "example_workflows" / "train_minority_classifier.json"


def read(path):
    return json.loads(path.read_text("utf-8"))


def titled(workflow, title, kind):
    """The id of the only node of a type that has this title."""
    [number] = [node["id"] for node in workflow["nodes"]
                if (node["type"], node.get("title")) == (kind, title)]
    return str(number)


@pytest.fixture(scope="module")
def nodes(server):
    return server.object_info()


@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: path.stem)
def test_runs_as_it_is(server, nodes, path):
    prompt = to_api(read(path), nodes)
    entry = server.run(prompt)
    assert server.images(entry, find(prompt, "SaveImage"))


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_lacks_nothing_but_its_models(server, nodes, path):
    """All is valid but the names of files that are not here."""
    with pytest.raises(PromptRejected) as caught:
        server.queue(to_api(read(path), nodes))
    found = [(node["class_type"], error) for node in caught.value.node_errors.values()
             for error in node["errors"]]
    assert found
    for kind, error in found:
        assert kind.endswith(("Loader", "LoaderSimple")), (kind, error)
        assert error["type"] == "value_not_in_list", (kind, error)
        given = error["extra_info"]["received_value"]
        assert given.endswith(".safetensors")
        assert f"`{given}`" in str(read(path)), "the note does not tell where it goes"


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_has_the_defaults_of_novelty_guidance(nodes, path):
    prompt = to_api(read(path), nodes)
    guidance = prompt[find(prompt, "UncommonNoveltyGuidance")]["inputs"]
    defaults = widget_defaults(nodes["UncommonNoveltyGuidance"])
    assert {name: value for name, value in guidance.items() if name in defaults}.items() <= (
        defaults.items())
    sampler = prompt[find(prompt, "KSampler")]["inputs"]
    assert sampler["model"] == [find(prompt, "UncommonNoveltyGuidance"), 0]
    if path.stem in ("novelty_flux", "novelty_z_image"):
        assert sampler["cfg"] == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_is_what_its_program_writes(nodes, name):
    saved = to_api(read(ROOT / "example_workflows" / f"{name}.json"), nodes)
    written = to_api(template(name, nodes), nodes)  # has optional inputs that came later, too
    assert saved.keys() == written.keys(), "run: python -m demo.templates"
    for number, node in saved.items():
        assert node["inputs"].items() <= written[number]["inputs"].items(), (
            "run: python -m demo.templates")


@pytest.mark.parametrize("path", OLD, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_workflows_of_earlier_versions_load(host, nodes, path):
    host.validate(to_api(read(path), nodes))


def test_explore_keeps_8_of_64(server, nodes):
    workflow = read(EXPLORE)
    entry = server.run(to_api(workflow, nodes))
    every, kept = (server.images(entry, titled(workflow, title, "PreviewImage"))
                   for title in ("All", "Kept"))
    assert (len(every), len(kept), len(set(kept))) == (64, 8, 8)
    drawn, chosen = ({Image.open(io.BytesIO(one)).tobytes() for one in images}
                     for images in (every, kept))
    assert chosen < drawn


def test_report_finds_the_guided_images_more_diverse(server, nodes):
    workflow = read(REPORT)
    prompt = to_api(workflow, nodes)
    vendi = {}
    for title in ("Report: plain", "Report: with Novelty Guidance"):
        [number] = [str(node["id"]) for node in workflow["nodes"] if node.get("title") == title]
        prompt[title] = {"class_type": "PreviewAny", "inputs": {"source": [number, 2]}}
    entry = server.run(prompt)
    for title in ("Report: plain", "Report: with Novelty Guidance"):
        [text] = entry["outputs"][title]["text"]
        vendi[title] = json.loads(text)["figures"]["vendi"]["value"]
    assert vendi["Report: with Novelty Guidance"] > vendi["Report: plain"]


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


def test_minority_has_the_shipped_defaults(nodes):
    """What the benchmark measures, and what the page sets, is what the example does."""
    workflow = read(MINORITY)
    prompt = to_api(workflow, nodes)
    number = find(prompt, "UncommonMinorityGuidance")
    guidance = prompt[number]["inputs"]
    defaults = widget_defaults(nodes["UncommonMinorityGuidance"])
    assert {name: guidance[name] for name in defaults} == defaults
    loader = prompt[guidance["classifier"][0]]["inputs"]
    assert loader["classifier_name"] == SHIPPED_CLASSIFIER
    plain, rare = (prompt[titled(workflow, title, "KSampler")]["inputs"]
                   for title in ("Plain faces", "Rare faces"))
    assert rare["model"] == [number, 0]
    assert plain == rare | {"model": guidance["model"]}
    measured = graph(Set(name="plain"), 0, 1)["sampled"]["inputs"]
    for name in ("sampler_name", "steps", "scheduler", "cfg", "denoise"):
        assert plain[name] == measured[name]


def test_minority_shows_plain_and_rare_with_the_same_seeds(server, nodes):
    workflow = read(MINORITY)

    def drawn(workflow):
        prompt = to_api(workflow, nodes)
        for node in prompt.values():
            if node["class_type"] == "KSampler":
                node["inputs"]["steps"] = 3
            elif node["class_type"] == "EmptyLatentImage":
                node["inputs"]["batch_size"] = 2
            elif node["class_type"] == "UncommonMinorityGuidance":
                node["inputs"]["scale"] = 50.0
        entry = server.run(prompt)
        return [server.images(entry, titled(workflow, title, "PreviewImage"))
                for title in ("Plain", "Rare")]

    plain, rare = drawn(workflow)
    assert len(plain) == len(rare) == 2
    assert all(a != b for a, b in zip(plain, rare, strict=True))
    assert drawn(bypass(workflow, "UncommonMinorityGuidance")) == [plain, plain]


def test_training_takes_a_folder_in_place_of_images(server, nodes):
    write_faces(server.directory / "input" / "my faces", 24)
    prompt = to_api(read(TRAINING), nodes)
    scoring = find(prompt, "UncommonMinorityScore")
    del prompt[scoring]["inputs"]["image"]
    prompt[scoring]["inputs"]["folder"] = "my faces"
    prompt[find(prompt, "UncommonTrainMinorityClassifier")]["inputs"]["iterations"] = 10
    saving = find(prompt, "UncommonSaveMinorityClassifier")
    prompt[saving]["inputs"] |= {"name": "my faces", "overwrite": True}
    entry = server.run(prompt)
    [report] = entry["outputs"][scoring]["text"]
    assert report.startswith("24 images at 24 x 24"), report
    assert len(server.images(entry, find(prompt, "PreviewImage"))) == 24
    assert server.images(entry, find(prompt, "SaveImage"))
    saved = server.directory / "models" / "minority_classifiers" / "my faces.safetensors"
    assert saved.is_file()


def test_the_page_adds_no_control_to_seeds_that_shall_stay(nodes):
    """Below an INT named seed the page puts "control after generate", set to randomize, unless the
    node says otherwise: each run would then score and train anew."""
    for name in ("UncommonMinorityScore", "UncommonTrainMinorityClassifier"):
        inputs = nodes[name]["input"]
        _, options = {**inputs["required"], **inputs.get("optional", {})}["seed"]
        assert options.get("control_after_generate") is False, name


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
