"""Load ADM Diffusion Model and Class Conditioning with the host's own nodes around them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.host import PromptRejected, RunFailed
from demo.judge import Judge
from guidance.adm import AdmConfig, AdmUNet
from guidance.adm_checkpoint import Schedule, read_adm

SMALL = AdmConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,),
                  num_heads=2)
AS_SMALL = {"attention_heads": "2 heads", "attention_order": "legacy", "noise_schedule": "linear"}


def graph(label: int = 3, *, negative: int = -1, cfg: float = 2.0, batch: int = 1, seed: int = 0,
          steps: int = 10, sampler: str = "euler", scheduler: str = "normal",
          load: dict | None = None, more: dict | None = None) -> dict:
    """Draws digits; `more` adds nodes or replaces some."""
    nodes = {
        "model": ("UncommonLoadADM", {"model_name": "digits"} | (load or {})),
        "positive": ("UncommonClassConditioning", {"class_number": label}),
        "negative": ("UncommonClassConditioning", {"class_number": negative}),
        "latent": ("EmptyLatentImage", {"width": 16, "height": 16, "batch_size": batch}),
        "sampled": ("KSampler", {
            "model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0],
            "latent_image": ["latent", 0], "seed": seed, "steps": steps, "cfg": cfg,
            "sampler_name": sampler, "scheduler": scheduler, "denoise": 1.0}),
        "vae": ("VAELoader", {"vae_name": "pixel_space"}),
        "images": ("VAEDecode", {"samples": ["sampled", 0], "vae": ["vae", 0]}),
        "shown": ("PreviewImage", {"images": ["images", 0]}),
    } | (more or {})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def load_only(**load) -> dict:
    return graph(steps=1, cfg=1.0, load=load)


def read_digits(path: str) -> tuple[AdmConfig, Schedule]:
    with safe_open(path, framework="pt") as file:
        return read_adm(load_file(path), file.metadata())


def images(run) -> Tensor:
    """`[batch, 3, height, width]` in [-1, 1]."""
    return run.outputs["images"][0].movedim(-1, 1) * 2 - 1


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def digits(host):
    """The digits model as the host's patcher."""
    return host.run(load_only()).outputs["model"][0]


@pytest.fixture
def put_model(host):
    """Writes a small random model, or what it is given, into the host's models folder."""
    written = []

    def put(name: str, config: AdmConfig = SMALL, content=None, prefix: str = "") -> str:
        file = host.directory / "models" / "diffusion_models" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        state_dict = {prefix + k: v for k, v in AdmUNet(config).state_dict().items()}
        if file.suffix == ".safetensors":
            save_file(content or state_dict, file)
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            torch.save(content or state_dict, file)
        written.append(file)
        return f"diffusion_models/{name}"

    yield put
    for file in written:
        file.unlink()


@pytest.mark.parametrize(("sampler", "scheduler", "cfg"), [
    ("euler", "normal", 1.0), ("euler", "simple", 2.0), ("dpmpp_2m", "karras", 2.0),
    ("euler_ancestral", "normal", 2.0), ("heun", "karras", 2.0), ("uni_pc", "simple", 2.0),
    ("ddim", "ddim_uniform", 2.0)])
def test_samplers_and_schedulers(host, judge, sampler, scheduler, cfg):
    found = images(host.run(graph(3, batch=6, cfg=cfg, sampler=sampler, scheduler=scheduler)))
    assert found.shape == (6, 3, 16, 16)
    assert (judge(found).argmax(1) == 3).sum() >= 4


def test_every_class(host, judge):
    hits = sum((judge(images(host.run(graph(label, batch=4)))).argmax(1) == label).sum()
               for label in range(10))
    assert hits >= 34


def test_host_sampling_equals_our_own(host):
    """Euler with guidance, cond and uncond in one batch, against a few lines of torch."""
    path = host.pack("nodes.models").shipped_models()["digits"]
    config, schedule = read_digits(path)
    model = AdmUNet(config).eval()
    model.load_state_dict(load_file(path))
    sigmas = schedule.sigmas().float()
    steps = torch.linspace(999, 0, 10).long().tolist()

    generator = torch.manual_seed(5)
    x = torch.randn(2, 3, 16, 16, generator=generator) * (1 + sigmas[999] ** 2).sqrt()
    with torch.inference_mode():
        for t, sigma, after in zip(steps, sigmas[steps], [*sigmas[steps[1:]], 0], strict=True):
            scaled = x / (1 + sigma ** 2).sqrt()
            with_class, without = (model(scaled, torch.tensor([float(t)] * 2),
                                         torch.tensor([label] * 2)) for label in (7, -1))
            x = x + (after - sigma) * (without + 3.0 * (with_class - without))
    run = host.run(graph(7, cfg=3.0, batch=2, seed=5))
    assert torch.allclose(run.outputs["sampled"][0]["samples"], x, atol=2e-4)


def test_class_beyond_the_model_names_both(host):
    with pytest.raises(RunFailed) as failed:
        host.run(graph(12))
    assert failed.value.node_type == "KSampler"
    assert "Class 12" in failed.value.message
    assert "10 classes, 0 to 9" in failed.value.message


def test_no_class_is_not_a_class(host):
    plain, three = (images(host.run(graph(label, cfg=1.0))) for label in (-1, 3))
    assert plain.isfinite().all()
    assert not torch.allclose(plain, three)


def test_conditioning_is_comparable(host):
    run = host.run(graph(3))
    (embedding, options), = run.outputs["positive"][0]
    (nothing, none_options), = run.outputs["negative"][0]
    assert embedding.shape == (1, 1, 64)
    assert torch.equal(options["pooled_output"], embedding[0])
    assert embedding.norm() == pytest.approx(1, abs=1e-6)
    assert not nothing.any() and not none_options["pooled_output"].any()


@pytest.mark.parametrize(("kind", "inputs"), [
    ("ConditioningCombine", {"conditioning_1": ["positive", 0], "conditioning_2": ["other", 0]}),
    ("ConditioningConcat", {"conditioning_to": ["positive", 0], "conditioning_from": ["other", 0]}),
    ("ConditioningAverage", {"conditioning_to": ["positive", 0],
                             "conditioning_from": ["other", 0], "conditioning_to_strength": 0.5}),
    ("ConditioningSetTimestepRange", {"conditioning": ["positive", 0], "start": 0.0, "end": 0.7}),
    ("ConditioningSetArea", {"conditioning": ["positive", 0], "width": 64, "height": 64, "x": 0,
                             "y": 64, "strength": 1.0}),
])
def test_host_nodes_on_a_class(host, kind, inputs):
    prompt = graph(3, batch=2, more={"other": ("UncommonClassConditioning", {"class_number": 8}),
                                     "changed": (kind, inputs)})
    prompt["sampled"]["inputs"]["positive"] = ["changed", 0]
    assert images(host.run(prompt)).isfinite().all()


def test_zeroed_out_class_is_no_class(host):
    plain = host.run(graph(3, cfg=3.0))
    zeroed = graph(3, cfg=3.0, more={
        "zero": ("ConditioningZeroOut", {"conditioning": ["positive", 0]})})
    zeroed["sampled"]["inputs"]["negative"] = ["zero", 0]
    assert torch.equal(images(plain), images(host.run(zeroed)))


def test_batch_item_does_not_depend_on_its_mates(host):
    batch = images(host.run(graph(5, batch=3)))
    first = images(host.run(graph(5, batch=1)))
    assert torch.allclose(batch[:1], first, atol=1e-3)


def test_wrappers_and_middle_block_patches(digits):
    from comfy.patcher_extension import WrappersMP

    seen = []

    def wrapper(executor, x, timesteps, context, y, *rest, **kwargs):
        seen.append(("wrapper", x.shape, y.tolist()))
        return executor(x, timesteps, context, y, *rest, **kwargs)

    def patch(arguments):
        seen.append(("patch", arguments["h"].shape, arguments["transformer_options"]["block"]))
        return arguments | {"h": arguments["h"] * 0}

    patched = digits.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    patched.set_model_patch(patch, "middle_block_after_patch")
    x, sigma = torch.zeros(2, 3, 16, 16), torch.ones(2)
    options = patched.model_options["transformer_options"]
    options["wrappers"] = patched.wrappers
    with torch.inference_mode():
        plain = digits.model.apply_model(x, sigma, y=torch.tensor([1, -1]))
        changed = digits.model.apply_model(x, sigma, y=torch.tensor([1, -1]),
                                           transformer_options=options)
    assert seen == [("wrapper", x.shape, [1, -1]), ("patch", (2, 64, 4, 4), ("middle", 0))]
    assert not torch.allclose(plain, changed)


def test_gradients_pass_through_the_model(digits):
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
        out = digits.model.apply_model(x, torch.ones(1), y=torch.tensor([4]))
        gradient, = torch.autograd.grad(out.square().sum(), x)
    assert gradient.isfinite().all() and gradient.any()


def test_compute_in_float32_on_the_cpu(digits):
    assert {p.dtype for p in digits.model.diffusion_model.parameters()} == {torch.float32}
    assert digits.model.get_dtype_inference() == torch.float32


def test_preview_shows_the_image(digits, monkeypatch):
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    previewer = latent_preview.get_previewer(torch.device("cpu"), digits.model.latent_format)
    x0 = torch.full((1, 3, 16, 16), -1.0)
    x0[:, 0] = 1
    preview = previewer.decode_latent_to_preview(x0)
    assert preview.size == (16, 16)
    assert preview.getpixel((3, 3)) == (255, 0, 0)


def test_sizes_that_do_not_fit(digits):
    with pytest.raises(ValueError, match="18 x 16 pixels, but this model needs multiples of 4"):
        digits.model.apply_model(torch.zeros(1, 3, 16, 18), torch.ones(1))


@pytest.mark.parametrize(("load", "schedule"), [
    ({}, Schedule()),
    ({"noise_schedule": "cosine"}, Schedule(kind="cosine")),
    ({"noise_schedule": "linear", "noise_steps": 100}, Schedule(steps=100)),
    ({"noise_schedule": "cosine", "noise_steps": 4000, "timesteps": "rescaled to 1000"},
     Schedule(kind="cosine", steps=4000, embedding_steps=1000)),
])
def test_schedule_of_a_foreign_checkpoint(host, put_model, load, schedule):
    name = put_model("foreign.pt", replace(SMALL, out_channels=6), prefix="module.")
    run = host.run(graph(3, steps=2, load={"model_name": name, **AS_SMALL, **load}))
    model = run.outputs["model"][0]
    sampling, sigmas = model.get_model_object("model_sampling"), schedule.sigmas().float()
    assert torch.allclose(sampling.sigmas, sigmas, rtol=1e-5)
    middle = sigmas[schedule.steps // 2 - 1:][:2].log().mean().exp().item()
    assert sampling.percent_to_sigma(0.5) == pytest.approx(middle, rel=1e-4)
    assert sampling.percent_to_sigma(0.0) > sigmas[-1]
    assert sampling.percent_to_sigma(1.0) == 0
    last = model.model.process_timestep(sampling.timestep(sigmas[-1:]).float())
    assert last.item() == (schedule.steps - 1) * schedule.timestep_scale
    assert images(run).shape == (1, 3, 16, 16)


def test_scaled_linear_schedule_is_exact(digits, host):
    schedule = read_digits(host.pack("nodes.models").shipped_models()["digits"])[1]
    sampling = digits.get_model_object("model_sampling")
    assert torch.allclose(sampling.sigmas, schedule.sigmas().float(), rtol=1e-5)


def test_files_offered(host, put_model):
    name = put_model("mine.safetensors")
    put_model("notes.txt", content=b"no model")
    offered = host.pack("nodes.models").model_names()
    assert offered[0] == "digits"
    assert name in offered
    assert not any("judge" in one or "notes" in one for one in offered)


def test_model_that_is_gone_is_refused_before_the_run(host):
    with pytest.raises(PromptRejected, match="model_name"):
        host.run(load_only(model_name="diffusion_models/gone.safetensors"))


@pytest.mark.parametrize(("name", "content", "message"), [
    ("torn.pt", b"not a checkpoint", "Download it again"),
    ("torn.safetensors.ckpt", b"", "Download it again"),
    ("list.pt", [1, 2], "Download it again"),
    ("other.safetensors", {"conv.weight": torch.zeros(2)}, "not the U-Net of an ADM model"),
])
def test_files_that_are_no_model(host, put_model, name, content, message):
    with pytest.raises(RunFailed) as failed:
        host.run(load_only(model_name=put_model(name, content=content)))
    assert failed.value.node_type == "UncommonLoadADM"
    assert message in failed.value.message
    assert name in failed.value.message


def test_unknown_shape_says_what_to_set(host, put_model):
    with pytest.raises(RunFailed, match="attention heads, attention order, noise schedule"):
        host.run(load_only(model_name=put_model("unknown.safetensors")))
