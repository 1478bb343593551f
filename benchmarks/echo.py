"""Does a memory seeded with the training set keep a model from echoing it?

    python dev.py bench echo

Remember Samples puts all 1,797 digits that the shipped model learnt from into a memory, from a
folder and without prompts. Then 30 samples of each class are drawn at CFG 3, Euler, 20 steps, with
the same seeds: plain, and with the memory frozen and Novelty Guidance at its defaults, or stronger.
A sample is an echo if the training digit nearest to it is nearer than the training digits' own
first percentile of nearest-neighbour distance. Distances are those of an independent classifier's
features and of the pixels. Minutes on one core, and resumable. Writes
benchmarks/results/echo.json and echo.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.chains import (
    MODEL,
    WORK,
    Chain,
    Sampler,
    guidance_defaults,
    prompt,
    start_host,
    write_arrays,
)
from benchmarks.measures import DigitsMeasure
from benchmarks.results import RESULTS, circumstances, command_line, write_json
from demo.data import DIGITS_SIZE, digits
from demo.host import InProcessHost, Prompt

CHAIN = Chain(sampler=Sampler("euler", 20), cfg=3.0, label=0)
EACH, CLASSES = 30, 10
PERCENTILE = 0.01
METHODS: dict[str, dict[str, Any] | None] = {
    "plain": None, "seeded": {}, "seeded, strength 0.6": {"strength": 0.6},
    "seeded, radius 0.15": {"radius": 0.15}, "seeded, radius 0.35": {"radius": 0.35}}


def graph(label: int, guidance: dict[str, Any] | None) -> Prompt:
    """Draws EACH samples of a class; those of a batch do not push each other."""
    made = prompt(replace(CHAIN, label=label, guidance=guidance), item=label)
    made["latent"]["inputs"]["batch_size"] = EACH
    if guidance is not None:
        made["memory"]["inputs"]["mode"] = "frozen"
        made["guided"]["inputs"]["batch_repulsion"] = 0.0
    return made


def seed_memory(host: InProcessHost, folder: Path) -> str:
    """Puts the training digits into the memory; what Remember Samples reports."""
    folder.mkdir()
    pictures = ((digits()[0] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    for number, picture in enumerate(pictures.numpy()):
        Image.fromarray(picture).save(folder / f"{number:04}.png")
    made = graph(0, {})
    made["memory"]["inputs"]["mode"] = "learn"
    kept = {"memory": ["memory", 0], "model": ["model", 0], "vae": ["vae", 0],
            "folder": str(folder), "width": DIGITS_SIZE, "height": DIGITS_SIZE}
    run = host.run({
        "model": made["model"], "memory": made["memory"],
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}},
        "kept": {"class_type": "UncommonRememberSamples", "inputs": kept}})
    return run.outputs["kept"][1].splitlines()[0]


def file_of(label: int, guidance: dict[str, Any] | None) -> Path:
    told = json.dumps([graph(label, guidance), hashlib.sha256(MODEL.read_bytes()).hexdigest()],
                      sort_keys=True)
    return WORK / "echo" / f"class{label}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.npz"


def draw_missing(methods: dict[str, dict[str, Any] | None], host: InProcessHost,
                 folder: Path) -> None:
    missing = [(label, guidance) for guidance in methods.values() for label in range(CLASSES)
               if not file_of(label, guidance).is_file()]
    if any(guidance is not None for _, guidance in missing):
        print(seed_memory(host, folder / "training"))
    for label, guidance in tqdm(missing, unit="class"):
        latents = host.run(graph(label, guidance)).outputs["sampled"][0]["samples"]
        write_arrays(file_of(label, guidance), images=latents.half().numpy())


def figures(measure: DigitsMeasure, images: Tensor) -> dict[str, float]:
    """images: `[CLASSES * EACH, 3, 16, 16]`, class by class."""
    good = [measure.good(part, label) for label, part in enumerate(images.split(EACH))]
    found = {"samples": len(images), "good": torch.cat(good).float().mean().item()}
    real = digits()[0]
    for name, drawn, training in (
            ("features", measure.features(images), measure.real.features),
            ("pixels", images.clamp(-1, 1).flatten(1), real.flatten(1))):
        own = torch.cdist(training, training).fill_diagonal_(torch.inf).min(dim=1).values
        threshold = own.quantile(PERCENTILE)
        nearest = torch.cdist(drawn, training).min(dim=1).values
        share = (nearest < threshold).float().mean().item()
        found |= {f"echo_{name}": share,
                  f"echo_{name}_error": (share * (1 - share) / len(nearest)) ** 0.5,
                  f"nearest_{name}": (nearest.median() / own.median()).item()}
    return found


def text(rows: dict[str, dict[str, float]], command: str) -> str:
    lines = [
        "# Echoes of the training set", "", f"`{command}`", "",
        "How many of the digits model's samples lie nearer to a training digit than the training",
        "digits' own first percentile of nearest-neighbour distance? With a memory seeded from all",
        f"{len(digits()[0])} training digits, and without; {CHAIN.sampler}, CFG {CHAIN.cfg:g}, "
        "the same seeds for all. By definition",
        "1 % of the training digits themselves would count as echoes of one another.", "",
        "| method | n | echo, features | echo, pixels | nearest, features | nearest, pixels "
        "| good |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {name} | {row['samples']} | "
        f"{row['echo_features']:.1%} ± {row['echo_features_error']:.1%} | "
        f"{row['echo_pixels']:.1%} ± {row['echo_pixels_error']:.1%} | "
        f"{row['nearest_features']:.2f} | {row['nearest_pixels']:.2f} | {row['good']:.3f} |"
        for name, row in rows.items()]
    return "\n".join([
        *lines, "",
        "Features: of an independent classifier. Nearest: the median distance of the samples to",
        "the nearest training digit, as a multiple of the training digits' own median. ±: one",
        "standard error. Good: inside the manifold of the real digits (k = 5), and of the asked",
        "class.", ""])


def main() -> None:
    argparse.ArgumentParser(prog="python dev.py bench echo", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        host = start_host(Path(folder), threads=1)
        defaults = guidance_defaults(host)
        methods = {name: None if changes is None else defaults | changes
                   for name, changes in METHODS.items()}
        draw_missing(methods, host, Path(folder))
    measure, rows = DigitsMeasure(), {}
    for name, guidance in methods.items():
        images = np.concatenate([np.load(file_of(label, guidance))["images"]
                                 for label in range(CLASSES)])
        rows[name] = figures(measure, torch.from_numpy(images).float())
    command = command_line("echo")
    write_json("echo", {
        "summary": {"echo_plain": round(rows["plain"]["echo_features"], 4),
                    "echo_seeded": round(rows["seeded"]["echo_features"], 4)},
        "methods": rows, "sampler": str(CHAIN.sampler), "cfg": CHAIN.cfg, "each_class": EACH,
        **circumstances(command)})
    (RESULTS / "echo.md").write_text(text(rows, command), "utf-8")
    print(text(rows, command))


if __name__ == "__main__":
    main()
