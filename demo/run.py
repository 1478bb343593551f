"""Novelty guidance at work: the example workflow in a real ComfyUI server, without it and with it.

    python dev.py demo [--out DIR] [--runs N]

Draws N images with the same seeds both ways, and writes contact_sheet.png and report.json. Every
demo has a memory of its own, so it can be run again in the same folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.measures import MANIFOLD_K, DigitsMeasure
from benchmarks.results import circumstances
from demo.contact_sheet import Panel, contact_sheet
from demo.host import Prompt, Server
from demo.workflow import bypass, find, to_api
from dev import ROOT
from guidance.memory import MemoryLog

WORKFLOW = ROOT / "example_workflows" / "novelty.json"
DATABASE = Path("__uncommon") / "novelty.sqlite"  # in ComfyUI's user folder
# So small a model gains nothing from more threads, and on a busy machine these wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
LEAST_RUNS = MANIFOLD_K + 2  # prdc sorts out one more neighbour than it is asked for
TITLES = {"without": "without: only the seed changes", "with": "with novelty memory"}


@dataclass(frozen=True)
class Drawn:
    """What one way of sampling gave. files: the saved PNGs, in the order of the seeds 0, 1, ..."""

    prompt: Prompt
    files: Sequence[Path]

    @property
    def label(self) -> int:
        """The class that was asked for."""
        positive, _ = self.prompt[find(self.prompt, "KSampler")]["inputs"]["positive"]
        return self.prompt[positive]["inputs"]["class_number"]

    def images(self) -> Tensor:
        """`[n, 3, height, width]` in [-1, 1]."""
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in self.files])
        return torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1


def draw(server: Server, runs: int, name: str) -> dict[str, Drawn]:
    """Queues the example `runs` times without novelty guidance and as often with it.

    name: of the memory, and of the folder of the images.
    """
    workflow, nodes = json.loads(WORKFLOW.read_text("utf-8")), server.object_info()
    prompts = {"without": to_api(bypass(workflow, "UncommonNoveltyGuidance"), nodes),
               "with": to_api(workflow, nodes)}
    queued = {}
    for way, prompt in prompts.items():
        prompt[find(prompt, "UncommonNoveltyMemory")]["inputs"]["name"] = name
        prompt[find(prompt, "SaveImage")]["inputs"]["filename_prefix"] = f"{name}/{way}"
        queued[way] = [server.queue(with_seed(prompt, seed)) for seed in range(runs)]

    drawn = {}
    with tqdm(total=2 * runs, unit="image") as bar:
        for way, ids in queued.items():
            bar.set_description(f"{way} novelty guidance")
            saver, files = find(prompts[way], "SaveImage"), []
            for prompt_id in ids:
                [file] = server.wait(prompt_id)["outputs"][saver]["images"]
                files.append(server.output / file["subfolder"] / file["filename"])
                bar.update()
            drawn[way] = Drawn(prompts[way], files)
    return drawn


def with_seed(prompt: Prompt, seed: int) -> Prompt:
    changed = copy.deepcopy(prompt)
    changed[find(prompt, "KSampler")]["inputs"]["seed"] = seed
    return changed


def figures(measure: DigitsMeasure, drawn: Drawn, out: Path) -> tuple[dict[str, Any], Panel]:
    """The report on one way of sampling, and what the contact sheet shows of it."""
    images = drawn.images()
    features = measure.features(images)
    earlier = torch.cdist(features, features).masked_fill(
        torch.ones(len(images), len(images)).triu().bool(), torch.inf).min(dim=1).values
    counts = measure.distinct_good(images, drawn.label)
    counted = counts.diff(prepend=torch.zeros(1, dtype=counts.dtype)) > 0
    per_image = [{"seed": seed, "file": file.relative_to(out).as_posix(),
                  "good_and_different": bool(counted[seed]),
                  "distance_to_nearest_earlier": round(float(earlier[seed]), 4) if seed else None}
                 for seed, file in enumerate(drawn.files)]
    report = {**measure.summary(images, drawn.label), "curve": counts.tolist(),
              "images": per_image}
    return report, Panel(images, counted)


def recorded(database: Path, name: str) -> list[dict[str, Any]]:
    """What the memory holds, in the order it came."""
    log = MemoryLog(f"sqlite:///{database.as_posix()}")
    try:
        return [{"revision": entry.revision, "seed": entry.seed, **entry.settings}
                for entry in log.memory(name).samples()]
    finally:
        log.close()


def write(out: Path, drawn: Mapping[str, Drawn], memory: list[dict[str, Any]]) -> None:
    """contact_sheet.png and report.json, and where to find them."""
    measure, report, panels = DigitsMeasure(), {}, {}
    for way, one in drawn.items():
        report[way], panel = figures(measure, one, out)
        runs, distinct = len(one.files), report[way]["distinct_good"]
        caption = f"good, and unlike every image before: {distinct} of {runs} (green)"
        panels[TITLES[way], caption] = panel
    for image, sample in zip(report["with"]["images"], memory, strict=True):
        image["recorded"] = sample
    command = f"python dev.py demo --runs {runs}"
    (out / "report.json").write_text(json.dumps({
        "distinct_good": {way: report[way]["distinct_good"] for way in drawn},
        **circumstances(command), "workflow": drawn["with"].prompt, **report}, indent=1), "utf-8")
    contact_sheet(panels).save(out / "contact_sheet.png")
    print(f"\nOf {runs} images, good and different: {report['without']['distinct_good']} without "
          f"novelty memory, {report['with']['distinct_good']} with it.\n"
          f"Look at     {out / 'contact_sheet.png'}\nAll figures {out / 'report.json'}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo", metavar="DIR")
    parser.add_argument("--runs", type=int, default=64, metavar="N")
    arguments = parser.parse_args()
    if arguments.runs < LEAST_RUNS:
        parser.error(f"--runs is {arguments.runs}: recall and coverage need {LEAST_RUNS} or more")
    out = arguments.out.resolve()
    name = time.strftime("demo-%Y%m%d-%H%M%S")
    print("Starting ComfyUI", flush=True)
    with Server(out / "comfyui", user=out / "user", output=out / "images", report=print,
                environment=ONE_THREAD) as server:
        drawn = draw(server, arguments.runs, name)
    write(out, drawn, recorded(out / "user" / DATABASE, name))


if __name__ == "__main__":
    main()
