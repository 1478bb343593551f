"""Train, Save and Load Minority Classifier in the host."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from demo.data import digits
from demo.host import Interrupted, Prompt, PromptRejected, RunFailed
from guidance.adm_encoder import AdmEncoder, EncoderConfig
from guidance.minority_checkpoint import load_classifier
from guidance.minority_classifier import MinorityClassifier
from guidance.time_conditioning import LogSnrTime

ITERATIONS = 5
# As openai/guided-diffusion's classifiers are, small.
PIXEL = EncoderConfig(
    out_channels=7, model_channels=64, channel_mult=(1, 2), num_res_blocks=1,
    attention_levels=(1,), num_head_channels=64, pool_size=(8, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty digits as PNG files."""
    path = tmp_path_factory.mktemp("digits")
    images, _ = digits()
    for number, image in enumerate(images[:40]):
        pixels = ((image.movedim(0, -1) + 1) * 127.5).round().numpy().astype(np.uint8)
        Image.fromarray(pixels).save(path / f"{number:02}.png")
    return path


@pytest.fixture
def graph(folder):
    """Scores the digits and trains on them; train: inputs to set; more: nodes to add or to
    replace."""

    def make(train: dict | None = None, more: dict | None = None) -> Prompt:
        nodes = {
            "model": ("UncommonLoadADM", {"model_name": "digits"}),
            "vae": ("VAELoader", {"vae_name": "pixel_space"}),
            "score": ("UncommonMinorityScore", {
                "model": ["model", 0], "vae": ["vae", 0], "folder": str(folder), "width": 16,
                "height": 16, "distance": "latent_l2", "draws": 1, "batch": 40}),
            "train": ("UncommonTrainMinorityClassifier", {
                "scored": ["score", 0], "classes": 4, "size": "small", "iterations": ITERATIONS,
                "batch_size": 4, "learning_rate": 1e-3, "seed": 1, "validation_share": 0.2,
                "flip": False} | (train or {})),
            "curves": ("PreviewImage", {"images": ["train", 2]}),
        } | (more or {})
        return {name: {"class_type": kind, "inputs": inputs}
                for name, (kind, inputs) in nodes.items()}

    return make


@pytest.fixture
def texts(fresh_host, monkeypatch) -> dict[str, str]:
    """What each node shows last."""
    shown: dict[str, str] = {}
    monkeypatch.setattr(fresh_host.pack("nodes._host"), "show_on_node", shown.__setitem__)
    return shown


@pytest.fixture
def classifiers(fresh_host):
    """The host's folder of classifiers, empty."""
    path = fresh_host.directory / "models" / "minority_classifiers"

    def clear() -> None:
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()

    clear()
    path.mkdir(parents=True, exist_ok=True)
    yield path
    clear()


def same(one, other) -> bool:
    ours, theirs = one.net.state_dict(), other.net.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def load_only(name: str, **inputs) -> Prompt:
    return {"load": {"class_type": "UncommonLoadMinorityClassifier",
                     "inputs": {"classifier_name": name} | inputs},
            "save": {"class_type": "UncommonSaveMinorityClassifier",
                     "inputs": {"classifier": ["load", 0], "name": "again", "overwrite": True}}}


def some_classifier(space: str = "PixelSpace/3") -> MinorityClassifier:
    torch.manual_seed(0)
    return MinorityClassifier(net=AdmEncoder(PIXEL).eval(), time=LogSnrTime(), space=space,
                              channels=3, log_snr_range=(-5.0, 7.0),
                              thresholds=torch.arange(7.0), distance="l2", sigma=6.4)


def test_trains_and_shows_it(fresh_host, graph, texts):
    steps = []
    run = fresh_host.run(graph(), on_progress=lambda node, step, steps_: steps.append((node, step)))
    classifier, loss, curves = run.outputs["train"]
    assert (classifier.space, classifier.channels, classifier.classes) == ("PixelSpace/3", 3, 4)
    assert classifier.distance == "latent_l2"
    assert classifier.thresholds[-1] == run.outputs["score"][0].scores.max()
    assert len(loss["loss"]) == ITERATIONS
    assert curves.shape == (1, 500, 1200, 3)
    assert 0.5 < curves.mean() < 1 and curves.std() > 0.05
    assert [step for node, step in steps if node == "train"][-1] == ITERATIONS
    assert run.ui["train"]["images"]
    assert "5 of 5 iterations, 4 classes" in texts["train"]
    assert "Only 8 training images for the smallest of 4 classes" in texts["train"]

    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    with torch.inference_mode(False), torch.enable_grad():
        log_probs = classifier.on("cpu").log_probs(x, torch.zeros(2))
        gradient, = torch.autograd.grad(log_probs[:, -1].sum(), x)
    assert gradient.isfinite().all() and gradient.any()


def test_on_a_device(fresh_host, graph, texts, onto_device, monkeypatch, tmp_path):
    """Scored and trained there; and gone on with what was stopped on the CPU."""
    monkeypatch.setattr(fresh_host.pack("guidance.classifier_training"), "mixed_precision",
                        lambda device: nullcontext())  # which CPUs have too, some of them

    def stop(node, step, steps):
        if node == "train" and step == 3:
            fresh_host.interrupt()

    with fresh_host.user_directory(tmp_path / "cpu"):
        expected = fresh_host.run(graph()).outputs
    fresh_host.restart()
    with pytest.raises(Interrupted):
        fresh_host.run(graph(), on_progress=stop)
    onto_device()
    fresh_host.restart()
    resumed = fresh_host.run(graph()).outputs
    assert "Went on after iteration 3." in texts["train"]
    fresh_host.restart()
    with fresh_host.user_directory(tmp_path / "device"):
        found = fresh_host.run(graph()).outputs
    assert "40 new, 0 scored already" in texts["score"] and "Went on" not in texts["train"]
    assert torch.allclose(found["score"][0].scores, expected["score"][0].scores, rtol=1e-4)
    for classifier, losses, _ in (found["train"], resumed["train"]):
        assert losses["loss"] == pytest.approx(expected["train"][1]["loss"], rel=1e-3)
        assert {weight.device.type for weight in classifier.net.parameters()} == {"cpu"}


def test_the_hosts_loss_graph_takes_the_losses(fresh_host, graph):
    fresh_host.load_extra("nodes_train")
    run = fresh_host.run(graph(more={
        "plot": ("LossGraphNode", {"loss": ["train", 1], "filename_prefix": "loss"})}))
    assert run.ui["plot"]["images"]


def test_cancelled_and_resumed_equals_uninterrupted(fresh_host, graph, texts, tmp_path):
    def stop(node, step, steps):
        if node == "train" and step == 3:
            fresh_host.interrupt()

    with pytest.raises(Interrupted):
        fresh_host.run(graph(), on_progress=stop)
    assert "Stopped" in texts["train"]
    kept = list((tmp_path / "user" / "__uncommon" / "classifier_training").iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".pt"
    fresh_host.restart()
    resumed = fresh_host.run(graph()).outputs["train"]
    assert "Went on after iteration 3." in texts["train"]
    with fresh_host.user_directory(tmp_path / "other"):
        fresh_host.restart()
        whole = fresh_host.run(graph()).outputs["train"]
    assert "Went on" not in texts["train"]
    assert same(resumed[0], whole[0])
    assert resumed[1] == whole[1]
    assert torch.equal(resumed[2], whole[2])


def test_what_diverged_is_not_kept(fresh_host, graph, texts, tmp_path, monkeypatch):
    training = fresh_host.pack("guidance.classifier_training").ClassifierTraining
    step = training._step

    def broken(self):
        step(self)
        if self.iteration == 3:
            next(self.net.parameters()).data.fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_step", broken)
        with pytest.raises(RunFailed, match="The loss stopped being a finite number in iteration"):
            fresh_host.run(graph())
    assert "Stopped" not in texts.get("train", "")
    assert not (tmp_path / "user" / "__uncommon" / "classifier_training").exists()
    assert len(fresh_host.run(graph()).outputs["train"][1]["loss"]) == ITERATIONS


def test_a_training_that_ended_is_taken_as_it_is(fresh_host, graph, texts, monkeypatch):
    first = fresh_host.run(graph()).outputs["train"]
    fresh_host.restart()
    training = fresh_host.pack("guidance.classifier_training").ClassifierTraining
    step, steps = training._step, []
    monkeypatch.setattr(training, "_step", lambda self: steps.append(step(self)))
    again = fresh_host.run(graph()).outputs["train"]
    assert steps == []
    assert "nothing to do" in texts["train"]
    assert same(first[0], again[0]) and first[1] == again[1]
    anew = fresh_host.run(graph({"resume": False})).outputs["train"]
    assert len(steps) == ITERATIONS
    assert same(first[0], anew[0])


def test_a_damaged_checkpoint_is_no_obstacle(fresh_host, graph, texts, tmp_path):
    first = fresh_host.run(graph()).outputs["train"]
    file, = (tmp_path / "user" / "__uncommon" / "classifier_training").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    fresh_host.restart()
    again = fresh_host.run(graph()).outputs["train"]
    assert "damaged; the training began anew" in texts["train"]
    assert same(first[0], again[0])


def test_only_the_newest_trainings_are_kept(fresh_host, graph, tmp_path, monkeypatch):
    monkeypatch.setattr(fresh_host.pack("nodes._trainer"), "MOST_FINISHED", 2)
    for seed in range(3):
        fresh_host.run(graph({"seed": seed, "iterations": 1}))
    kept = (tmp_path / "user" / "__uncommon" / "classifier_training").iterdir()
    assert [file.name.endswith(".finished.pt") for file in kept] == [True, True]


def test_latents_that_do_not_fit_in_memory(fresh_host, graph, monkeypatch):
    first = fresh_host.run(graph()).outputs["train"]
    monkeypatch.setattr(fresh_host.pack("nodes._trainer"), "IN_MEMORY", 0)
    again = fresh_host.run(graph({"resume": False})).outputs["train"]
    assert same(first[0], again[0])


def test_saved_numbered_and_loaded(fresh_host, graph, classifiers, texts):
    save = {"save": ("UncommonSaveMinorityClassifier", {
        "classifier": ["train", 0], "name": "mine/digits", "overwrite": False})}
    trained = fresh_host.run(graph(more=save)).outputs["train"][0]
    fresh_host.restart()
    fresh_host.run(graph(more=save))
    assert sorted(file.name for file in (classifiers / "mine").iterdir()) == [
        "digits_00001_.safetensors", "digits_00002_.safetensors"]
    assert "digits_00002_.safetensors" in texts["save"]
    loaded = fresh_host.run(load_only("mine/digits_00001_.safetensors")).outputs["load"][0]
    assert same(trained, loaded)
    assert torch.equal(trained.thresholds, loaded.thresholds)
    assert "4 classes for latents of PixelSpace/3" in texts["load"]
    assert (classifiers / "again.safetensors").is_file()  # overwrite: no number


def test_overwriting_is_asked_for(fresh_host, classifiers):
    file = classifiers / "again.safetensors"
    some_classifier().save(classifiers / "one.safetensors")
    replace(some_classifier(), sigma=1.0).save(file)
    fresh_host.run(load_only("one.safetensors"))
    assert load_classifier(file).sigma == 6.4


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "", "folder/"])
def test_names_that_lead_elsewhere(fresh_host, classifiers, name):
    some_classifier().save(classifiers / "one.safetensors")
    prompt = load_only("one.safetensors")
    prompt["save"]["inputs"]["name"] = name
    with pytest.raises(RunFailed, match="lies outside|expected a file name"):
        fresh_host.run(prompt)
    assert [file.name for file in classifiers.iterdir()] == ["one.safetensors"]


def test_a_changed_file_is_loaded_again(fresh_host, classifiers):
    some_classifier().save(classifiers / "one.safetensors")
    assert "load" in fresh_host.run(load_only("one.safetensors")).executed
    assert "load" not in fresh_host.run(load_only("one.safetensors")).executed
    replace(some_classifier(), distance="lpips_vgg").save(classifiers / "one.safetensors")
    run = fresh_host.run(load_only("one.safetensors"))
    assert run.outputs["load"][0].distance == "lpips_vgg"


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_head_is_loaded_with_the_extractor_and_the_schedule_that_are_chosen(
        fresh_host, classifiers, schedule):
    torch.manual_seed(0)
    torch.save(AdmEncoder(PIXEL).state_dict(), classifiers / "whole.pt")
    torch.save(AdmEncoder(replace(PIXEL, in_channels=128)).state_dict(), classifiers / "head.pt")
    found = fresh_host.run(load_only("head.pt", extractor_name="whole.pt",
                                     noise_schedule=schedule)).outputs["load"][0]
    assert found.net.config.in_channels == 128
    assert found.time.schedule.kind == found.extractor.time.schedule.kind == schedule
    with pytest.raises(RunFailed, match="Choose the extractor's file as well"):
        fresh_host.run(load_only("head.pt"))


def test_shipped_classifiers_need_no_set_up(fresh_host, classifiers, tmp_path, monkeypatch):
    some_classifier().save(tmp_path / "faces_minority.safetensors")
    some_classifier().save(tmp_path / "other.safetensors")
    monkeypatch.setattr(fresh_host.pack("nodes._classifier_files"), "SHIPPED", tmp_path)
    assert fresh_host.pack("nodes._classifier_files").classifier_names() == ["faces_minority"]
    run = fresh_host.run(load_only("faces_minority"))
    assert run.outputs["load"][0].name == "faces_minority"


def test_folders_of_the_user_stay(fresh_host, tmp_path):
    import folder_paths

    mine = str(tmp_path / "mine")
    folder_paths.add_model_folder_path("minority_classifiers", mine)
    try:
        fresh_host.pack("nodes._classifier_files").register_folder()
        folders, extensions = folder_paths.folder_names_and_paths["minority_classifiers"]
        assert mine in folders and len(folders) == len(set(folders)) == 2
        assert ".safetensors" in extensions and ".txt" not in extensions
    finally:
        folder_paths.folder_names_and_paths["minority_classifiers"][0].remove(mine)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def test_files_that_are_no_classifier(fresh_host, classifiers, tmp_path):
    some_classifier().save(classifiers / "cut.safetensors")
    (classifiers / "cut.safetensors").write_bytes(
        (classifiers / "cut.safetensors").read_bytes()[:5000])
    (classifiers / "trap.pt").write_bytes(pickle.dumps({"a": Bomb(tmp_path / "boom")}))
    for name, message in (("cut.safetensors", "cut off"), ("trap.pt", "not executed")):
        with pytest.raises(RunFailed, match=message) as failed:
            fresh_host.run(load_only(name))
        assert failed.value.node_type == "UncommonLoadMinorityClassifier"
        assert name in failed.value.message
    assert not (tmp_path / "boom").exists()
    with pytest.raises(PromptRejected, match="classifier_name"):
        fresh_host.run(load_only("gone.safetensors"))


def test_on_a_classifier_of_guided_diffusion(fresh_host, graph, classifiers):
    torch.manual_seed(0)
    torch.save(AdmEncoder(PIXEL).state_dict(), classifiers / "classifier.pt")
    nodes = {"load": ("UncommonLoadMinorityClassifier", {"classifier_name": "classifier.pt"})}
    run = fresh_host.run(graph({"extractor": ["load", 0]}, nodes))
    classifier, frozen = run.outputs["train"][0], run.outputs["load"][0]
    assert classifier.net.config.in_channels == 128
    for name, tensor in classifier.extractor.trunk.state_dict().items():
        assert torch.equal(tensor, frozen.net.state_dict()[name])
    classifier.save(classifiers / "both.safetensors")
    x, log_snr = torch.randn(2, 3, 16, 16), torch.tensor([-3.0, 3.0])
    assert torch.equal(load_classifier(classifiers / "both.safetensors").log_probs(x, log_snr),
                       classifier.log_probs(x, log_snr))


def test_on_the_models_own_encoder(fresh_host, graph):
    """The frozen part answers as the model's middle block does when the host samples."""
    run = fresh_host.run(graph({"model": ["model", 0]}))
    classifier, model = run.outputs["train"][0], run.outputs["model"][0]
    seen = []

    def look(arguments):
        seen.append(arguments["h"])
        return arguments

    patched = model.clone()
    patched.set_model_patch(look, "middle_block_after_patch")
    sigmas = model.get_model_object("model_sampling").sigmas[[20, 500, 999]]
    x = torch.randn(3, 3, 16, 16) * sigmas[:, None, None, None]
    with torch.inference_mode():
        patched.model.apply_model(x, sigmas, y=torch.tensor([-1] * 3),
                                  transformer_options=patched.model_options["transformer_options"])
    x_vp = x / (1 + sigmas ** 2).sqrt()[:, None, None, None]
    features = classifier.extractor(x_vp, -2 * sigmas.log())
    assert torch.allclose(features, seen[0], atol=1e-4)


def test_networks_that_cannot_be_built_on(fresh_host, graph, classifiers):
    some_classifier("SD15/4").save(classifiers / "other.safetensors")
    nodes = {"load": ("UncommonLoadMinorityClassifier", {"classifier_name": "other.safetensors"})}
    with pytest.raises(RunFailed, match="space SD15/4, .* of the space PixelSpace/3"):
        fresh_host.run(graph({"extractor": ["load", 0]}, nodes))
    with pytest.raises(RunFailed, match="Disconnect one of them"):
        fresh_host.run(graph({"extractor": ["load", 0], "model": ["model", 0]}, nodes))


def test_images_that_no_classifier_can_come_of(fresh_host, graph, folder, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for count, train, message in ((1, {}, "There are 1 scored images"),
                                  (2, {}, "2 scored images for 4 classes"),
                                  (3, {"classes": 1}, "classes is 1; expected 2 or more")):
        name = f"{count - 1:02}.png"
        (few / name).write_bytes((folder / name).read_bytes())
        prompt = graph(train)
        prompt["score"]["inputs"]["folder"] = str(few)
        with pytest.raises(RunFailed, match=message) as failed:
            fresh_host.run(prompt)
        assert failed.value.node_type == "UncommonTrainMinorityClassifier"
