"""Novelty in feature space: the host's own models tapped while its samplers run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from demo.host import RunFailed
from demo.workflow import widget_defaults

pytestmark = pytest.mark.usefixtures("page_with_texts")

FEATURES = {"space": "features"}


def shown(run, node: str = "guided") -> str:
    """The last text that a node of the page was told to show."""
    return [data[1] for event, data in run.events
            if event == "progress_text" and data[0] == node][-1]


@pytest.fixture
def run(fresh_host, novelty_graph):
    """Runs a graph whose memory is in feature space."""
    def start(*args, memory: dict | None = None, **kwargs):
        return fresh_host.run(novelty_graph(*args, memory=FEATURES | (memory or {}), **kwargs))
    return start


@pytest.fixture
def draw(run):
    def start(*args, of: str = "sampled", **kwargs) -> Tensor:
        return run(*args, **kwargs).outputs[of][0]["samples"]
    return start


@pytest.fixture
def memory(fresh_host):
    """The memory that the graphs use."""
    url = fresh_host.pack("nodes._host").default_database()
    return fresh_host.pack("guidance.novelty_memory").NoveltyMemory(
        url=url, name="test", space="features")


def plain(fresh_host, novelty_graph, **kwargs) -> Tensor:
    graph = novelty_graph(**kwargs)
    graph["sampled"]["inputs"]["model"] = ["model", 0]
    return fresh_host.run({name: node for name, node in graph.items()
                           if name not in ("guided", "memory")}).outputs["sampled"][0]["samples"]


def nearest(memory) -> float:
    return float(torch.pdist(torch.stack([e.embedding for e in memory.log.samples()])).min())


def test_the_same_seed_gives_another_image_away_from_the_first(run, memory):
    first = run(seed=3)
    assert "Nothing pushed: the memory is empty." in shown(first)
    again = run(seed=3)
    assert "of the activation on average" in shown(again)
    a, b = (one.outputs["sampled"][0]["samples"] for one in (first, again))
    assert not torch.allclose(a, b, atol=0.1) and b.isfinite().all()
    assert memory.log.feature_space == "features-4x4/1/AdmNet/PixelSpace/middle/64"
    assert nearest(memory) > 0.05


def test_neutral_is_identical(fresh_host, novelty_graph, draw, memory):
    expected = plain(fresh_host, novelty_graph, seed=1, batch=2)
    alone = {"batch_repulsion": 0.0}
    assert torch.equal(draw(seed=1, batch=2, guidance=alone), expected)  # the memory is empty
    before = torch.get_rng_state()
    assert torch.equal(draw(seed=1, batch=2, guidance={"strength": 0.0}), expected)
    assert torch.equal(torch.get_rng_state(), before)
    window = {"start_percent": 0.5, "end_percent": 0.51} | alone
    frozen = {"mode": "frozen"}
    assert torch.equal(draw(seed=1, batch=2, guidance=window, memory=frozen), expected)
    assert memory.log.stats().live_samples == 2


def test_a_frozen_memory_gives_the_same_image_again(draw, memory):
    draw(seed=1)
    learning = draw(seed=2)
    again = draw(seed=2, memory={"mode": "frozen", "revision": 1})
    assert torch.equal(learning, again)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_batch_is_pushed_apart_and_recorded_image_by_image(draw, memory, cfg):
    """At CFG 1 the model never sees the empty prompt."""
    frozen = {"mode": "frozen"}
    apart = draw(batch=3, cfg=cfg, memory=frozen)
    alone = draw(batch=3, cfg=cfg, guidance={"batch_repulsion": 0.0})
    assert not torch.allclose(alone, apart, atol=0.1)
    entries = list(memory.log.samples())
    assert [entry.settings["item"] for entry in entries] == [0, 1, 2]
    assert nearest(memory) > 0


def test_halves_in_separate_calls(fresh_host, draw, memory, monkeypatch):
    """The host splits the halves where memory is short."""
    import comfy.model_management

    draw(batch=2, seed=1)
    settings = {"seed": 2, "batch": 2, "memory": {"mode": "frozen", "revision": 2}}
    together = draw(**settings)
    net = fresh_host.pack("nodes._adm_model").AdmNet
    forward, halves = net.forward, []

    def seen(self, *args, transformer_options, **kwargs):
        halves.append(transformer_options["cond_or_uncond"])
        return forward(self, *args, transformer_options=transformer_options, **kwargs)

    monkeypatch.setattr(net, "forward", seen)
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: 0)
    fresh_host.restart()
    split = draw(**settings)
    assert {tuple(one) for one in halves} == {(0,), (1,)}
    assert torch.allclose(split, together, atol=1e-3)


def test_guiders_that_list_the_negative_prompt_first(fresh_host, run, memory):
    """Of Dual CFG only the positive prompt is pushed, which the host evaluates last."""
    fresh_host.load_extra("nodes_custom_sampler")
    more = {
        "noise": ("RandomNoise", {"noise_seed": 0}),
        "guider": ("DualCFGGuider", {
            "model": ["guided", 0], "cond1": ["positive", 0], "cond2": ["negative", 0],
            "negative": ["negative", 0], "cfg_conds": 2.0, "cfg_cond2_negative": 1.0,
            "style": "regular"}),
        "solver": ("KSamplerSelect", {"sampler_name": "euler"}),
        "sigmas": ("BasicScheduler", {"model": ["guided", 0], "scheduler": "normal", "steps": 6,
                                      "denoise": 1.0}),
        "sampled": ("SamplerCustomAdvanced", {
            "noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["solver", 0],
            "sigmas": ["sigmas", 0], "latent_image": ["latent", 0]})}
    dual = [run(more=more).outputs["sampled"][0]["samples"] for _ in range(2)]
    assert memory.log.stats().live_samples == 2
    # The same as CFG 2 of the KSampler, which has the positive prompt first.
    other = {"name": "other"}
    usual = [run(memory=other).outputs["sampled"][0]["samples"] for _ in range(2)]
    for a, b in zip(dual, usual, strict=True):
        assert torch.allclose(a, b, atol=1e-3)


def test_together_with_a_memory_in_latents(run, draw):
    both = {"memory2": ("UncommonNoveltyMemory", {
                "name": "latents", "mode": "learn", "revision": -1, "max_megabytes": 64}),
            "guided2": ("UncommonNoveltyGuidance", {
                "model": ["guided", 0], "memory": ["memory2", 0], "strength": 0.15,
                "start_percent": 0.0, "end_percent": 0.9})}

    def start():
        graph = {"more": both | {"sampled": ("KSampler", {
            "model": ["guided2", 0], "positive": ["positive", 0], "negative": ["negative", 0],
            "latent_image": ["latent", 0], "seed": 0, "steps": 6, "cfg": 2.0,
            "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0})}}
        return run(**graph)
    start()
    again = start()
    assert "of the activation" in shown(again, "guided")
    assert "of the noise removed" in shown(again, "guided2")


@pytest.mark.parametrize("mode", ["free", "backprop"])
def test_beside_a_guidance_that_runs_the_model_by_itself(fresh_host, novelty_graph, memory, mode):
    """Its evaluations are neither pushed nor remembered, whichever node comes first."""
    found = []
    for first, second in (("model", "guided"), ("self", "model")):
        fresh_host.run(novelty_graph(seed=3, memory=FEATURES))
        graph = novelty_graph(seed=4, memory=FEATURES, guidance={"model": [first, 0]}, more={
            "self": ("UncommonSelfGuidedMinority", {
                "model": [second, 0], "mode": mode, "scale": 0.4, "start_percent": 0.0,
                "end_percent": 1.0, "every_n_steps": 1})})
        graph["sampled"]["inputs"]["model"] = ["self" if second == "guided" else "guided", 0]
        drawn = fresh_host.run(graph).outputs["sampled"][0]["samples"]
        found.append((drawn, memory.bank.at().embedding[-1]))
        memory.log.forget_all()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_hires_pass_takes_the_place_of_its_own_first_pass(fresh_host, run, memory):
    fresh_host.load_extra("nodes_preview_any")
    more = {
        "chosen": ("LatentFromBatch", {"samples": ["sampled", 0], "batch_index": 1, "length": 1}),
        "up": ("LatentUpscale", {"samples": ["chosen", 0], "upscale_method": "bilinear",
                                 "width": 24, "height": 24, "crop": "disabled"}),
        "second": ("KSampler", {
            "model": ["guided", 0], "positive": ["positive", 0], "negative": ["negative", 0],
            "latent_image": ["up", 0], "seed": 1, "steps": 6, "cfg": 2.0, "sampler_name": "euler",
            "scheduler": "normal", "denoise": 0.4}),
        "ended": ("PreviewAny", {"source": ["second", 0]})}
    run(batch=2, more=more)
    found = list(memory.log.samples())
    assert [(e.settings["node"], e.settings["item"]) for e in found] == [("sampled", 0),
                                                                         ("second", 0)]


# Spaces are never mixed

def test_a_memory_keeps_to_its_space(fresh_host, novelty_graph, run):
    run()
    with pytest.raises(RunFailed, match="remembers samples of feature space"):
        fresh_host.run(novelty_graph())
    fresh_host.run(novelty_graph(memory={"name": "latents"}))
    with pytest.raises(RunFailed, match="remembers samples of feature space"):
        run(memory={"name": "latents"})


def test_latents_cannot_be_remembered_as_features(fresh_host, run):
    with pytest.raises(RunFailed, match="is set to space features, but this node can only use"):
        run(more={"remember": ("UncommonRememberSamples", {
            "model": ["model", 0], "memory": ["memory", 0], "latent": ["sampled", 0]})})


# The host's other models, made small

NETS = {"sd15-eps": "UNetModel/SD15/middle/32", "sdxl-eps": "UNetModel/SDXL/middle/64",
        "sd3-flow": "OpenAISignatureMMDITWrapper/SD3/block0/64", "flux": "Flux/Flux/block0/32",
        "wan-flow": "WanModel/Wan21/block0/32", "wan-video": "WanModel/Wan21/block0/32",
        "sd2": "UNetModel/SD15/middle/64", "flux2": "Flux/Flux2/block0/64",
        "longcat": "Flux/Flux/block0/32",
        "qwen-image": "QwenImageTransformer2DModel/Wan21/block0/32"}


@pytest.fixture(params=NETS)
def small(request, fresh_host):
    """A small model of the host, its name, and hooks with a memory in feature space."""
    from demo.host.small_families import FAMILIES
    from demo.host.small_models import MODELS

    return request.param, (MODELS | FAMILIES)[request.param], hooks_of(fresh_host)


def hooks_of(host):
    """Hooks with the node's defaults."""
    hooks = host.pack("nodes._novelty_hooks")
    memory = host.pack("guidance.novelty_memory").NoveltyMemory(
        url=host.pack("nodes._host").default_database(), name="small", space="features")
    widgets = widget_defaults(host.pack_nodes["UncommonNoveltyGuidance"].GET_NODE_INFO_V1())
    return hooks.NoveltyHooks(memory, hooks.NoveltyOptions(**widgets), "1")


def sample(kind, model, *, batch: int = 1, size: int = 8, seed: int = 0, cfg: float = 2.0):
    import comfy.sample
    from demo.host import small_models

    latent = kind.latent(batch, size)
    noise = comfy.sample.prepare_noise(latent, seed)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 3, cfg, "euler", "simple", small_models.prompt(1),
            small_models.prompt(2), latent, seed=seed)


def test_models_of_the_host(small):
    name, kind, hooks = small
    model = kind.load()
    expected = sample(kind, model)
    guided = hooks.attach(model)
    first, again = (sample(kind, guided) for _ in range(2))
    assert torch.equal(first, expected)  # nothing was remembered
    assert again.isfinite().all() and not torch.allclose(again, first, atol=1e-4)
    assert hooks.memory.log.feature_space == f"features-4x4/1/{NETS[name]}"
    assert sample(kind, guided, size=12, batch=2).isfinite().all()  # other sizes, one space
    assert hooks.memory.log.stats().live_samples == 4
    assert "uncommon.input_shape" not in str(model.model_options)


def test_other_packs_patches_on_the_same_block_still_work(small):
    """Set before or after ours: they are called, and what they do reaches the adapter."""
    name, kind, hooks = small
    unet = "UNet" in NETS[name]

    def patched(model):
        calls = []

        def changed(h):
            calls.append(1)
            pattern = torch.linspace(-1, 1, h.shape[1 if unet else -1])
            return h + (pattern.view(-1, 1, 1) if unet else pattern)

        model = model.clone()
        if unet:
            def middle(args):
                return {**args, "h": changed(args["h"])}
            model.set_model_middle_block_after_patch(middle)
        else:
            def block(args, extra):
                out = extra["original_block"](args)
                return {**out, "img": changed(out["img"])}
            model.set_model_patch_replace(block, "dit", "double_block", 0)
        return model, calls

    model = kind.load()
    other, calls = patched(model)
    expected = sample(kind, other)
    assert calls
    assert not torch.allclose(expected, sample(kind, model), atol=1e-5)
    after, calls = patched(hooks.attach(model))
    assert torch.equal(sample(kind, after), expected)
    assert calls
    before = hooks.attach(other)
    moved = sample(kind, before)
    assert not torch.allclose(moved, expected, atol=1e-5)


def test_a_compiled_model_is_guided_like_any_other(small, caplog):
    """It has run without guidance before, and so its code knows of none."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    _, kind, hooks = small
    compiled = kind.load().clone(disable_dynamic=True)
    set_torch_compile_wrapper(model=compiled, backend="eager",  # TorchCompileModel needs a compiler
                              options={"guard_filter_fn": skip_torch_compile_dict})
    expected = sample(kind, compiled)
    guided = hooks.attach(compiled)
    with caplog.at_level("INFO", "uncommon"):
        first, again = (sample(kind, guided) for _ in range(2))
    assert "Not used: TorchCompileModel, since space features reads" in caplog.text
    assert torch.equal(first, sample(kind, kind.load()))
    assert not torch.allclose(again, first, atol=1e-4)
    assert hooks.memory.log.stats().live_samples == 2
    assert torch.equal(sample(kind, compiled), expected)


def test_an_architecture_without_taps_says_what_is_supported(fresh_host):
    from demo.host import small_models

    model = small_models.MODELS["cascade"].load()
    with pytest.raises(fresh_host.pack("guidance.memory").FeatureSpaceError) as found:
        hooks_of(fresh_host).attach(model)
    for part in ("StageC", "SD 1.5", "Flux", "Wan", "Set space to latent"):
        assert part in str(found.value)
