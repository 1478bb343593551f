"""Diversity Report in the host."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from demo.data import digits
from demo.host import Interrupted, Prompt, RunFailed
from guidance.distances import BACKBONES, Lpips
from guidance.diversity import Settings, measure
from guidance.picture_features import pixel_features

REPORT, TABLE, JSON, PLOTS, PAIRS = range(5)


@pytest.fixture(scope="module")
def drawings() -> torch.Tensor:
    """Sixty digits as IMAGE `[60, 16, 16, 3]`, in the 8 bits of a file."""
    images, _ = digits()
    return (((images[:60] + 1) / 2).movedim(1, -1) * 255).round() / 255


@pytest.fixture
def folders(tmp_path, drawings):
    """Thirty digits, and thirty others as the reference."""
    for start, name in ((0, "set"), (30, "reference")):
        (tmp_path / name).mkdir()
        for number in range(start, start + 30):
            Image.fromarray((drawings[number].numpy() * 255).round().astype(np.uint8)).save(
                tmp_path / name / f"{number:02}.png")
    return tmp_path


def graph(more: dict | None = None, **inputs) -> Prompt:
    nodes = {"report": ("UncommonDiversityReport", inputs)} | (more or {})
    return {name: {"class_type": kind, "inputs": values} for name, (kind, values) in nodes.items()}


def model_and_vae(more: dict | None = None) -> dict:
    return {"model": ("UncommonLoadADM", {"model_name": "digits"}),
            "vae": ("VAELoader", {"vae_name": "pixel_space"})} | (more or {})


def memory(**inputs) -> tuple[str, dict]:
    return ("UncommonNoveltyMemory", {"name": "test", "mode": "learn", "revision": -1,
                                      "max_megabytes": 64} | inputs)


def out(run, name: str = "report") -> list:
    return run.outputs[name]


def numbers(run) -> dict[str, float]:
    return {key: one["value"] for key, one in json.loads(out(run)[JSON])["figures"].items()}


@pytest.fixture
def wire(fresh_host, monkeypatch):
    """Makes a prompt with an input that is the given values, as a list, of a type."""
    def prompt(values: list, name: str = "images", kind: str = "Image", **inputs) -> Prompt:
        from comfy_api.latest import io

        class Source(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                return io.Schema(node_id="TestSource", outputs=[getattr(io, kind).Output(
                    is_output_list=True)], not_idempotent=True)

            @classmethod
            def fingerprint_inputs(cls):
                return float("nan")

            @classmethod
            def execute(cls):
                return io.NodeOutput(values)

        import nodes
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestSource", Source)
        fresh_host.restart()  # it keeps nodes, and so the one of an earlier prompt
        return graph({"source": ("TestSource", {})}, **{name: ["source", 0]}, **inputs)
    return prompt


def test_folders_are_measured_by_their_pixels(fresh_host, folders, drawings):
    run = fresh_host.run(graph(folder=str(folders / "set"), features="pixels",
                               reference_folder=str(folders / "reference")))
    features = pixel_features(drawings.movedim(-1, 1) * 2 - 1)
    expected = measure(features[:30], features[30:])
    found = numbers(run)
    assert found["vendi"] == pytest.approx(expected.vendi, rel=1e-5)
    assert found["avg_knn"] == pytest.approx(float(expected.avg_knn.mean()), rel=1e-5)
    assert found["lof"] == pytest.approx(float(expected.lof.quantile(0.5)), rel=1e-5)
    for name in ("precision", "recall", "density", "coverage"):
        assert found[name] == pytest.approx(getattr(expected.against.manifolds, name))
    report = out(run)[REPORT]
    assert report.startswith("30 images, compared with 30 reference images\n")
    assert run.ui["report"]["text"][0] == report
    assert len(run.ui["report"]["images"]) == 1
    assert out(run)[TABLE].startswith("| measure | value |")
    assert out(run)[PLOTS].shape == (1, 620, 1240, 3)
    assert out(run)[PAIRS].shape == (1, 432, 990, 3)
    assert fresh_host.run(graph(folder=str(folders / "set"), features="pixels",
                                reference_folder=str(folders / "reference"))).executed == []


def test_its_numbers_and_connected_reference_images_reach_the_measure(fresh_host, folders, wire,
                                                                      drawings):
    settings = Settings(k_knn=2, k_lof=4, k_manifold=7, vendi_q=2.0)
    run = fresh_host.run(wire([drawings[30:]], "reference_images", folder=str(folders / "set"),
                              features="pixels", **asdict(settings)))
    features = pixel_features(drawings.movedim(-1, 1) * 2 - 1)
    expected, found = measure(features[:30], features[30:], settings), numbers(run)
    assert json.loads(out(run)[JSON])["settings"] == asdict(settings)
    assert found["vendi"] == pytest.approx(expected.vendi, rel=1e-5)
    assert found["avg_knn"] == pytest.approx(float(expected.avg_knn.mean()), rel=1e-5)
    assert found["lof"] == pytest.approx(float(expected.lof.quantile(0.5)), rel=1e-5)
    assert found["recall"] == pytest.approx(expected.against.manifolds.recall)


def test_a_folder_that_comes_by_a_link_is_looked_at_each_time(fresh_host, folders):
    fresh_host.load_extra("nodes_primitive")
    text = {"text": ("PrimitiveString", {"value": str(folders / "reference")})}
    linked = graph(text, folder=str(folders / "set"), reference_folder=["text", 0])
    before = out(fresh_host.run(linked))[REPORT]
    (folders / "reference" / "new.png").write_bytes((folders / "set" / "00.png").read_bytes())
    assert out(fresh_host.run(linked))[REPORT] != before


def test_a_changed_folder_is_measured_again_and_torn_files_are_named(fresh_host, folders):
    path = folders / "set"
    fresh_host.run(graph(folder=str(path)))
    (path / "copy.png").write_bytes((path / "07.png").read_bytes())
    (path / "torn.png").write_bytes((path / "07.png").read_bytes()[:60])
    report = out(fresh_host.run(graph(folder=str(path))))[REPORT]
    assert report.startswith("31 images\n")
    assert "07.png and copy.png: the same picture" in report
    assert "1 image left out:\ntorn.png: " in report


def test_images_of_several_sizes_and_one_that_is_no_number(fresh_host, wire, drawings):
    broken = torch.full((1, 16, 16, 3), torch.nan)
    large = drawings[5].repeat_interleave(3, 0).repeat_interleave(2, 1)[None]
    alpha = torch.cat([drawings[6], torch.ones(16, 16, 1)], dim=-1)[None]
    run = fresh_host.run(wire([drawings[:6], broken, large, alpha], features="pixels"))
    report = out(run)[REPORT]
    assert report.startswith("8 images\n")
    assert "image 7: it has values that are no number" in report
    assert "image 6 and image 8: the same picture" in report


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_images_say_what_is_missing(fresh_host, wire, drawings, count):
    run = fresh_host.run(wire([drawings[:count]], features="lpips_random"))
    report = out(run)[REPORT]
    assert "LOF (k = 20): needs 21 images or more" in report
    assert "AvgkNN (k = 5): needs 6 images or more" in report
    assert ("Mean LPIPS (random): needs 2 images" in report) == (count == 1)
    assert out(run)[PAIRS].shape == (1, 216, 660 if count == 5 else 330, 3)


def orange(picture: torch.Tensor) -> torch.Tensor:
    """Where IMAGE `[1, height, width, 3]` has the colour of the images' own dots and curves."""
    return (picture[0] - torch.tensor([224, 102, 46]) / 255).abs().amax(-1) < 0.02


@pytest.mark.parametrize("others", [0, 20])
def test_copies_are_drawn(fresh_host, wire, drawings, others):
    """Many: with others beside them their LOF has no bounds."""
    images = torch.cat([drawings[:1].repeat(40, 1, 1, 1), drawings[1:1 + others]])
    run = fresh_host.run(wire([images], features="pixels"))
    plots = out(run)[PLOTS]
    lof, dots = orange(plots[:, 390:560, 34:590]), orange(plots[:, 79:557, 655:1209])
    assert lof.any(dim=0).sum() > 2  # a spike at 1
    assert dots.any()
    report = out(run)[REPORT]
    assert ("largest without bound" in report) == (others > 0)
    assert ("All images are the same" in report) == (others == 0)
    assert f"Images with a twin: 40 (of {40 + others})" in report


@pytest.mark.parametrize("features", ["pixels", "lpips_random"])
def test_on_a_device(fresh_host, wire, drawings, onto_device, two_devices, features):
    """Also with the images there, as the host leaves them with --gpu-only."""
    def measured(images: torch.Tensor) -> dict[str, float]:
        run = fresh_host.run(wire([images], features=features, lpips_size=32))
        return {name: value for name, value in numbers(run).items() if value is not None}

    expected = measured(drawings[:8])
    onto_device("gpu only")
    assert measured(drawings[:8].to(two_devices.all[0])) == pytest.approx(expected, rel=1e-4)


def test_lpips_is_that_of_all_pairs(fresh_host, wire, drawings):
    run = fresh_host.run(wire([drawings[:4]], features="lpips_random", lpips_size=32))
    views = torch.nn.functional.interpolate(
        drawings[:4].movedim(-1, 1) * 2 - 1, (32, 32), mode="bilinear", antialias=True)
    lpips = Lpips.untrained()
    with torch.no_grad():
        pairs = [float(lpips(views[[i]], views[[j]])) for i in range(4) for j in range(i)]
    assert numbers(run)["lpips"] == pytest.approx(np.mean(pairs), rel=1e-4)


def test_auto_takes_the_network_whose_file_is_here(fresh_host, wire, drawings, tmp_path,
                                                   monkeypatch):
    from torchvision.models import squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    run = fresh_host.run(wire([drawings[:6]]))
    assert "Features: pixels, 768 numbers" in out(run)[REPORT]
    assert f"{BACKBONES['squeeze'].url} (5 MB)" in out(run)[REPORT]
    with pytest.raises(RunFailed, match="needs the file alexnet"):
        fresh_host.run(wire([drawings[:6]], features="lpips_alex"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        torch.save(squeezenet1_1().state_dict(), tmp_path / BACKBONES["squeeze"].file)
    monkeypatch.setattr(fresh_host.pack("nodes._diversity_reader"), "lpips_folders",
                        lambda: [tmp_path])
    run = fresh_host.run(wire([drawings[:6]]))
    assert "Features: lpips_squeeze, " in out(run)[REPORT]
    assert "Mean LPIPS (squeeze): " in out(run)[REPORT]
    assert numbers(run)["lpips"] > 0


def test_clip_vision_is_taken_where_it_is_connected(fresh_host, wire, drawings):
    from comfy.clip_vision import ClipVisionModel

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        vision = ClipVisionModel({
            "hidden_size": 32, "image_size": 28, "intermediate_size": 64, "num_channels": 3,
            "num_attention_heads": 2, "num_hidden_layers": 2, "patch_size": 14,
            "projection_dim": 24, "hidden_act": "quick_gelu", "model_type": "clip_vision_model"})
        for parameter in vision.model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    prompt = wire([vision], "clip_vision", "ClipVision", images=["picture", 0])
    prompt["picture"] = {"class_type": "EmptyImage", "inputs": {
        "width": 20, "height": 30, "batch_size": 2, "color": 0xFF0000}}
    run = fresh_host.run(prompt)
    assert "Features: clip_vision, 24 numbers" in out(run)[REPORT]
    assert "image 1 and image 2: the same picture" in out(run)[REPORT]
    assert numbers(run)["vendi"] == pytest.approx(1, abs=1e-6)
    extractor = fresh_host.pack("nodes._diversity_reader").Extractor("auto", vision, 64)
    images = [drawings[:1], drawings[1:2], drawings[2:3, :12]]  # of two sizes: one by one
    with torch.inference_mode():
        one_by_one = extractor(images, counted=False)
        together = extractor(images[:2], counted=False)
    assert one_by_one.shape == (3, 24)
    assert torch.allclose(one_by_one[:2], together, atol=1e-4)
    assert torch.dist(*together) > 0.01


def test_scores_of_several_sets_are_reported(fresh_host, folders):
    def score(name):
        return ("UncommonMinorityScore", {"model": ["model", 0], "vae": ["vae", 0], "draws": 1,
                                          "folder": str(folders / name), "show": 1})
    run = fresh_host.run(graph(
        model_and_vae({"first": score("set"), "second": score("reference")}),
        folder=str(folders / "set"), scored=["first", 0], scored_reference=["second", 0]))
    scores = run.outputs["first"][0].scores
    assert numbers(run)["minority_score"] == pytest.approx(float(scores.double().quantile(0.5)))
    assert "(latent_l2 at sigma 0.4, 1 draws)" in out(run)[REPORT]
    other = run.outputs["second"][0].scores.double().quantile(0.5)
    assert f"the scored reference's median: {other:.4g}" in out(run)[REPORT]
    assert out(run)[PLOTS].shape == (1, 930, 1240, 3)


@pytest.mark.parametrize("recent", [10, 10_000])
def test_the_distance_to_what_a_memory_remembers(fresh_host, folders, monkeypatch, recent):
    monkeypatch.setattr(fresh_host.pack("guidance.memory.bank"), "RECENT", recent)
    nodes = model_and_vae({
        "memory": memory(),
        "kept": ("UncommonRememberSamples", {
            "model": ["model", 0], "memory": ["memory", 0], "vae": ["vae", 0],
            "folder": str(folders / "reference"), "width": 16, "height": 16})})
    run = fresh_host.run(graph(nodes, folder=str(folders / "set"), memory=["kept", 0],
                               model=["model", 0], vae=["vae", 0]))
    remembered = run.outputs["memory"][0].bank.at().embedding
    assert len(remembered) == 30
    report = json.loads(out(run)[JSON])
    space = fresh_host.pack("nodes._latents").latent_space(run.outputs["model"][0])
    with Image.open(folders / "set" / "04.png") as image:
        array = torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1)
    expected = torch.cdist(space.embed(array.movedim(-1, 0)[None]), remembered).min()
    assert report["images"][4]["name"] == "04.png"
    assert report["images"][4]["history"] == pytest.approx(float(expected), rel=1e-3)
    run = fresh_host.run(graph(nodes, folder=str(folders / "reference"), memory=["kept", 0],
                               model=["model", 0], vae=["vae", 0]))
    assert numbers(run)["history"] == pytest.approx(0, abs=1e-3)


def test_what_this_run_has_just_remembered_is_no_history(fresh_host, novelty_graph):
    def prompt(seed):
        return novelty_graph(seed=seed, batch=2, more={"report": ("UncommonDiversityReport", {
            "images": ["images", 0], "memory": ["memory", 0], "model": ["model", 0],
            "vae": ["vae", 0]})})
    first = fresh_host.run(prompt(0))
    assert ("Distance to the history: the memory is empty but for these images"
            in out(first)[REPORT])
    second = fresh_host.run(prompt(1))
    assert 'of 2 in "test"' in out(second)[REPORT]
    assert numbers(second)["history"] > 0.01


@pytest.mark.parametrize(("inputs", "message"), [
    ({}, "Nothing to measure"),
    ({"folder": "/no/such/folder"}, "is no folder on the computer"),
    ({"folder": "{set}", "features": "clip_vision"}, "no CLIP vision model is connected"),
    ({"folder": "{set}", "memory": ["memory", 0]}, "needs the model that it guides"),
    ({"folder": "{torn}"}, "None of the images can be measured.\ntorn.png: "),
])
def test_what_cannot_be_measured_says_why(fresh_host, folders, inputs, message):
    (folders / "torn").mkdir()
    (folders / "torn" / "torn.png").write_bytes(b"no image")
    inputs = {key: value.format(set=folders / "set", torn=folders / "torn")
              if isinstance(value, str) else value for key, value in inputs.items()}
    with pytest.raises(RunFailed) as failed:
        fresh_host.run(graph({"memory": memory()}, **inputs))
    assert failed.value.node_id == "report"
    assert message in failed.value.message


@pytest.mark.parametrize("at", [10, 45, 75])
def test_it_can_be_cancelled_while_reading_and_comparing(fresh_host, folders, at):
    def stop(node_id, step, steps):
        assert steps == 60 + 120
        if step >= at:
            fresh_host.interrupt()

    inputs = {"folder": str(folders / "set"), "reference_folder": str(folders / "reference")}
    with pytest.raises(Interrupted):
        fresh_host.run(graph(**inputs), on_progress=stop)
    assert fresh_host.run(graph(**inputs)).executed == ["report"]
