"""Graphs of `benchmarks.overhead`, and the models in them: the host's own, with random weights."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.scale_memories import build, file
from demo.host import InProcessHost
from demo.workflow import widget_defaults

HISTORY = 10_000
VARIANTS = {"both": ("novelty", "minority"), "plain": (), "features": ("features",),
            "novelty": ("novelty",), "minority": ("minority",)}
SD15 = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
        "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "context_dim": 768,
        "num_heads": 8, "num_head_channels": -1, "use_spatial_transformer": True, "legacy": False,
        "use_linear_in_transformer": False, "adm_in_channels": None,
        "use_temporal_attention": False}
SDXL = SD15 | {"num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
               "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
               "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048,
               "num_heads": -1, "num_head_channels": 64, "use_linear_in_transformer": True,
               "num_classes": "sequential", "adm_in_channels": 2816}
LARGE = {"sd15": ("SD15", SD15, 64, 768, 0), "sdxl": ("SDXL", SDXL, 128, 2048, 1280)}

GIVEN: dict[str, Any] = {}  # what the node Given gives, by name


class Given:
    """A node that gives what the benchmark made."""

    RETURN_TYPES = ("*",)
    FUNCTION = "give"
    CATEGORY = "benchmarks"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"name": ("STRING",)}}

    @classmethod
    def VALIDATE_INPUTS(cls, **_):  # noqa: N802
        return True

    @classmethod
    def IS_CHANGED(cls, name: str):  # noqa: N802
        return id(GIVEN[name])  # else the host goes on with what an earlier part gave

    def give(self, name: str):
        return (GIVEN[name],)


def demo_model(host: InProcessHost, name: str, label: int = -1) -> None:
    """Gives a demo model, prompts of one of its classes, and the avatars' classifier."""
    loading = {"model": ("UncommonLoadADM", {"model_name": name}),
               "positive": ("UncommonClassConditioning", {"class_number": label}),
               "negative": ("UncommonClassConditioning", {"class_number": -1}),
               "classifier": ("UncommonLoadMinorityClassifier",
                              {"classifier_name": "avatars_minority"})}
    shown = {f"shown {one}": ("PreviewAny", {"source": [one, 0]}) for one in loading}
    loaded = host.run({one: {"class_type": kind, "inputs": inputs}
                       for one, (kind, inputs) in (loading | shown).items()}).outputs
    GIVEN.update({one: loaded[one][0] for one in loading})


def large_model(host: InProcessHost, name: str, dtype: torch.dtype) -> int:
    """Gives one of LARGE, prompts and a classifier; returns the size of its latents."""
    config, net, size, width, pooled = LARGE[name]
    GIVEN["model"] = random_model(config, net, dtype)
    generator = torch.Generator().manual_seed(0)
    for prompt in ("positive", "negative"):
        GIVEN[prompt] = [[torch.randn(1, 77, width, generator=generator), {
            "pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}]]
    GIVEN["classifier"] = classifier(host, size)(f"{config}/4")
    return size


def classifier(host: InProcessHost, size: int):
    """A base classifier for latents `[4, size, size]` with random weights."""
    encoder = host.pack("guidance.adm_encoder")
    made = host.pack("guidance.minority_classifier")
    torch.manual_seed(0)
    with torch.inference_mode(False):
        net = encoder.AdmEncoder(encoder.encoder_config("base", 4, size, size, 10)).eval()
    return lambda space: made.MinorityClassifier(
        net=net, time=host.pack("guidance.time_conditioning").LogSnrTime(), space=space,
        channels=4, log_snr_range=(-10.0, 10.0), thresholds=torch.linspace(0.1, 1, 10))


def graph(host: InProcessHost, variant: str, *, part: str, size: int, steps: int, seed: int,
          cfg: float, batch: int, scale: int = 8, database: str | None = None,
          compiled: str = "", **inputs: Any) -> dict:
    """API format; the model, prompts and classifier are Given. size: of latents; scale: pixels to
    one of these; database: of the memory, by default the large one; compiled: by which backend of
    TorchCompileModel; inputs: of Novelty Guidance, where not its defaults."""
    nodes = {name: ("Given", {"name": name})
             for name in ("model", "positive", "negative", "classifier")}
    model = "model"
    if compiled:
        nodes["compiled"] = ("TorchCompileModel", {"model": ["model", 0], "backend": compiled})
        model = "compiled"
    for kind in VARIANTS[variant]:
        if kind == "minority":
            nodes["minority"] = ("UncommonMinorityGuidance", {
                "model": [model, 0], "classifier": ["classifier", 0]}
                | _defaults(host, "UncommonMinorityGuidance"))
        else:
            space = "features" if kind == "features" else "latent"
            nodes["memory"] = ("UncommonNoveltyMemory", {
                "name": memory_name(part, space), "mode": "learn", "revision": -1,
                "max_megabytes": 2 ** 20, "space": space,
                "database": f"sqlite:///{file(HISTORY)}" if database is None else database})
            nodes["novelty"] = ("UncommonNoveltyGuidance", {
                "model": [model, 0], "memory": ["memory", 0]}
                | _defaults(host, "UncommonNoveltyGuidance") | {"prompt_aware": False} | inputs)
        model = kind if kind == "minority" else "novelty"
    nodes["latent"] = ("EmptyLatentImage",
                       {"width": scale * size, "height": scale * size, "batch_size": batch})
    nodes["sampled"] = ("KSampler", {
        "model": [model, 0], "positive": ["positive", 0], "negative": ["negative", 0],
        "latent_image": ["latent", 0], "seed": seed, "steps": steps, "cfg": cfg,
        "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0})
    nodes["shown"] = ("PreviewAny", {"source": ["sampled", 0]})
    used = {link[0] for _, inputs in nodes.values() for link in inputs.values()
            if isinstance(link, list)} | {"shown"}
    return {name: {"class_type": kind, "inputs": inputs}
            for name, (kind, inputs) in nodes.items() if name in used}


def _defaults(host: InProcessHost, node: str) -> dict[str, Any]:
    return widget_defaults(host.pack_nodes[node].GET_NODE_INFO_V1())


def memory_name(part: str, space: str) -> str:
    return f"{space} of {part}"


def build_memory(host: InProcessHost, part: str, space: str) -> None:
    """A memory of 10,000 samples for the model that is Given, whose net has learnt them."""
    memory = host.pack("guidance.novelty_memory").NoveltyMemory(
        url=f"sqlite:///{file(HISTORY)}", name=memory_name(part, space), space=space)
    made = host.pack("nodes._latents").memory_space(GIVEN["model"], memory)
    build(HISTORY, memory.name, made.id, made.dim)
    memory.nets.net(memory.bank.at())


def random_model(config: str, net: dict, dtype: torch.dtype):
    """A MODEL as the host's loaders make it, with random weights."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    from demo.host.small_models import fill

    made = getattr(comfy.supported_models, config)(net)
    made.set_inference_dtype(dtype, None)
    with torch.inference_mode():
        base = made.get_model({}, device=torch.device("cpu"))
        fill(base.diffusion_model, 0)
    return comfy.model_patcher.CoreModelPatcher(
        base, load_device=comfy.model_management.get_torch_device(),
        offload_device=torch.device("cpu"))
