"""What novelty guidance still finds when thousands of images of one prompt are remembered.

    python dev.py bench long_history [--report]

Draws 5,000 images of each of two digits with Novelty Guidance at its defaults, in batches that one
memory remembers. Then, with the memory frozen at several revisions, 64 images more, each by itself
and all with the same seeds: plain, without a push, and pushed by the net and by the exact kernel.
An image is new if it is good and at least tau away from all that is remembered. Twenty minutes on
one core, and resumable. Writes benchmarks/results/long_history.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.chains import (
    MODEL,
    WORK,
    Chain,
    Sampler,
    code_hash,
    guidance_defaults,
    prompt,
    start_host,
    write_arrays,
)
from benchmarks.measures import DigitsMeasure
from benchmarks.novelty import LATE_CFG
from benchmarks.results import RESULTS, circumstances, command_line, earlier_rows, write_json
from demo.host import InProcessHost

HISTORY, BATCH = 5000, 20
SIZES = (500, 2000, 5000)
NEW = 64
LABELS = (3, 8)
CHAIN = Chain(sampler=Sampler("euler", 20), cfg=3.0, label=0)
PLAIN, NO_PUSH = "seed change only", "no push"
PUSHES: dict[str, dict[str, Any]] = {"net": {"repulsion": "net"}, "exact": {"repulsion": "exact"}}
SEEDS_OF_NEW = 9  # the seed set that the images have that are drawn at the end
FOLDER = WORK / "long_history"


class History:
    """The images of one class that are remembered, and their memory."""

    def __init__(self, label: int, defaults: dict[str, Any]):
        self.chain = replace(CHAIN, label=label, batch=BATCH, count=HISTORY, guidance=defaults)
        told = f"{self.chain} {hashlib.sha256(MODEL.read_bytes()).hexdigest()}"
        self.folder = FOLDER / f"class{label}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    def file(self, item: int) -> Path:
        return self.folder / f"{item:04}.npz"

    @property
    def images(self) -> Tensor:
        """`[HISTORY, 3, 16, 16]`, in the order that they were remembered in."""
        return torch.cat([read_images(self.file(item)) for item in range(HISTORY // BATCH)])

    def draw(self, host: InProcessHost) -> None:
        """Goes on from what is there."""
        items = range(sum(self.file(item).is_file() for item in range(HISTORY // BATCH)),
                      HISTORY // BATCH)
        with host.user_directory(self.folder):
            for item in tqdm(items, desc=f"history of class {self.chain.label}", unit="batch"):
                run = host.run(prompt(self.chain, item))
                images = run.outputs["sampled"][0]["samples"]
                assert run.outputs["memory"][0].log.revision == BATCH * (item + 1)
                write_arrays(self.file(item), images=images.half().numpy())

    def new(self, host: InProcessHost, guidance: dict[str, Any] | None, size: int) -> Tensor:
        """`[NEW, 3, 16, 16]`, drawn while the first `size` are remembered; once, and kept."""
        chain = replace(self.chain, batch=1, count=NEW, seeds=SEEDS_OF_NEW, guidance=guidance,
                        memory=None if guidance is None else {"mode": "frozen", "revision": size})
        told = json.dumps([prompt(chain, 0), code_hash() if guidance else ""], sort_keys=True)
        file = self.folder / f"new-{hashlib.sha256(told.encode()).hexdigest()[:16]}.npz"
        if not file.is_file():
            with host.user_directory(self.folder):
                images = [host.run(prompt(chain, item)).outputs["sampled"][0]["samples"]
                          for item in tqdm(range(NEW), unit="image")]
            write_arrays(file, images=torch.cat(images).half().numpy())
        return read_images(file)


def read_images(file: Path) -> Tensor:
    with np.load(file) as arrays:
        return torch.from_numpy(arrays["images"]).float()


def figures(measure: DigitsMeasure, images: Tensor, remembered: Tensor, label: int
            ) -> dict[str, float]:
    """new: how many of the images are good and at least tau away from all remembered ones;
    remembered: features `[n, dim]`."""
    nearest = torch.cdist(measure.features(images), remembered).min(dim=1).values
    good = measure.good(images, label)
    return {"new": int((good & (nearest >= measure.tau(label))).sum()),
            "good": good.float().mean().item(), "nearest": nearest.mean().item()}


def measured(host: InProcessHost, defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each class, number of remembered images and way to draw."""
    measure, rows = DigitsMeasure(), []
    for label in LABELS:
        history = History(label, defaults)
        history.draw(host)
        remembered = measure.features(history.images)
        ways = {PLAIN: None, NO_PUSH: defaults | LATE_CFG,
                **{name: defaults | changes for name, changes in PUSHES.items()}}
        for size in SIZES:
            for name, guidance in ways.items():
                images = history.new(host, guidance, size if name in PUSHES else SIZES[0])
                rows.append({"label": label, "size": size, "way": name,
                             **figures(measure, images, remembered[:size], label)})
    return rows


def text(rows: list[dict[str, Any]], command: str) -> str:
    def cell(way: str, size: int) -> str:
        found = [row for row in rows if row["way"] == way and row["size"] == size]
        new, good = (mean(row[key] for row in found) for key in ("new", "good"))
        return f"{new:.1f} ({good:.3f})"

    lines = [
        "# Thousands of images of one prompt", "", f"`{command}`", "",
        f"Of {NEW} images of a digit, each by itself, how many are new: good, and at least tau",
        "away from all that is remembered? In brackets the share of good images. What is",
        f"remembered was drawn with the defaults, in batches of {BATCH}; the memory is frozen.",
        f"Mean of the digits {' and '.join(map(str, LABELS))}; {CHAIN.sampler}, "
        f"CFG {CHAIN.cfg:g}; the same seeds for all.", "",
        "| remembered | " + " | ".join(f"{size:,}" for size in SIZES) + " |",
        "|---|" + "---|" * len(SIZES)]
    lines += [f"| {way} | " + " | ".join(cell(way, size) for size in SIZES) + " |"
              for way in (PLAIN, NO_PUSH, *PUSHES)]
    return "\n".join([
        *lines, "",
        "Net: up to 2,048 of the prompt's images, each for several where there are more. No push:",
        "CFG begins where it does by default, and nothing else.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench long_history", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="draw nothing, only report")
    arguments = parser.parse_args()
    if arguments.report:
        rows, command = (earlier_rows("long_history", key) for key in ("rows", "command"))
    else:
        command = command_line("long_history")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            host = start_host(Path(folder), threads=1)
            rows = measured(host, guidance_defaults(host))
        largest = [row for row in rows if row["size"] == SIZES[-1]]
        summary = {f"new_of_{NEW}_{way.replace(' ', '_')}": round(mean(
            row["new"] for row in largest if row["way"] == way), 2)
            for way in (PLAIN, NO_PUSH, *PUSHES)}
        write_json("long_history", {"summary": summary, "rows": rows, **circumstances(command)})
    (RESULTS / "long_history.md").write_text(text(rows, command), "utf-8")
    print(text(rows, command))


if __name__ == "__main__":
    main()
