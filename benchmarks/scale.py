"""What a memory costs when it holds 10, 1,000, 100,000 and 1,000,000 samples.

    python dev.py bench scale [--size N ...] [--report]

Makes the memories once, in benchmarks/work/scale/ (12 GB in all; a few minutes, but for the net of
the million, which takes twenty minutes to learn), and keeps every figure as it comes, so it can be
stopped and run again at any time. Writes benchmarks/results/scale.json and .md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.chains import WORK
from benchmarks.scale_memories import SIZES, SPACE, build, file, opened, synthetic
from benchmarks.scale_report import write_report
from dev import ROOT
from guidance.fitted_radius import FITTED
from guidance.noise_level import NoiseLevel
from guidance.novelty import NoveltyRun, NoveltySettings
from guidance.novelty_memory import NoveltyMemory, shared_bank, shared_nets
from guidance.repulsion import REPULSIONS

FIGURES = WORK / "scale" / "figures.json"
FARTHEST = 1.1  # of the points that net and exact are compared at, from a remembered one
ROUNDS = 60  # of steps, each kind and size once a round
RECORDED = 9  # samples that are recorded one by one
QUERIES = 400
CHUNK = 5_000  # samples that a net learns before it is written
KINDS = tuple(REPULSIONS)


def learn(size: int) -> None:
    """Has the memory's net learn; goes on where it stopped."""
    memory = opened(size)
    cached = memory.nets.stored()
    done = 0 if cached is None else cached.ever
    for revision in [*range(done + CHUNK, memory.log.revision, CHUNK), None]:
        net = memory.nets.net(memory.bank.at(revision))
        print(f"learn {size:,}: {net.ever:,}", flush=True)


# One size at a time, in a process of its own: nothing is open yet


def open_cold(size: int, kind: str) -> dict[str, float]:
    """Seconds and RAM that it takes until a new process is ready to guide."""
    before = _resident()
    started, cpu = time.perf_counter(), time.process_time()
    memory = opened(size)
    memory.repulsion(kind, memory.bank.at(), synthetic(0, 1)[1][0], FITTED, torch.device("cpu"))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu_seconds": time.process_time() - cpu,
            "bytes": _resident() - before}


def _resident() -> int:
    """Bytes of this process in RAM that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def in_new_process(size: int, kind: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", "--open", str(size), kind]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, text=True,
                                     capture_output=True).stdout.splitlines()[-1])


# Steps


def stepper(memory: NoveltyMemory, kind: str) -> Callable[[], None]:
    """One guided step without its model: what novelty guidance itself does for 512 x 512."""
    repulsion = memory.repulsion(kind, memory.bank.at(), None, FITTED, torch.device("cpu"))
    run = NoveltyRun(SPACE, repulsion, NoveltySettings(
        strength=0.3, radius=repulsion.radius, sigma_start=1e9, sigma_end=0.0))
    generator = torch.Generator().manual_seed(0)
    x0 = 0.7 * torch.randn(1, 4, 64, 64, generator=generator)
    sigma = torch.full((1,), 2.0)
    x, level = x0 + 2 * torch.randn(x0.shape, generator=generator), (
        NoiseLevel.variance_exploding(sigma))

    def step() -> None:
        run.denoise(lambda x_t: x0, x, sigma, level)

    step()
    return step


def steps(sizes: list[int]) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds a step of each kind and size. The sizes take turns, so that all meet the same
    machine; the kinds do not, because a step of exact over a million empties the caches."""
    steppers = {(kind, size): stepper(opened(size), kind) for size in sizes for kind in KINDS}
    wall: dict[tuple, list[float]] = {key: [] for key in steppers}
    cpu: dict[tuple, list[float]] = {key: [] for key in steppers}
    with torch.inference_mode():
        for kind, _ in itertools.product(KINDS, range(ROUNDS)):
            for key in ((kind, size) for size in sizes):
                started, busy = time.perf_counter(), time.thread_time()
                steppers[key]()
                wall[key].append(1e3 * (time.perf_counter() - started))
                cpu[key].append(1e3 * (time.thread_time() - busy))
    return {kind: {str(size): spread(wall[kind, size]) | {"cpu": median(cpu[kind, size])}
                   for size in sizes} for kind in KINDS}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    ordered = sorted(values)
    return {"median": median(ordered), "low": ordered[len(ordered) // 4],
            "high": ordered[-1 - len(ordered) // 4]}


# Agreement, recording


def queries(size: int) -> tuple[Tensor, Tensor]:
    """Samples to come, and points around remembered ones, from near to FARTHEST away; with the
    prompts that they are asked under."""
    to_come, prompts = synthetic(2 * max(SIZES), QUERIES)
    known, known_prompts = synthetic(0, min(size, QUERIES))
    generator = torch.Generator().manual_seed(1)
    away = torch.nn.functional.normalize(torch.randn(known.shape, generator=generator))
    distance = FARTHEST * torch.rand(len(known), 1, generator=generator)
    return torch.cat([to_come, known + distance * away]), torch.cat([prompts, known_prompts])


def agreement(size: int) -> dict[str, float | None]:
    """Rank correlation of the net's and the exact kernel's P(already generated), and the cosine of
    their pushes where both push (P above .2), over all queries; without regard to prompts, and (the
    same within each query's prompt) with it."""
    memory = opened(size)
    remembered, cpu = memory.bank.at(), torch.device("cpu")
    found: dict[str, float | None] = {}
    points, prompts = queries(size)
    for name, asked in (("", [None]), ("_prompt_aware", list(prompts.unique(dim=0)))):
        ours, theirs = [], []
        for prompt in asked:
            here = points if prompt is None else points[(prompts == prompt).all(dim=1)]
            net, exact = (memory.repulsion(kind, remembered, prompt, FITTED, cpu)
                          for kind in ("net", "exact"))
            if net is not None and exact is not None:
                ours.append(net(here))
                theirs.append(exact(here))
        mine, other = (torch.cat([one.probability for one in part]) for part in (ours, theirs))
        pushes, reference = (torch.cat([one.push for one in part]) for part in (ours, theirs))
        sure = (other > 0.2) & (mine > 0.2)
        found[f"rank_correlation{name}"] = float(spearmanr(mine.logit(), other.logit()).statistic)
        found[f"gradient_cosine{name}"] = float(torch.cosine_similarity(
            pushes[sure], reference[sure]).mean()) if sure.any() else None
        found[f"mean_difference{name}"] = float((mine - other).abs().mean())
    return found


def record(size: int, *, full: bool) -> dict[str, float]:
    """Seconds to record one new image and to learn it; full: each makes the memory forget one."""
    memory = opened(size)
    if full:
        memory = opened(size, max_megabytes=memory.log.stats().total_bytes / 2 ** 20)
    remembered = memory.bank.at()
    memory.repulsion("net", remembered, None, FITTED, torch.device("cpu"))  # as the run does
    first = 3 * max(SIZES) + memory.log.revision
    seconds, cpu = [], []
    for number in range(first, first + RECORDED):
        embedding, prompt = synthetic(number, 1)
        started, busy = time.perf_counter(), time.thread_time()
        recorded = memory.record(
            memory.bank.at(), SPACE.id, hashes=[f"{number:064x}"], embedding=embedding,
            prompt=prompt[0], seed=number, settings={"strength": 0.3},
            previews=[os.urandom(6_000)])
        seconds.append(time.perf_counter() - started)
        cpu.append(time.thread_time() - busy)
        assert recorded.last_revision >= recorded.first_revision
    return {**spread(seconds), "cpu": median(cpu), "first": seconds[0]}


def disk(size: int) -> dict[str, float]:
    """Bytes on disk a sample, and of the net."""
    nets = file(size).with_suffix(".nets")
    net = sum(one.stat().st_size for one in nets.glob("*")) if nets.is_dir() else 0
    stats = opened(size).log.stats()
    return {"per_sample": file(size).stat().st_size / max(stats.live_samples, 1), "net": net}


# All of it


def measure(sizes: list[int]) -> dict[str, Any]:
    figures = json.loads(FIGURES.read_text("utf-8")) if FIGURES.is_file() else {}

    def once(key: str, found: Callable[[], Any]) -> None:
        if key not in figures:
            figures[key] = found()
            FIGURES.write_text(json.dumps(figures, indent=1), "utf-8")
            print(key, figures[key], flush=True)
        for shared in (shared_bank, shared_nets):
            shared.cache_clear()

    for size in sizes:
        if not file(size).exists() or opened(size).log.revision < size:
            build(size)
        if f"open {size}" not in figures:
            learn(size)
            shared_bank.cache_clear()
            shared_nets.cache_clear()
        once(f"disk {size}", lambda size=size: disk(size))
        once(f"open {size}", lambda size=size: {kind: in_new_process(size, kind)
                                                for kind in KINDS})
        if size > 1:
            once(f"agreement {size}", lambda size=size: agreement(size))
        once(f"record {size}", lambda size=size: record(size, full=False))
        once(f"record when full {size}", lambda size=size: record(size, full=True))
    key = "steps " + " ".join(map(str, sizes))
    once(key, lambda: steps(sizes))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench scale", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, action="append", help="only this size, or these")
    parser.add_argument("--report", action="store_true", help="measure nothing, only report")
    parser.add_argument("--open", nargs=2, metavar=("SIZE", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(open_cold(int(arguments.open[0]), arguments.open[1])))
        return
    if not arguments.report:
        measure(sorted(arguments.size or SIZES))
    if FIGURES.is_file():
        write_report(json.loads(FIGURES.read_text("utf-8")), KINDS)


if __name__ == "__main__":
    main()
