"""The digits' student, the faces of 64 pixels, and the DiT of the avatars."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo import diffusion, train
from demo.workflow import widget_defaults
from demo.avatars import ATTRIBUTES, attributes_of, avatars, class_of
from demo.avatars_reader import AvatarsReader
from demo.judge import Judge

STUDENT = "digits_distilled"


@pytest.fixture
def dit(host):
    """The module, once the host is there and knows its nodes."""
    from demo import avatars_dit

    avatars_dit.register()
    return avatars_dit


def draw_digits(host, novelty_graph, model: str, label: int, *, cfg: float, steps: int,
                batch: int = 10) -> Tensor:
    graph = novelty_graph(label, steps=steps, cfg=cfg, batch=batch)
    del graph["memory"], graph["guided"]
    graph["model"]["inputs"]["model_name"] = model
    graph["sampled"]["inputs"]["model"] = ["model", 0]
    return host.run(graph).outputs["sampled"][0]["samples"]


def agreement(images: Tensor, label: int) -> float:
    with torch.inference_mode():
        return (Judge.load()(images.clamp(-1, 1)).argmax(dim=1) == label).float().mean().item()


@pytest.mark.parametrize("steps", [4, 20])
def test_the_student_answers_at_cfg_1(fresh_host, novelty_graph, steps):
    shares = [agreement(draw_digits(fresh_host, novelty_graph, STUDENT, label, cfg=1.0,
                                    steps=steps), label) for label in (3, 8)]
    assert min(shares) >= 0.9


def test_the_student_draws_what_its_teacher_draws_with_guidance(fresh_host, novelty_graph):
    """From the same noise: each image is nearest to the teacher's own of that seed."""
    taught = draw_digits(fresh_host, novelty_graph, "digits", 4, cfg=4.0, steps=20)
    drawn = draw_digits(fresh_host, novelty_graph, STUDENT, 4, cfg=1.0, steps=20)
    nearest = torch.cdist(drawn.flatten(1), taught.flatten(1)).argmin(dim=1)
    assert (nearest == torch.arange(10)).float().mean() >= 0.8


def test_faces_of_64_pixels_are_whole(fresh_host):
    """The reader knows faces of 24 pixels."""
    nodes = {"model": ("UncommonLoadADM", {"model_name": "avatars_64"}),
             "none": ("UncommonClassConditioning", {"class_number": -1}),
             "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 6}),
             "sampled": ("KSampler", {
                 "model": ["model", 0], "positive": ["none", 0], "negative": ["none", 0],
                 "latent_image": ["latent", 0], "seed": 0, "steps": 12, "cfg": 1.0,
                 "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}),
             "shown": ("PreviewAny", {"source": ["sampled", 0]})}
    fresh_host.load_extra("nodes_preview_any")
    run = fresh_host.run({name: {"class_type": kind, "inputs": inputs}
                          for name, (kind, inputs) in nodes.items()})
    faces = sampled(run).clamp(-1, 1)
    assert faces.shape == (6, 3, 64, 64)
    smaller = torch.nn.functional.interpolate(faces, size=24, mode="bilinear", antialias=True)
    assert AvatarsReader.load().is_intact(smaller).all()


def avatars_graph(dit, label: int, *, cfg: float = 1.0, steps: int = 8, batch: int = 8,
                  seed: int = 0, memory: dict | None = None) -> dict:
    """Draws faces; memory: what Novelty Memory is set to, None for no guidance."""
    nodes = {
        "model": ("AvatarsDitLoader", {}),
        "positive": ("AvatarsDitClass", {"class_number": label}),
        "negative": ("AvatarsDitClass", {"class_number": dit.NO_CLASS}),
        "latent": ("EmptyLatentImage", {"width": 24, "height": 24, "batch_size": batch}),
        "sampled": ("KSampler", {
            "model": ["model" if memory is None else "guided", 0], "positive": ["positive", 0],
            "negative": ["negative", 0], "latent_image": ["latent", 0], "seed": seed,
            "steps": steps, "cfg": cfg, "sampler_name": "euler", "scheduler": "normal",
            "denoise": 1.0}),
        "vae": ("VAELoader", {"vae_name": "pixel_space"}),
        "images": ("VAEDecode", {"samples": ["sampled", 0], "vae": ["vae", 0]}),
        "shown": ("PreviewImage", {"images": ["images", 0]}),
    }
    if memory is not None:
        nodes["memory"] = ("UncommonNoveltyMemory", {
            "name": "test", "mode": "learn", "revision": -1, "max_megabytes": 64, **memory})
        nodes["guided"] = ("UncommonNoveltyGuidance", {
            "model": ["model", 0], "memory": ["memory", 0], "strength": 0.5,
            "start_percent": 0.0, "end_percent": 1.0, "repulsion": "exact"})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def sampled(run) -> Tensor:
    return run.outputs["sampled"][0]["samples"]


def test_classes_are_the_combinations_of_the_attributes(dit):
    _, attributes = avatars(200, 8, rates=dict.fromkeys(ATTRIBUTES, 0.5))
    classes = class_of(attributes)
    assert set(classes.tolist()) == set(range(dit.CLASSES))
    assert torch.equal(attributes_of(classes), attributes)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_dit_draws_the_class_that_is_asked(fresh_host, dit, cfg):
    shares = []
    for label in (2, 5):
        run = fresh_host.run(avatars_graph(dit, label, cfg=cfg))
        images = run.outputs["images"][0].movedim(-1, 1) * 2 - 1
        assert images.shape == (8, 3, 24, 24)
        wanted = attributes_of(torch.tensor([label]))
        shares.append((AvatarsReader.load().read(images) == wanted).float().mean().item())
    assert min(shares) >= 0.8


def test_it_is_a_flux_model_of_the_host(fresh_host, dit):
    model = dit.load()
    import comfy.model_base
    import comfy.model_sampling

    assert isinstance(model.model, comfy.model_base.Flux)
    assert isinstance(model.get_model_object("model_sampling"),
                      comfy.model_sampling.ModelSamplingFlux)
    assert len(model.model.diffusion_model.double_blocks) > 0


@pytest.mark.parametrize("space", ["latent", "features"])
def test_novelty_guidance_pushes_the_dit(fresh_host, dit, space):
    first = sampled(fresh_host.run(avatars_graph(dit, 1, batch=2, memory={"space": space})))
    plain = sampled(fresh_host.run(avatars_graph(dit, 1, batch=2)))
    again = sampled(fresh_host.run(avatars_graph(dit, 1, batch=2, memory={"space": space})))
    assert torch.isfinite(again).all()
    moved = (again - first).flatten(1).norm(dim=1)
    assert (moved > 0.05 * plain.flatten(1).norm(dim=1)).all()


def test_features_leave_the_faces_of_the_dit_whole(fresh_host, dit):
    """With the defaults; a radius of .19, which suits the U-Net of the digits, breaks them."""
    defaults = widget_defaults(fresh_host.pack_nodes["UncommonNoveltyGuidance"].GET_NODE_INFO_V1())

    def share_whole(name: str, radius: float) -> float:
        images = []
        for seed in range(5):
            graph = avatars_graph(dit, 1, cfg=3.0, steps=12, batch=4, seed=seed,
                                  memory={"name": name, "space": "features"})
            graph["guided"]["inputs"] |= defaults | {"radius": radius}
            images.append(sampled(fresh_host.run(graph)))
        reader = AvatarsReader.load()
        with torch.inference_mode():
            features = reader.features(torch.cat(images).clamp(-1, 1))
            return (reader.intact(features)[:, 0] > 0).float().mean().item()

    assert share_whole("fitted", 0.0) >= 0.9
    assert share_whole("fixed", 0.19) <= 0.6


def test_the_host_s_net_and_the_trained_one_are_the_same(dit):
    state = {name: value.float() for name, value in load_file(dit.DIT_FILE).items()}
    trained = dit.ClassDit(dit.AvatarsDitFile.read().config).eval()
    trained.load_state_dict(state)
    x, t = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)), torch.ones(2) / 3
    row = dit.conditioning(6)[0]
    with torch.inference_mode():
        expected = trained(x, t, torch.tensor([6, 6]))
        net = dit.load().model.diffusion_model
        made = net(x, t, row[0].expand(2, -1, -1), row[1]["pooled_output"].expand(2, -1))
    assert torch.allclose(made, expected, atol=1e-4)


def test_an_interrupted_training_of_the_dit_ends_as_a_whole_one_does(dit, tmp_path, monkeypatch):
    made = []
    for stops in (False, True):
        folder = tmp_path / str(stops)
        folder.mkdir()
        monkeypatch.setattr(diffusion, "MODELS", folder)
        monkeypatch.setattr(diffusion, "UNFINISHED", folder)
        monkeypatch.setattr(diffusion, "SAVED_EVERY", 1)
        if stops:
            def save_then_stop(*args) -> None:
                save_file(*args)
                monkeypatch.setattr(diffusion, "save_file", save_file)
                raise KeyboardInterrupt

            monkeypatch.setattr(diffusion, "save_file", save_then_stop)
            with pytest.raises(KeyboardInterrupt):
                train.train_dit(count=8, iterations=2, batch=4)
        train.train_dit(count=8, iterations=2, batch=4)
        made.append(load_file(folder / "avatars_dit.safetensors"))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    with safe_open(folder / "avatars_dit.safetensors", "pt") as file:
        header = json.loads(file.metadata()[dit.DIT_HEADER])
    assert header["training"]["iterations"] == 2
    import comfy.model_management

    assert not comfy.model_management.in_training
