"""The minority nodes with the host's own samplers and the model `digits` around them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from demo.host import Interrupted, RunFailed

from .test_features import sample

pytestmark = pytest.mark.usefixtures("page_with_texts")

CLASSES = 10
CLASSIFIERS: dict[str, object] = {}  # what the node of these tests gives, by name
SAMPLERS = pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_sde",
                                            "euler_ancestral", "uni_pc"])


class GiveClassifier:
    """A node with a classifier that a test made."""

    RETURN_TYPES = ("UNCOMMON_MINORITY_CLASSIFIER",)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"name": ("STRING",)}}

    def give(self, name: str):
        return (CLASSIFIERS[name],)


class Watched:
    """A classifier that counts what it is asked."""

    def __init__(self, classifier, change=lambda log_probs: log_probs):
        self.classifier, self.change, self.calls, self.copies = classifier, change, [], 0

    def __getattr__(self, name):
        return getattr(self.classifier, name)

    def on(self, device):
        assert not torch.is_inference_mode_enabled()
        self.copies += 1
        return WatchedCopy(self, self.classifier.on(device))


class WatchedCopy:
    def __init__(self, watched: Watched, copy):
        self.watched, self.copy = watched, copy

    def __getattr__(self, name):
        return getattr(self.copy, name)

    def log_probs(self, x_vp: Tensor, log_snr: Tensor) -> Tensor:
        self.watched.calls.append(log_snr[0].item())
        return self.watched.change(self.copy.log_probs(x_vp, log_snr))


class Bright:
    """The exact classifier of two kinds of images, N(-m, I) and N(m, I) with m grey: class 1 holds
    the bright ones. Guidance needs no more of a classifier than this."""

    classes, thresholds, log_snr_range = 2, torch.tensor([0.1, 0.2]), (-10.0, 10.0)

    def on(self, device):
        return self

    def check_space(self, space: str) -> None:
        assert space == "PixelSpace/3"

    def log_probs(self, x_vp: Tensor, log_snr: Tensor) -> Tensor:
        m = 0.02
        odds = 2 * m * log_snr.sigmoid().sqrt() * x_vp.sum(dim=(1, 2, 3))
        return torch.nn.functional.logsigmoid(torch.stack([-odds, odds], dim=1))


@pytest.fixture
def classifier(fresh_host, monkeypatch):
    """A classifier of 10 classes with random weights, watched, for the graphs of these tests."""
    import nodes
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "GiveClassifier", GiveClassifier)
    made = fresh_host.pack("guidance.minority_classifier")
    encoder = fresh_host.pack("guidance.adm_encoder")
    time = fresh_host.pack("guidance.time_conditioning").LogSnrTime()
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = encoder.AdmEncoder(encoder.encoder_config("small", 3, 16, 16, CLASSES))
        for weight in net.out.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    CLASSIFIERS["random"] = Watched(made.MinorityClassifier(
        net=net, time=time, space="PixelSpace/3", channels=3, log_snr_range=time.log_snr_range,
        thresholds=torch.linspace(0.1, 1.0, CLASSES), name="random"))
    yield CLASSIFIERS["random"]
    CLASSIFIERS.clear()


MINORITY = {"model": ["model", 0], "classifier": ["classifier", 0], "rarity": 99.0, "scale": 5.0,
            "start_percent": 0.0, "end_percent": 1.0, "mode": "class"}
SELF_GUIDED = {"model": ["model", 0], "mode": "free", "scale": 0.4, "start_percent": 0.0,
               "end_percent": 1.0, "every_n_steps": 2}
ADVANCED = {
    "model": ["guided", 0], "positive": ["positive", 0], "negative": ["negative", 0],
    "latent_image": ["latent", 0], "noise_seed": 0, "steps": 6, "cfg": 2.0,
    "sampler_name": "euler", "scheduler": "normal", "add_noise": "enable", "start_at_step": 0,
    "end_at_step": 100, "return_with_leftover_noise": "disable"}
BOOST = {"model": ["model", 0], "gamma": 2.0, "skip": 1}


@pytest.fixture
def graph(novelty_graph, classifier):
    """Makes graphs that draw digits under one of the minority nodes; see `novelty_graph`."""
    def make(*args, kind: str = "minority", guidance: dict | None = None,
             more: dict | None = None, **kwargs) -> dict:
        node = {"minority": ("UncommonMinorityGuidance", MINORITY),
                "self": ("UncommonSelfGuidedMinority", SELF_GUIDED),
                "boost": ("UncommonBoostAndSkip", BOOST)}[kind]
        more = {"classifier": ("GiveClassifier", {"name": "random"}),
                "guided": (node[0], node[1] | (guidance or {}))} | (more or {})
        made = novelty_graph(*args, more=more, **kwargs)
        if not any(["memory", 0] in one["inputs"].values() for one in made.values()):
            del made["memory"]
        return made
    return make


@pytest.fixture
def draw(fresh_host, graph):
    """Runs a graph; what it drew as `[batch, 3, height, width]`, and what the node showed."""
    def run(*args, of: str = "sampled", **kwargs) -> tuple[Tensor, str]:
        found = fresh_host.run(graph(*args, **kwargs))
        return found.outputs[of][0]["samples"], shown(found)
    return run


@pytest.fixture
def plain(fresh_host, graph):
    """Draws the same without the node."""
    def run(*args, **kwargs) -> Tensor:
        made = graph(*args, **kwargs)
        del made["guided"]
        for node in made.values():
            node["inputs"] = {key: ["model", 0] if value == ["guided", 0] else value
                              for key, value in node["inputs"].items()}
        return fresh_host.run(made).outputs["sampled"][0]["samples"]
    return run


def shown(run, node: str = "guided") -> str:
    """The last text that a node of the page was told to show."""
    texts = [data for event, data in run.events if event == "progress_text" and data[0] == node]
    return texts[-1][1] if texts else ""


def noted(host, run) -> dict:
    """What the saved image carries of the sampler's run."""
    file = run.ui["saved"]["images"][0]["filename"]
    with Image.open(host.directory / "output" / file) as image:
        prompt = json.loads(image.text["prompt"])
    return prompt["guided"]["_meta"]["uncommon"]["sampled"]


def sampler(latent: str, *, model: str = "guided", **changes) -> tuple[str, dict]:
    return ("KSampler", {
        "model": [model, 0], "positive": ["positive", 0], "negative": ["negative", 0],
        "latent_image": [latent, 0], "seed": 0, "steps": 6, "cfg": 2.0, "sampler_name": "euler",
        "scheduler": "normal", "denoise": 1.0} | changes)


def shows(samples: str) -> tuple[str, dict]:
    return ("SaveLatent", {"samples": [samples, 0], "filename_prefix": "shown"})


NEUTRAL = pytest.mark.parametrize(("kind", "guidance", "why"), [
    ("minority", {"scale": 0.0}, "Nothing pushed: scale is 0."),
    ("minority", {"mode": "mixed", "beta": 0.0}, "Nothing pushed: beta is 0."),
    ("minority", {"start_percent": 0.5, "end_percent": 0.4}, "no step lies between"),
    ("self", {"scale": 0.0}, "Nothing pushed: scale is 0."),
    ("self", {"scale": 0.0, "mode": "backprop"}, "Nothing pushed: scale is 0."),
    ("self", {"start_percent": 0.5, "end_percent": 0.4}, "no step lies between"),
    ("self", {"renoise_percent": 1.0}, "Nothing pushed: the image is restored from too little"),
    ("self", {"renoise_percent": 1.0, "mode": "backprop"}, "Lower renoise_percent."),
    ("boost", {"gamma": 1.0, "skip": 0}, "Nothing done: gamma is 1 and skip is 0.")])
ACTIVE = pytest.mark.parametrize(("kind", "guidance"), [
    ("minority", {}), ("minority", {"mode": "mixed", "beta": 20.0}),
    ("self", {}), ("self", {"mode": "backprop"}), ("boost", {})])


# Without effect

@NEUTRAL
@pytest.mark.parametrize("name", ["euler", "euler_ancestral"])
def test_neutral_is_the_plain_host_bit_for_bit(draw, plain, classifier, kind, guidance, why, name):
    settings = {"kind": kind, "guidance": guidance, "batch": 2, "sampler": name}
    drawn, told = draw(**settings)
    assert torch.equal(drawn, plain(**settings))
    assert why in told
    assert not classifier.calls


def test_scale_zero_makes_no_copy_of_the_classifier(draw, classifier):
    draw(guidance={"scale": 0.0})
    assert classifier.copies == 0
    draw()
    assert classifier.copies == 1


@ACTIVE
def test_global_random_states_are_as_without_guidance(fresh_host, graph, kind, guidance):
    states = []
    for active in (True, False):
        made = graph(kind=kind, guidance=guidance, sampler="euler_ancestral")
        del made["saved"], made["images"]  # saving draws a random file name
        made["ended"] = {"class_type": "SaveLatent",
                         "inputs": {"samples": ["sampled", 0], "filename_prefix": "shown"}}
        if not active:
            made["sampled"]["inputs"]["model"] = ["model", 0]
        torch.manual_seed(0)
        np.random.seed(0)
        fresh_host.run(made)
        states.append((torch.random.get_rng_state(), np.random.get_state()[1].tolist()))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


# Samplers and models

@SAMPLERS
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_samplers_are_pushed_to_the_class(draw, plain, name, cfg):
    CLASSIFIERS["bright"] = Bright()
    settings = {"sampler": name, "cfg": cfg, "batch": 2,
                "more": {"classifier": ("GiveClassifier", {"name": "bright"})}}
    dark, told = draw(guidance={"rarity": 0.0}, **settings)
    bright, _ = draw(guidance={"rarity": 99.0}, **settings)
    undisturbed = plain(**settings)
    assert dark.isfinite().all() and bright.isfinite().all()
    low, middle, high = (one.mean(dim=(1, 2, 3)) for one in (dark, undisturbed, bright))
    assert (low < middle - 0.02).all() and (middle + 0.02 < high).all()
    assert "Towards class 0 of 2" in told and "Pushed at" in told


@SAMPLERS
@pytest.mark.parametrize("kind", ["self", "boost"])
def test_samplers_work_with_the_others(draw, plain, name, kind):
    drawn, told = draw(sampler=name, kind=kind)
    assert drawn.isfinite().all()
    assert not torch.allclose(drawn, plain(sampler=name, kind=kind), atol=1e-2)
    assert "Nothing" not in told


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("name", ["euler", "euler_ancestral_cfg_pp", "dpmpp_sde"])
def test_backprop_through_the_hosts_model(draw, plain, cfg, name):
    settings = {"kind": "self", "cfg": cfg, "batch": 2, "sampler": name,
                "guidance": {"mode": "backprop"}}
    drawn, told = draw(**settings)
    assert drawn.isfinite().all() and "Away from what the model restores (backprop)" in told
    assert not torch.allclose(drawn, plain(**settings), atol=1e-2)
    free, _ = draw(**settings | {"guidance": {"mode": "free"}})
    assert not torch.allclose(drawn, free, atol=1e-3)


def test_backprop_is_the_gradient_of_the_model(fresh_host, graph, first_slopes):
    fresh_host.run(graph(kind="self", guidance={"mode": "backprop", "start_percent": 0.4}))
    steepest, found, expected = first_slopes
    assert steepest > 0
    assert torch.allclose(found, expected, atol=0.05 * steepest.item())


def test_cfg_pp_samplers_hear_only_their_own_evaluations(draw, plain, monkeypatch):
    """They listen to the unconditional prediction; that of other places would mislead them."""
    settings = {"kind": "self", "sampler": "euler_cfg_pp", "cfg": 2.0, "guidance": {
        "scale": 1e-12, "every_n_steps": 1}}
    drawn, told = draw(**settings)
    assert "Pushed at 6" in told
    assert torch.allclose(drawn, plain(**settings), atol=1e-4)


def inference_weights(host, monkeypatch):
    """Gives Load ADM weights as the host's own loaders make them: inference tensors."""
    loader = host.pack_nodes["UncommonLoadADM"]
    load = loader.execute.__func__

    def as_the_host_does(cls, *args, **kwargs):
        output = load(cls, *args, **kwargs)
        net = output.args[0].model.diffusion_model
        net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
        assert all(p.is_inference() for p in net.parameters())
        return output

    monkeypatch.setattr(loader, "execute", classmethod(as_the_host_does))


@ACTIVE
def test_models_of_the_hosts_loaders(fresh_host, draw, monkeypatch, kind, guidance):
    expected, _ = draw(kind=kind, guidance=guidance)
    fresh_host.restart()
    inference_weights(fresh_host, monkeypatch)
    drawn, told = draw(kind=kind, guidance=guidance)
    assert torch.allclose(drawn, expected, atol=1e-4)
    assert "Nothing" not in told


def test_a_model_without_gradient_is_refused_with_a_cure(fresh_host, graph, monkeypatch):
    hooks = fresh_host.pack("nodes._self_guided_hooks")

    def elsewhere(net, device):
        raise ValueError("the weight x lies on cpu")

    monkeypatch.setattr(hooks, "check_whole", elsewhere)
    with pytest.raises(RunFailed, match="cannot take a gradient .*Set mode to free") as failed:
        fresh_host.run(graph(kind="self", guidance={"mode": "backprop"}))
    assert failed.value.node_id == "sampled"
    fresh_host.run(graph(kind="self"))


def test_a_lack_of_memory_for_the_gradient_is_called_that(fresh_host, graph, monkeypatch):
    net = fresh_host.pack("nodes._adm_model").AdmNet
    forward = net.forward

    def short(self, *args, **kwargs):
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("too large")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(net, "forward", short)
    with pytest.raises(RunFailed, match="too large") as failed:
        fresh_host.run(graph(kind="self", guidance={"mode": "backprop"}))
    assert "Set mode" not in failed.value.message


class Elsewhere(Tensor):
    """A latent on another device than the noise, as the host's --gpu-only has it."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        if function is torch.cat:
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("scale", [0.0, 0.4])
def test_noise_and_latent_may_lie_on_different_devices(fresh_host, draw, monkeypatch, scale):
    expected, _ = draw(kind="self", guidance={"scale": scale})
    fresh_host.restart()
    hooks = fresh_host.pack("nodes._self_guided_hooks").SelfGuidedHooks
    begin = hooks._begin
    monkeypatch.setattr(hooks, "_begin", lambda self, model, noise, latent, *more: begin(
        self, model, noise, latent.as_subclass(Elsewhere), *more))
    assert torch.equal(draw(kind="self", guidance={"scale": scale})[0], expected)


def test_classifier_weights_of_inference_mode(draw, classifier):
    expected, _ = draw()
    with torch.inference_mode():
        classifier.classifier.net.to(torch.float64).to(torch.float32)
    assert any(p.is_inference() for p in classifier.classifier.net.parameters())
    drawn, told = draw(guidance={"rarity": 98.0})  # the same class, but not the same cache entry
    assert torch.equal(drawn, expected) and "Pushed at 6 of 6" in told


@ACTIVE
@pytest.mark.parametrize("family", [
    ("ModelSamplingSD3", {"shift": 3.0}),
    ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": True}),
    ("ModelSamplingContinuousEDM", {"sampling": "edm", "sigma_max": 120.0, "sigma_min": 0.002})])
def test_families(fresh_host, draw, plain, family, kind, guidance):
    """A digits model of another family draws nonsense, but it draws."""
    fresh_host.load_extra("nodes_model_advanced")
    settings = {"kind": kind, "guidance": guidance | {"model": ["other", 0]},
                "more": {"other": (family[0], {"model": ["model", 0], **family[1]})}}
    drawn, told = draw(**settings)
    assert drawn.isfinite().all() and "Nothing" not in told
    assert not torch.allclose(drawn, plain(**settings), atol=1e-3)


def test_a_classifier_for_another_space_is_refused(fresh_host, graph, classifier):
    object.__setattr__(classifier.classifier, "space", "SD15/4")
    with pytest.raises(RunFailed) as failed:
        fresh_host.run(graph())
    assert failed.value.node_id == "guided"
    assert "SD15/4" in failed.value.message and "PixelSpace/3" in failed.value.message


@pytest.mark.parametrize(("guidance", "message"), [
    ({"class_number": 10}, "Class 10 was asked for, but this classifier has 10 classes, 0 to 9"),
    ({"mode": "mixed", "thresholds": None}, "Set mode to class")])
def test_what_the_classifier_does_not_have_is_told(fresh_host, graph, classifier, guidance,
                                                   message):
    if "thresholds" in guidance:
        object.__setattr__(classifier.classifier, "thresholds", guidance["thresholds"])
    guidance = {key: value for key, value in guidance.items() if key != "thresholds"}
    with pytest.raises(RunFailed, match=message) as failed:
        fresh_host.run(graph(guidance=guidance))
    assert failed.value.node_id == "guided"


# What is pushed, and when

def test_class_number_and_rarity_name_the_same(draw):
    by_number, _ = draw(guidance={"class_number": 3})
    by_rarity, told = draw(guidance={"rarity": 35.0})
    assert torch.equal(by_number, by_rarity) and "class 3" in told


def test_window(draw, classifier):
    _, told = draw(guidance={"start_percent": 0.3, "end_percent": 0.7}, steps=10)
    assert 0 < len(classifier.calls) < 10
    assert f"Pushed at {len(classifier.calls)} of 10 evaluations" in told


@pytest.mark.parametrize(("name", "evaluations"), [("euler", 6), ("heun", 11)])
def test_every_n_steps(draw, classifier, name, evaluations):
    every, _ = draw(sampler=name)
    assert len(classifier.calls) == evaluations
    classifier.calls.clear()
    drawn, told = draw(sampler=name, guidance={"every_n_steps": 3})
    levels = sorted(set(classifier.calls))
    assert len(levels) == 2 and len(classifier.calls) in (2, 3)
    assert f"Pushed at {evaluations} of {evaluations}" in told
    assert f"The classifier ran {len(classifier.calls)} times" in told
    assert not torch.allclose(drawn, every, atol=1e-3)


def test_self_guided_pushes_at_every_nth_step(draw):
    for every, pushed in ((1, 6), (2, 3), (4, 2)):
        _, told = draw(kind="self", guidance={"every_n_steps": every})
        assert f"Pushed at {pushed} of 6 evaluations" in told


def test_form_mean_pushes_by_the_level_after_the_step(draw, plain):
    """So the step that ends at no noise is not pushed."""
    assert torch.equal(draw(guidance={"form": "mean"}, steps=1)[0], plain(steps=1))
    assert not torch.equal(draw(steps=1)[0], plain(steps=1))
    assert not torch.equal(draw(guidance={"form": "mean"})[0], plain())


def test_outside_the_classifiers_noise_levels_nothing_is_pushed(draw, plain, classifier):
    object.__setattr__(classifier.classifier, "log_snr_range", (-9.0, -8.0))
    drawn, told = draw()
    assert "outside the noise levels" in told and torch.equal(drawn, plain())
    object.__setattr__(classifier.classifier, "log_snr_range", (-2.0, 10.0))
    classifier.calls.clear()
    _, told = draw(guidance={"rarity": 98.0})
    assert "left alone at" in told
    assert classifier.calls and min(classifier.calls) >= -2


def test_pushes_that_are_not_finite_are_dropped_and_told(draw, plain, classifier):
    classifier.change = lambda log_probs: log_probs * torch.tensor([[math.nan], [1.0]])
    drawn, told = draw(batch=2)
    assert drawn.isfinite().all() and "pushes dropped because they were not finite" in told
    undisturbed = plain(batch=2)
    assert torch.equal(drawn[0], undisturbed[0])
    assert not torch.allclose(drawn[1], undisturbed[1], atol=1e-2)


@ACTIVE
def test_each_of_a_batch_is_drawn_as_if_alone(draw, kind, guidance):
    together, _ = draw(batch=3, kind=kind, guidance=guidance)
    for i in range(3):
        alone, _ = draw(batch=3, kind=kind, guidance=guidance, more={
            "one": ("LatentFromBatch", {"samples": ["latent", 0], "batch_index": i, "length": 1}),
            "sampled": sampler("one")})
        assert torch.allclose(together[i:i + 1], alone, atol=1e-3)


@pytest.mark.parametrize("kind", ["minority", "self", "boost"])
def test_a_masked_area_is_kept(fresh_host, graph, plain, kind):
    fresh_host.load_extra("nodes_mask")
    masked = {
        "source": sampler("latent", seed=3, model="model"),
        "mask": ("SolidMask", {"value": 0.0, "width": 16, "height": 16}),
        "hole": ("SolidMask", {"value": 1.0, "width": 8, "height": 16}),
        "half": ("MaskComposite", {"destination": ["mask", 0], "source": ["hole", 0], "x": 0,
                                   "y": 0, "operation": "add"}),
        "masked": ("SetLatentNoiseMask", {"samples": ["source", 0], "mask": ["half", 0]}),
        "sampled": sampler("masked", seed=4)}
    run = fresh_host.run(graph(kind=kind, more=masked))
    kept, filled = (run.outputs[name][0]["samples"] for name in ("source", "sampled"))
    assert torch.allclose(filled[..., 8:], kept[..., 8:], atol=1e-5)
    undisturbed = plain(kind=kind, more=masked)
    if kind == "boost":
        assert torch.equal(filled, undisturbed) and "a mask" in shown(run)
    else:
        assert not torch.allclose(filled[..., :8], undisturbed[..., :8], atol=1e-2)


# Runs leave nothing behind

@ACTIVE
def test_an_interrupted_run_leaves_no_state(fresh_host, graph, kind, guidance):
    expected = fresh_host.run(graph(kind=kind, guidance=guidance)).outputs["sampled"][0]["samples"]
    fresh_host.restart()

    def stop(node_id, step, steps):
        if node_id == "sampled" and step == 3:
            fresh_host.interrupt()

    with pytest.raises(Interrupted):
        fresh_host.run(graph(kind=kind, guidance=guidance), on_progress=stop)
    import comfy.model_management
    assert not comfy.model_management.in_training
    again = fresh_host.run(graph(kind=kind, guidance=guidance))
    assert torch.equal(again.outputs["sampled"][0]["samples"], expected)


def test_no_run_is_kept_by_the_model(fresh_host, graph):
    found = fresh_host.run(graph())
    options = found.outputs["guided"][0].model_options["transformer_options"]
    assert not any(options.get(key) for key in options if key.startswith("uncommon."))


@ACTIVE
def test_two_samplers_on_one_model(fresh_host, graph, kind, guidance):
    run = fresh_host.run(graph(kind=kind, guidance=guidance, more={
        "other": sampler("latent", seed=1), "ended": shows("other"), "ended2": shows("same"),
        "same": ("KSamplerAdvanced", ADVANCED)}))
    first, other, same = (run.outputs[name][0]["samples"] for name in ("sampled", "other", "same"))
    assert torch.equal(first, same) and not torch.allclose(first, other, atol=0.05)
    assert len([1 for event, data in run.events if event == "progress_text"
                and data[0] == "guided"]) == 3


# With other nodes

@ACTIVE
@pytest.mark.parametrize("novelty_first", [True, False])
def test_together_with_novelty_guidance(fresh_host, graph, kind, guidance, novelty_first):
    novelty = {"memory": ["memory", 0], "strength": 0.5, "start_percent": 0.0, "end_percent": 1.0,
               "repulsion": "exact"}
    ends = ("novel", "guided") if novelty_first else ("guided", "novel")
    more = {"novel": ("UncommonNoveltyGuidance", novelty | {
                "model": ["model" if novelty_first else "guided", 0]}),
            "sampled": sampler("latent", model=ends[1])}
    made = graph(kind=kind, guidance=guidance | {
        "model": ["novel" if novelty_first else "model", 0]}, more=more)
    first, again = (fresh_host.run(made) for _ in range(2))
    for run in (first, again):
        assert "Recorded 1" in shown(run, "novel")
    assert "Pushed in" in shown(again, "novel") and "Nothing" not in shown(first)
    one, other = (run.outputs["sampled"][0]["samples"] for run in (first, again))
    assert one.isfinite().all() and other.isfinite().all()
    assert not torch.allclose(one, other, atol=1e-2)


def test_two_minority_nodes_in_a_row_add_up(fresh_host, graph):
    second = {"second": ("UncommonMinorityGuidance", MINORITY | {"model": ["guided", 0]}),
              "sampled": sampler("latent", model="second")}
    run = fresh_host.run(graph(more=second))
    assert "Pushed at 6 of 6" in shown(run) and "Pushed at 6 of 6" in shown(run, "second")
    twice = fresh_host.run(graph(guidance={"scale": 10.0})).outputs["sampled"][0]["samples"]
    assert torch.allclose(run.outputs["sampled"][0]["samples"], twice, atol=1e-3)


def test_boost_and_skip_before_and_after_another(fresh_host, graph):
    boost = BOOST | {"gamma": 4.0, "skip": 3}
    settings = {"steps": 12, "sampler": "euler_ancestral"}
    before = fresh_host.run(graph(guidance={"model": ["boost", 0]}, **settings, more={
        "boost": ("UncommonBoostAndSkip", boost)}))
    after = fresh_host.run(graph(**settings, more={
        "boost": ("UncommonBoostAndSkip", boost | {"model": ["guided", 0]}),
        "sampled": sampler("latent", model="boost", steps=12, sampler_name="euler_ancestral")}))
    one, other = (run.outputs["sampled"][0]["samples"] for run in (before, after))
    assert torch.allclose(one, other, atol=1e-4)
    assert all("pixels kept" in shown(run, "boost") for run in (before, after))


def test_metadata_says_what_was_done(fresh_host, graph):
    for kind, expected in (
            ("minority", {"class": 9, "classes": CLASSES, "mode": "class", "scale": 5.0}),
            ("boost", {"gamma": 2.0, "skip": 1, "clip": True})):
        assert noted(fresh_host, fresh_host.run(graph(kind=kind))) == expected


@pytest.mark.parametrize("percent", [0.0, 0.6])
def test_renoise_percent_is_the_noise_that_images_are_restored_from(fresh_host, graph, percent):
    """At most the model's highest, which the host's own number for percent 0 is far above."""
    run = fresh_host.run(graph(kind="self", guidance={"renoise_percent": percent}))
    sampling = run.outputs["model"][0].get_model_object("model_sampling")
    expected = min(float(sampling.percent_to_sigma(percent)), float(sampling.sigma_max))
    assert noted(fresh_host, run)["renoise_sigma"] == pytest.approx(expected)


# Boost and skip

def test_boosted_noise_reaches_the_model(fresh_host, draw, plain):
    """At gamma 2 and skip 0 the run is that of twice the noise."""
    drawn, told = draw(kind="boost", guidance={"gamma": 2.0, "skip": 0})
    assert told == "Initial noise times 2, pixels kept in their range"
    assert not torch.allclose(drawn, plain(kind="boost"), atol=1e-2)


@pytest.mark.parametrize("gamma", [2.0, 4.0])
def test_stronger_noise_does_not_stay_in_the_image(draw, gamma):
    kept, _ = draw(kind="boost", guidance={"gamma": gamma, "skip": 1}, steps=12)
    assert kept.abs().max() <= 1.0 + 1e-5
    left, told = draw(kind="boost", guidance={"gamma": gamma, "skip": 1, "clip": False}, steps=12)
    assert left.abs().max() > 1.5 and "range" not in told


def test_latents_have_no_range_to_be_kept_in(fresh_host):
    from demo.host.small_models import MODELS

    kind = MODELS["sd15-eps"]
    hooks = fresh_host.pack("nodes._minority_hooks").BoostHooks
    kept, free = (sample(kind, hooks(2.0, 1, clip, "1").attach(kind.load()))
                  for clip in (True, False))
    assert torch.equal(kept, free) and free.abs().max() > 1


def test_skipped_steps_are_not_run(fresh_host, graph):
    steps = []
    run = fresh_host.run(graph(kind="boost", guidance={"gamma": 1.0, "skip": 2}),
                         on_progress=lambda node, step, total: steps.append((node, step)))
    assert "First 2 steps skipped" in shown(run)
    assert max(step for node, step in steps if node == "sampled") == 4


def test_a_latent_does_not_shine_through_skipped_steps(draw):
    """At denoise 1 it counts for nothing, with an image on the wire as with none."""
    settings = {"kind": "boost", "guidance": {"gamma": 1.0, "skip": 3}}
    empty, _ = draw(**settings)
    full, _ = draw(**settings, more={
        "source": sampler("latent", seed=3, model="model"), "sampled": sampler("source")})
    assert torch.equal(empty, full)


@pytest.mark.parametrize(("changes", "why"), [
    ({"denoise": 0.5}, "part of the way"), ({"steps": 1}, "skip is 1, but the run has 1 step")])
def test_runs_that_cannot_be_boosted_say_why(draw, plain, changes, why):
    more = {"source": sampler("latent", seed=3, model="model"),
            "sampled": sampler("source", **changes)}
    drawn, told = draw(kind="boost", more=more)
    assert why in told
    assert torch.equal(drawn, plain(kind="boost", more=more))


def test_a_pass_without_noise_of_its_own_is_left_alone(draw, plain):
    more = {"sampled": ("KSamplerAdvanced", ADVANCED | {"add_noise": "disable"})}
    drawn, told = draw(kind="boost", more=more)
    assert "adds no noise of its own" in told
    assert torch.equal(drawn, plain(kind="boost", more=more))
