"""Novelty by what a vision model sees, through the host's own CLIP_VISION and VAE classes.

No vision model of use is small, and nothing is downloaded here: these are the host's classes made
small with random weights. What the host does with them is real; what they see means nothing.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from demo.host import Interrupted, RunFailed

CLIP = {"model_type": "clip_vision_model", "num_channels": 3, "hidden_act": "quick_gelu",
        "hidden_size": 32, "image_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
        "num_hidden_layers": 2, "patch_size": 8, "projection_dim": 24}
SIGLIP = CLIP | {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}
KINDS = {
    "clip": CLIP,
    "siglip": {key: value for key, value in SIGLIP.items() if key != "projection_dim"},
    "siglip2": {key: value for key, value in SIGLIP.items() if key != "projection_dim"}
    | {"model_type": "siglip2_vision_model", "image_size": -1, "num_patches": 16},
    "dinov2": {"model_type": "dinov2", "hidden_size": 32, "patch_size": 14, "image_size": 28,
               "num_attention_heads": 2, "num_hidden_layers": 2, "layer_norm_eps": 1e-6,
               "use_swiglu_ffn": False},
    "dinov3": {"model_type": "dinov3", "hidden_size": 32, "patch_size": 16, "image_size": 32,
               "num_attention_heads": 2, "num_hidden_layers": 2, "num_register_tokens": 1,
               "intermediate_size": 64, "layer_norm_eps": 1e-5, "num_channels": 3,
               "rope_theta": 100.0, "use_gated_mlp": True, "gated_mlp_act": "silu"},
}


def vision_model(kind: str = "clip", seed: int = 0):
    """A CLIP_VISION as the host's loader makes it, with inference tensors for weights."""
    import comfy.clip_vision

    from demo.host.small_models import fill

    with torch.inference_mode():
        made = comfy.clip_vision.ClipVisionModel(KINDS[kind])
        fill(made.model, seed)
    return made


def pixel_vae():
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


def tae(seed: int = 0):
    """A TAESD for latents of 4 channels."""
    import comfy.sd
    import comfy.taesd.taesd

    from demo.host.small_models import fill

    net = comfy.taesd.taesd.TAESD(latent_channels=4)
    fill(net, seed)
    with torch.inference_mode():
        return comfy.sd.VAE(sd={key: value.detach() for key, value in net.state_dict().items()})


def kl(seed: int = 0):
    """An AutoencoderKL for latents of 4 channels."""
    import comfy.sd

    from demo.host.small_models import fill

    parts = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3,
             "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [],
             "dropout": 0.0}
    with torch.inference_mode():
        made = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": parts, "embed_dim": 4}})
        fill(made.first_stage_model, seed)
    return made


@pytest.fixture
def encoder_of(fresh_host):
    """Encoders for a MODEL, ready."""
    def make(model, *given):
        made = fresh_host.pack("nodes._vision_encoder").VisionEncoder(model, *given)
        made.load(torch.device("cpu"))
        return made
    return make


@pytest.fixture
def digits(fresh_host, novelty_graph):
    """The MODEL of the digits."""
    graph = {"model": novelty_graph()["model"]}
    fresh_host.load_extra("nodes_preview_any")
    graph["seen"] = {"class_type": "PreviewAny", "inputs": {"source": ["model", 0]}}
    return fresh_host.run(graph).outputs["model"][0]


def pictures(batch: int = 2, seed: int = 0) -> Tensor:
    return 0.6 * torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dinov3"])
def test_sees_what_the_host_sees(digits, encoder_of, kind):
    """Of DINOv3 the host's own encode_image fails, for want of a layer that it asks for."""
    vision, vae = vision_model(kind), pixel_vae()
    x0 = pictures(3)
    with torch.inference_mode():
        seen = encoder_of(digits, vision, vae)(x0)
        expected = vision.encode_image(vae.decode(x0), crop=False)["image_embeds"]
    assert seen.shape == expected.shape
    assert torch.allclose(seen, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_through_weights_of_inference_mode(fresh_host, digits, encoder_of, kind):
    """Against finite differences, over steps so large that eight bits do not matter."""
    space = fresh_host.pack("guidance.vision_space")
    encoder = encoder_of(digits, vision_model(kind), pixel_vae())
    here, x0 = space.VisionSpace(encoder.name, encoder), 0.5 * pictures(1, seed=1)
    away = torch.randn(here.embed(x0).shape, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        displacement, _ = here.pulled_back(x0, lambda seen: (away, seen))
    along = displacement / displacement.norm()
    across = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    across = across / across.norm()

    def slope(direction: Tensor) -> float:
        step = 0.2 * direction
        return float(((here.embed(x0 + step) - here.embed(x0 - step)) * away).sum()) / 0.4

    assert slope(along) > 0
    cosine = float((across * along).sum())
    assert slope(across) == pytest.approx(slope(along) * cosine, abs=0.1 * slope(along))


@pytest.mark.parametrize(("made", "scale"), [(tae, 8), (kl, 2)])
def test_latents_are_decoded_with_a_gradient(fresh_host, encoder_of, made, scale):
    from demo.host import small_models

    space = fresh_host.pack("guidance.vision_space")
    model, vae = small_models.MODELS["sd15-eps"].load(), made()
    encoder = encoder_of(model, vision_model(), vae)
    here, x0 = space.VisionSpace(encoder.name, encoder), torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        displacement, seen = here.pulled_back(x0, lambda seen: (0.1 * torch.ones_like(seen), seen))
        picture = vae.decode(model.model.process_latent_out(x0))
        expected = vision_model().encode_image(picture, crop=False)["image_embeds"]
    assert picture.shape == (2, 8 * scale, 8 * scale, 3)
    assert torch.allclose(seen, 0.3 * torch.nn.functional.normalize(expected, dim=1), atol=1e-4)
    assert displacement.shape == x0.shape and displacement.isfinite().all()
    for moved, start in zip(displacement, x0, strict=True):
        assert float(moved.norm()) == pytest.approx(0.1 * 24 ** 0.5 / 0.3 * float(start.norm()),
                                                    rel=1e-3)


# Runs, with the host's loaders

# The host tells a CLIP vision model of 24 layers by their number, and takes all sizes from its own
# file for ViT-L; here these are small, and all else is as it is.
DEEP = CLIP | {"num_hidden_layers": 24, "patch_size": 16}
FILES = {"small": 0, "other": 1}
GUIDANCE = {"clip_vision": ["vision", 0], "vae": ["vae", 0], "radius": 0.15,
            "start_percent": 0.01}


@pytest.fixture
def vision_files(fresh_host, monkeypatch):
    """Files for Load CLIP Vision, and a host that takes them for what they are."""
    import comfy.clip_vision
    import comfy.utils

    from demo.host.small_models import fill

    kind = comfy.clip_vision.ClipVisionModel
    monkeypatch.setattr(comfy.clip_vision, "ClipVisionModel", lambda path: kind(DEEP))
    folder = fresh_host.directory / "models" / "clip_vision"
    folder.mkdir(exist_ok=True)
    for name, seed in FILES.items():
        made = kind(DEEP)
        fill(made.model, seed)
        comfy.utils.save_torch_file(
            {key: value.detach().clone() for key, value in made.get_sd().items()},
            str(folder / f"{name}.safetensors"))


@pytest.fixture
def run(fresh_host, novelty_graph, vision_files, monkeypatch):
    """Runs a graph whose memory is in the space of a small vision model; gives the latents and what
    Novelty Guidance shows. vision: which file; without: inputs to leave unlinked."""
    shown = {}
    monkeypatch.setattr(fresh_host.pack("nodes._host"), "show_on_node", shown.__setitem__)

    def start(*args, memory: dict | None = None, guidance: dict | None = None,
              vision: str = "small", without: tuple[str, ...] = (), more: dict | None = None,
              on_progress=None, **kwargs):
        loader = {"vision": ("CLIPVisionLoader", {"clip_name": f"{vision}.safetensors"})}
        inputs = {**GUIDANCE, **(guidance or {})}
        graph = novelty_graph(
            *args, memory={"space": "vision"} | (memory or {}), more=loader | (more or {}),
            guidance={name: of for name, of in inputs.items() if name not in without}, **kwargs)
        result = fresh_host.run(graph, on_progress=on_progress)
        return result.outputs["sampled"][0]["samples"], shown.get("guided", "")
    return start


@pytest.fixture
def memory(fresh_host):
    """The memory that the graphs use."""
    url = fresh_host.pack("nodes._host").default_database()
    return fresh_host.pack("guidance.novelty_memory").NoveltyMemory(
        url=url, name="test", space="vision")


def plain(fresh_host, novelty_graph, **kwargs) -> Tensor:
    graph = novelty_graph(**kwargs)
    graph["sampled"]["inputs"]["model"] = ["model", 0]
    return fresh_host.run({name: node for name, node in graph.items()
                           if name not in ("guided", "memory")}).outputs["sampled"][0]["samples"]


def nearest(memory) -> float:
    return float(torch.pdist(torch.stack([e.embedding for e in memory.log.samples()])).min())


def test_the_same_seed_gives_another_picture_and_the_node_tells_its_cost(run, memory):
    first, text = run(seed=3)
    assert "Nothing pushed: the memory is empty." in text and "Gradients" not in text
    again, text = run(seed=3)
    assert "of the noise removed on average" in text
    assert "Gradients through the vision model: 3, in " in text  # every second of six steps
    assert not torch.allclose(first, again, atol=0.05) and again.isfinite().all()
    assert memory.log.feature_space.startswith("vision/1/clip_vision_model/")
    assert [e.embedding.norm().item() for e in memory.log.samples()] == pytest.approx([0.3, 0.3])
    assert nearest(memory) > 0
    every = {"vision_every_n_steps": 1}
    _, text = run(seed=3, steps=12, guidance=every)
    assert "Gradients through the vision model: 11, in " in text  # the first has no step before it
    _, text = run(seed=3, steps=12, guidance=every | {"start_percent": 0.0})
    assert "Gradients through the vision model: 9, in " in text  # from .2 on


def test_neutral_is_identical(fresh_host, novelty_graph, run, memory):
    expected = plain(fresh_host, novelty_graph, seed=1, batch=2)
    alone = {"batch_repulsion": 0.0}
    before = torch.get_rng_state()
    assert torch.equal(run(seed=1, batch=2, guidance=alone)[0], expected)  # nothing remembered
    assert torch.equal(run(seed=1, batch=2, guidance={"strength": 0.0})[0], expected)
    window = {"start_percent": 0.5, "end_percent": 0.51} | alone
    drawn, text = run(seed=1, batch=2, guidance=window, memory={"mode": "frozen"})
    assert torch.equal(drawn, expected) and "Gradients" not in text
    assert torch.equal(torch.get_rng_state(), before)
    assert memory.log.stats().live_samples == 2


def test_on_a_device(fresh_host, run, onto_device, tmp_path):
    """And with the model on another than the rest."""
    fresh_host.load_extra("nodes_multigpu")
    elsewhere = {"placed": ("UncommonLoadADM", {"model_name": "digits"}),
                 "model": ("SelectModelDevice", {"model": ["placed", 0], "device": "gpu:1"})}

    def drawn(where: str, **more) -> Tensor:
        with fresh_host.user_directory(tmp_path / where):
            fresh_host.restart()
            return torch.cat([run(seed=3, **more)[0] for _ in range(2)])

    expected = drawn("cpu")
    onto_device()
    assert torch.allclose(drawn("device"), expected, atol=1e-3)
    assert torch.allclose(drawn("two", more=elsewhere), expected, atol=1e-3)


def test_a_frozen_memory_gives_the_same_picture_again(run):
    run(seed=1)
    learning, _ = run(seed=2)
    again, text = run(seed=2, memory={"mode": "frozen", "revision": 1})
    assert torch.equal(learning, again)
    assert "Nothing recorded: the memory is frozen." in text


def test_a_batch_is_pushed_apart_and_each_picture_as_if_alone_with_its_history(run, memory):
    frozen = {"mode": "frozen"}
    apart, _ = run(batch=3, memory=frozen)
    alone, _ = run(batch=3, guidance={"batch_repulsion": 0.0})
    assert not torch.allclose(alone, apart, atol=0.05)
    assert [entry.settings["item"] for entry in memory.log.samples()] == [0, 1, 2]
    history = {"seed": 7, "memory": {"mode": "frozen", "revision": 3},
               "guidance": {"batch_repulsion": 0.0}}
    two, _ = run(batch=2, **history)
    one, _ = run(batch=1, **history)
    # A batch of two rounds otherwise, and the gradient of random weights makes much of it; a batch
    # mate that pushed would show as above.
    assert torch.allclose(two[:1], one, atol=0.02)


@pytest.mark.parametrize("repulsion", ["net", "ball"])
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m_sde"])
def test_other_samplers_and_repulsions(run, repulsion, sampler):
    settings = {"seed": 3, "sampler": sampler, "guidance": {"repulsion": repulsion}}
    run(**settings)
    again, text = run(**settings)
    assert again.isfinite().all() and "Gradients through the vision model: " in text


def test_an_interrupted_run_leaves_nothing(run, memory):
    import comfy.model_management

    run(seed=1)

    def stop(node: str, step: int, steps: int) -> None:
        if node == "sampled" and step == 3:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(Interrupted):
        run(seed=2, on_progress=stop)
    assert memory.log.stats().live_samples == 1


def test_the_host_keeps_its_weights_and_nothing_else_stays(fresh_host, run):
    """No copy of a weight, and no picture's graph, outlives the run."""
    encoders = fresh_host.pack("nodes._vision_encoder").VisionEncoder
    run(seed=1)
    run(seed=1)
    gc.collect()
    kept = [one for one in gc.get_objects() if isinstance(one, encoders)]
    assert not kept


def test_a_later_pass_takes_the_place_of_its_own_first_pass(fresh_host, run, memory):
    fresh_host.load_extra("nodes_preview_any")
    more = {
        "up": ("LatentUpscale", {"samples": ["sampled", 0], "upscale_method": "bilinear",
                                 "width": 24, "height": 24, "crop": "disabled"}),
        "second": ("KSampler", {
            "model": ["guided", 0], "positive": ["positive", 0], "negative": ["negative", 0],
            "latent_image": ["up", 0], "seed": 1, "steps": 6, "cfg": 2.0, "sampler_name": "euler",
            "scheduler": "normal", "denoise": 0.4}),
        "ended": ("PreviewAny", {"source": ["second", 0]})}
    run(more=more)
    assert [entry.settings["node"] for entry in memory.log.samples()] == ["second"]


# Refusals

@pytest.mark.parametrize(("without", "named"), [
    (("clip_vision",), "clip_vision, from Load CLIP Vision."),
    (("vae",), "vae, the model's VAE or a TAESD."),
    (("clip_vision", "vae"), "Load CLIP Vision and vae, ")])
def test_what_is_missing_is_named(run, memory, without, named):
    with pytest.raises(RunFailed, match="Novelty Memory is set to space vision, which needs") as it:
        run(without=without)
    assert named in str(it.value)
    assert memory.log.stats().live_samples == 0


def test_other_spaces_do_not_use_the_inputs_and_say_so(run):
    _, text = run(memory={"space": "latent"})
    assert "Not used: clip_vision and vae. It is for a memory with space vision." in text
    _, text = run(memory={"space": "latent"}, without=("clip_vision", "vae"))
    assert "Not used" not in text


def test_a_memory_keeps_to_its_vision_model(run):
    run()
    with pytest.raises(RunFailed, match="Connect the CLIP vision model that it began with"):
        run(vision="other")
    run(vision="other", memory={"name": "other"})
    with pytest.raises(RunFailed, match="remembers samples of feature space"):
        run(memory={"space": "latent"})


def test_latents_by_themselves_are_refused(run):
    with pytest.raises(RunFailed, match="is set to space vision, but this node can only use"):
        run(more={"remember": ("UncommonRememberSamples", {
            "model": ["model", 0], "memory": ["memory", 0], "latent": ["sampled", 0]})})


def test_video_and_other_latents_are_refused(fresh_host):
    from demo.host import small_models

    encoder = fresh_host.pack("nodes._vision_encoder").VisionEncoder
    error = fresh_host.pack("guidance.memory").FeatureSpaceError
    with pytest.raises(error, match="Space vision is for models of images whose latents are"):
        encoder(small_models.MODELS["wan-video"].load(), vision_model(), pixel_vae())
    with pytest.raises(error, match="The VAE decodes latents of 3 channels, but this model's have"):
        encoder(small_models.MODELS["sd15-eps"].load(), vision_model(), pixel_vae())


def test_a_vision_model_without_a_gradient_says_what_to_do(fresh_host, run, monkeypatch):
    encoder = fresh_host.pack("nodes._vision_encoder").VisionEncoder
    see = encoder.__call__

    def quantised(self, x0):
        return see(self, x0.detach())

    run(seed=1)
    monkeypatch.setattr(encoder, "__call__", quantised)
    with pytest.raises(RunFailed, match="no gradient can be taken through this vision model"):
        run(seed=1)
