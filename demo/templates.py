"""Writes those example workflows that are made by a program, in the page's own format.

    python -m demo.templates        asks a real ComfyUI server which inputs its nodes have
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from demo.host import Server
from demo.layout import Box, page
from dev import ROOT

FOLDER = ROOT / "example_workflows"

EXPLORE_NOTE = """## Draw many, keep 8 that stand for all

Run it: 64 faces are drawn, and **Keep Most Different** keeps 8. Like faces form a group, and the \
middle one of each group is kept, so ten near copies count as one.

- **How many:** *count*, or set *keep* to *fraction*.
- **Look:** Keep Most Different tells how well the 8 stand for all of them.
- **Next:** its *latents* output goes to a second KSampler (a larger size, more steps): the few \
that you like are worth the time.
- **Your own model:** put your checkpoint, prompts and VAE in the place of *avatars*, and link the \
VAE to *vae* of Keep Most Different."""

REPORT_NOTE = """## How diverse is this set?

Run it: the same noise, plain and with **Novelty Guidance**, 64 images each, and a **Diversity \
Report** on both. One number says little by itself: compare two sets of the same size, with the \
same *features*.

- **Read:** Diversity Report shows the numbers and says what each means. Here the plain images are \
the reference of the guided ones: precision tells how many of these still look like them.
- **Features:** *pixels* needs no file, and knows colour and layout only. Link *Load CLIP Vision* \
to *clip_vision* to compare what images show.
- **Your own images:** give a *folder* instead of *images*.
- **The memory** is frozen here, and empty, so that the result is the same each time: the images \
of the batch push one another."""

FAMILY_NOTE = """## {family}: never the same picture twice

{files}

Then queue as many as you like (set a batch count in the Run button), today and next week. \
**Novelty Memory** remembers every image, and **Novelty Guidance** steers each new one away from \
all of them.

- **Another memory for each project:** change its *name*. Models of different families cannot share.
- **Compare:** select Novelty Guidance and bypass it (Ctrl+B): now only the seed changes.
- **Stronger or weaker:** *strength*; for far more, a *radius* above the one that the node shows \
after a run. The defaults were measured on small models, not on this one.
- **Reproduce:** mode *frozen*, and as *revision* the number in the image's metadata."""


def note(text: str, width: int, height: int, y: int) -> Box:
    return Box("MarkdownNote", 40, y, {"text": text}, title="Read me", width=width, height=height)


def adm_model(name: str, x: int = 40, y: int = 310) -> Box:
    return Box("UncommonLoadADM", x, y, {"model_name": name}, width=300)


def explore() -> tuple[dict[str, Box], dict[str, list[str]]]:
    sampler = {"seed": 0, "steps": 20, "cfg": 1.0, "sampler_name": "euler_ancestral",
               "scheduler": "normal"}
    boxes = {
        "note": note(EXPLORE_NOTE, 680, 230, -30),
        "model": adm_model("avatars"),
        "class": Box("UncommonClassConditioning", 40, 548, {"class_number": -1}, width=300,
                     title="No class (positive and negative)"),
        "latent": Box("EmptyLatentImage", 40, 666, {"width": 24, "height": 24, "batch_size": 64},
                      width=300, title="64 faces of 24 x 24 pixels"),
        "vae": Box("VAELoader", 40, 832, {"vae_name": "pixel_space"}, width=300),
        "sampled": Box("KSampler", 380, 310, sampler,
                       {"model": ("model", 0), "positive": ("class", 0), "negative": ("class", 0),
                        "latent_image": ("latent", 0)}),
        "decoded": Box("VAEDecode", 380, 632, {}, {"samples": ("sampled", 0), "vae": ("vae", 0)}),
        "large": Box("ImageScale", 380, 738,
                     {"upscale_method": "nearest-exact", "width": 96, "height": 96},
                     {"image": ("decoded", 0)}, "Enlarge to look at"),
        "all": Box("PreviewImage", 700, 310, {}, {"images": ("large", 0)}, "All", 440, 580),
        "keep": Box("UncommonKeepMostDifferent", 1220, 310, {"count": 8}, {"image": ("decoded", 0)},
                    width=320, height=326),
        "saved": Box("SaveImage", 1220, 670, {"filename_prefix": "keep_8"}, {"images": ("keep", 0)},
                     "Saved in their own size", 320, 280),
        "kept_large": Box("ImageScale", 1580, 310,
                          {"upscale_method": "nearest-exact", "width": 96, "height": 96},
                          {"image": ("keep", 0)}, "Enlarge to look at"),
        "kept": Box("PreviewImage", 1580, 510, {}, {"images": ("kept_large", 0)}, "Kept", 380, 380),
    }
    names = list(boxes)
    return boxes, {"Draw many": names[1:9], "Keep 8": names[9:]}


def report() -> tuple[dict[str, Box], dict[str, list[str]]]:
    sampler = {"seed": 0, "steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
    wires = {"positive": ("class", 0), "negative": ("no_class", 0), "latent_image": ("latent", 0)}
    boxes = {
        "note": note(REPORT_NOTE, 700, 250, -50),
        "model": adm_model("digits"),
        "class": Box("UncommonClassConditioning", 40, 548, {"class_number": 3}, width=300,
                     title="Class 3 (positive)"),
        "no_class": Box("UncommonClassConditioning", 40, 666, {"class_number": -1}, width=300,
                        title="No class (negative)"),
        "latent": Box("EmptyLatentImage", 40, 784, {"width": 16, "height": 16, "batch_size": 64},
                      width=300),
        "vae": Box("VAELoader", 40, 950, {"vae_name": "pixel_space"}, width=300),
        "plain": Box("KSampler", 760, 310, sampler, {"model": ("model", 0), **wires},
                     "Plain"),
        "plain_images": Box("VAEDecode", 1080, 310, {},
                            {"samples": ("plain", 0), "vae": ("vae", 0)}, width=220),
        "plain_report": Box("UncommonDiversityReport", 1340, 310, {"features": "pixels"},
                            {"images": ("plain_images", 0)}, "Report: plain", 360, 580),
        "plain_plots": Box("PreviewImage", 1740, 310, {}, {"images": ("plain_report", 3)},
                           "Plots: plain", 460, 580),
        "memory": Box("UncommonNoveltyMemory", 380, 990,
                      {"name": "diversity report", "mode": "frozen"}, width=320),
        "guided": Box("UncommonNoveltyGuidance", 380, 1300, {},
                      {"model": ("model", 0), "memory": ("memory", 0)}, width=320, height=600),
        "with": Box("KSampler", 760, 990, sampler, {"model": ("guided", 0), **wires},
                    "With Novelty Guidance"),
        "with_images": Box("VAEDecode", 1080, 990, {},
                           {"samples": ("with", 0), "vae": ("vae", 0)}, width=220),
        "with_report": Box("UncommonDiversityReport", 1340, 990, {"features": "pixels"},
                           {"images": ("with_images", 0), "reference_images": ("plain_images", 0)},
                           "Report: with Novelty Guidance", 360, 580),
        "with_plots": Box("PreviewImage", 1740, 990, {}, {"images": ("with_report", 3)},
                          "Plots: both", 460, 580),
        "saved": Box("SaveImage", 2240, 990, {"filename_prefix": "diversity"},
                     {"images": ("with_report", 3)}, width=300, height=340),
    }
    names = list(boxes)
    return boxes, {"The model": names[1:6], "Plain": names[6:10],
                   "The same seeds, with Novelty Guidance": names[10:]}


def checkpoint(file: str) -> dict[str, Box]:
    """Models that come as one file, with a positive and a negative prompt."""
    return {"model": Box("CheckpointLoaderSimple", 40, 310, {"ckpt_name": file}, width=300),
            "positive": prompt(380, 310, "portrait of an old fisherman, harbour at dawn",
                               ("model", 1), "Positive prompt"),
            "negative": prompt(380, 520, "blurry, watermark", ("model", 1), "Negative prompt")}


def prompt(x: int, y: int, text: str, clip: tuple[str, int], title: str) -> Box:
    return Box("CLIPTextEncode", x, y, {"text": text}, {"clip": clip}, title, 320, 140)


def flux() -> dict[str, Box]:
    return {"unet": Box("UNETLoader", 40, 310, {"unet_name": "flux1-dev.safetensors"}, width=300),
            "clip": Box("DualCLIPLoader", 40, 452,
                        {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp16.safetensors",
                         "type": "flux"}, width=300),
            "vae": Box("VAELoader", 40, 642, {"vae_name": "ae.safetensors"}, width=300),
            "text": prompt(380, 310, "portrait of an old fisherman, harbour at dawn", ("clip", 0),
                           "Prompt"),
            "positive": Box("FluxGuidance", 380, 510, {"guidance": 3.5},
                            {"conditioning": ("text", 0)}, width=320),
            "negative": Box("ConditioningZeroOut", 380, 628, {}, {"conditioning": ("text", 0)},
                            "Not used at CFG 1", 320)}


def z_image() -> dict[str, Box]:
    return {"unet": Box("UNETLoader", 40, 310, {"unet_name": "z_image_turbo_bf16.safetensors"},
                        width=300),
            "clip": Box("CLIPLoader", 40, 452,
                        {"clip_name": "qwen_3_4b.safetensors", "type": "lumina2"}, width=300),
            "vae": Box("VAELoader", 40, 618, {"vae_name": "ae.safetensors"}, width=300),
            "positive": prompt(380, 310, "portrait of an old fisherman, harbour at dawn",
                               ("clip", 0), "Prompt"),
            "negative": Box("ConditioningZeroOut", 380, 510, {}, {"conditioning": ("positive", 0)},
                            "Not used at CFG 1", 320),
            "shifted": Box("ModelSamplingAuraFlow", 380, 616, {"shift": 3.0},
                           {"model": ("unet", 0)}, width=320)}


def family(name: str, files: str, start: Mapping[str, Box], model: str, vae: tuple[str, int],
           size: int, sampler: Mapping) -> tuple[dict[str, Box], dict[str, list[str]]]:
    """A text-to-image graph with novelty guidance. start: loaders and prompts; model: the box
    whose first output is guided; vae: where the VAE comes from."""
    latent = "EmptyLatentImage" if model == "model" else "EmptySD3LatentImage"
    height = max(box.y for box in start.values())
    boxes = {
        "note": note(FAMILY_NOTE.format(family=name, files=files), 700, 300, -100),
        **start,
        "latent": Box(latent, 380, height + 190, {"width": size, "height": size}, width=320),
        "memory": Box("UncommonNoveltyMemory", 780, 310, {"name": f"my {name} project"},
                      title="Novelty Memory", width=320),
        "guided": Box("UncommonNoveltyGuidance", 780, 620, {},
                      {"model": (model, 0), "memory": ("memory", 0)}, "Novelty Guidance", 320, 600),
        "sampled": Box("KSampler", 1180, 310, {"control_after_generate": "randomize", **sampler},
                       {"model": ("guided", 0), "positive": ("positive", 0),
                        "negative": ("negative", 0), "latent_image": ("latent", 0)}, width=300),
        "decoded": Box("VAEDecode", 1180, 632, {}, {"samples": ("sampled", 0), "vae": vae},
                       width=300),
        "saved": Box("SaveImage", 1520, 310, {"filename_prefix": "novelty"},
                     {"images": ("decoded", 0)}, width=460, height=710),
    }
    names = list(boxes)
    return boxes, {"The model and the prompt": [*start, "latent"],
                   "What it must not repeat": ["memory", "guided"], "Sampling, as ever": names[-3:]}


NORMAL = {"steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal"}
TEMPLATES = {
    "explore_then_keep_8": explore,
    "diversity_report": report,
    "novelty_sd15": lambda: family(
        "SD1.5", "Put `v1-5-pruned-emaonly-fp16.safetensors` into `models/checkpoints`, or choose "
        "a checkpoint of yours.", checkpoint("v1-5-pruned-emaonly-fp16.safetensors"), "model",
        ("model", 2), 512, NORMAL),
    "novelty_sdxl": lambda: family(
        "SDXL", "Put `sd_xl_base_1.0.safetensors` into `models/checkpoints`, or choose a "
        "checkpoint of yours.", checkpoint("sd_xl_base_1.0.safetensors"), "model", ("model", 2),
        1024, NORMAL),
    "novelty_flux": lambda: family(
        "Flux", "Put `flux1-dev.safetensors` into `models/diffusion_models`, `clip_l.safetensors` "
        "and `t5xxl_fp16.safetensors` into `models/text_encoders`, `ae.safetensors` into "
        "`models/vae`.", flux(), "unet", ("vae", 0), 1024,
        {"steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}),
    "novelty_z_image": lambda: family(
        "Z-Image", "Put `z_image_turbo_bf16.safetensors` into `models/diffusion_models`, "
        "`qwen_3_4b.safetensors` into `models/text_encoders`, `ae.safetensors` into `models/vae`.",
        z_image(), "shifted", ("vae", 0), 1024,
        {"steps": 8, "cfg": 1.0, "sampler_name": "res_multistep", "scheduler": "simple"}),
}


def template(name: str, object_info: Mapping[str, Mapping]) -> dict:
    """One of TEMPLATES, for the nodes of a host."""
    return page(name, *TEMPLATES[name](), object_info)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), report=print) as server:
        nodes = server.object_info()
    for name in TEMPLATES:
        (FOLDER / f"{name}.json").write_text(json.dumps(template(name, nodes), indent=1), "utf-8")
        print(FOLDER / f"{name}.json")


if __name__ == "__main__":
    main()
