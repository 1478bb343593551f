"""What guidance adds to a sampling step, and to an image.

    python dev.py bench overhead [--part sd15|small|import|sdxl ...] [--rounds N] [--report]

sd15, sdxl: the host's full architecture with random weights, 512 x 512 (1024 x 1024), CFG 7, with a
memory of 10,000 samples and a base classifier with random weights; half a minute a step on two slow
cores, 4 GB of RAM (SDXL 11 GB; only when asked for). small: the demo models, and the same memory on
a tiny U-Net. import: what loading the pack adds. On the processor; for a GPU see overhead_gpu.py.
Every run is kept in benchmarks/work/overhead/, so it can be stopped and run again; writes
benchmarks/results/overhead.json and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.chains import WORK
from benchmarks.overhead_graphs import (
    GIVEN,
    LARGE,
    VARIANTS,
    Given,
    build_memory,
    classifier,
    demo_model,
    graph,
    large_model,
)
from benchmarks.overhead_report import write_report
from demo.host import InProcessHost
from dev import ROOT, locate_host

FIGURES = WORK / "overhead" / "figures.json"


class Watch:
    """Times every model evaluation of the host and, without what they enclose, every call of this
    pack's wrappers. Seconds as (wall, processor time of this thread)."""

    def __init__(self):
        self.inside: list[list[float]] = []
        self.found: dict[str, list[tuple[float, float]]] = {}

    def wrap(self, name: str, function: Callable) -> Callable:
        def timed(*args, **kwargs):
            started = now()
            self.inside.append([0.0, 0.0])
            try:
                return function(*args, **kwargs)
            finally:
                spent = [after - before for after, before in zip(now(), started, strict=True)]
                within = self.inside.pop()
                if self.inside:
                    self.inside[-1] = [a + b for a, b in zip(self.inside[-1], spent, strict=True)]
                own = tuple(a - b for a, b in zip(spent, within, strict=True))
                self.found.setdefault(name, []).append(own)
        return timed

    def take(self) -> dict[str, list[tuple[float, float]]]:
        found, self.found = self.found, {}
        return found


def now() -> tuple[float, float]:
    return time.perf_counter(), time.thread_time()


@contextlib.contextmanager
def watched(host: InProcessHost, watch: Watch | None = None) -> Iterator[Watch]:
    """A Watch over all that samples while it lasts."""
    import comfy.samplers

    watch = watch or Watch()
    hooks = {"novelty": host.pack("nodes._novelty_hooks").NoveltyHooks,
             "minority": host.pack("nodes._sampling_hooks").SamplingHooks,
             "adapter": host.pack("guidance.feature_novelty").FeatureRun}
    places = [("model", comfy.samplers.CFGGuider, "predict_noise"),
              ("run", comfy.samplers.CFGGuider, "outer_sample")]
    for name, kind in hooks.items():
        places += [(name, kind, "adapt")] if name == "adapter" else [
            (name, kind, "predict_noise"), (f"{name} run", kind, "outer_sample")]
    before = [(kind, attribute, getattr(kind, attribute)) for _, kind, attribute in places]
    try:
        for name, kind, attribute in places:
            setattr(kind, attribute, watch.wrap(name, getattr(kind, attribute)))
        yield watch
    finally:
        for kind, attribute, function in before:
            setattr(kind, attribute, function)


class Bench:
    """Runs of one model, kept as they come."""

    def __init__(self, host: InProcessHost, figures: dict[str, Any]):
        self.host, self.figures = host, figures

    def rounds(self, part: str, count: int, **settings: Any) -> None:
        """Every variant once a round, each with the same seed; those that tell most come first."""
        runs = self.figures.setdefault(part, [])
        if "database" not in settings and len({run["round"] for run in runs}) < count:
            for space in ("latent", "features"):
                build_memory(self.host, part, space)
        with watched(self.host) as watch:
            for number in range(count):
                done = {run["variant"] for run in runs if run["round"] == number}
                for variant in [name for name in VARIANTS if name not in done]:
                    self.host.run(graph(self.host, variant, part=part, seed=number, **settings))
                    found = watch.take()
                    runs.append({"variant": variant, "round": number, **found})
                    save(self.figures)
                    model = [wall for wall, _ in found["model"]]
                    print(part, number, variant, f"{sum(model) / len(model):.3f} s a step",
                          flush=True)


def save(figures: dict[str, Any]) -> None:
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps(figures, indent=1), "utf-8")


def large(bench: Bench, name: str, rounds: int) -> None:
    """The host's full architecture."""
    size = large_model(bench.host, name, torch.float32)
    bench.rounds(f"{name} batch 1", rounds, size=size, steps=2, cfg=7.0, batch=1)
    GIVEN.clear()


def small(bench: Bench, rounds: int) -> None:
    """The demo models, each with a memory of its own that grows; and a tiny U-Net at 512 x 512 with
    the memory of 10,000."""
    from demo.host.small_models import MODELS, prompt

    GIVEN.update(model=MODELS["sd15-eps"].load(), positive=prompt(1), negative=prompt(2),
                 classifier=classifier(bench.host, 64)("SD15/4"))
    bench.rounds("tiny", rounds, size=64, steps=8, cfg=7.0, batch=1)
    for name, size, label in (("digits", 16, 3), ("avatars", 24, 0)):
        demo_model(bench.host, name, label)
        bench.rounds(name, rounds, size=size, steps=20, cfg=3.0, batch=1, scale=1, database="")
    GIVEN.clear()


def import_seconds(repeats: int = 5) -> list[tuple[float, float]]:
    """(wall, processor) seconds of loading the pack in new processes that have imported what the
    host imports itself."""
    code = (
        "import sys, time, asyncio; sys.path.insert(0, sys.argv[1])\n"
        "from comfy.cli_args import args; args.cpu = True\n"
        "import execution, nodes\n"
        "asyncio.run(nodes.init_public_apis())\n"
        "asyncio.run(nodes.init_builtin_extra_nodes())\n"
        "started, cpu = time.perf_counter(), time.process_time()\n"
        "assert asyncio.run(nodes.load_custom_node(sys.argv[2]))\n"
        "print('TOOK', time.perf_counter() - started, time.process_time() - cpu)\n")
    found = []
    for _ in range(repeats):
        out = subprocess.run([sys.executable, "-c", code, str(locate_host()), str(ROOT)],
                             check=True, text=True, capture_output=True).stdout
        line = next(line for line in out.splitlines() if line.startswith("TOOK"))
        found.append(tuple(map(float, line.split()[1:])))
        print("import", found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench overhead", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("small", "import", "sd15", "sdxl")
    parser.add_argument("--part", action="append", choices=parts, help="only this part, or these")
    parser.add_argument("--rounds", type=int, help="how often each variant runs")
    parser.add_argument("--report", action="store_true", help="measure nothing, only report")
    arguments = parser.parse_args()
    figures: dict[str, Any] = json.loads(FIGURES.read_text("utf-8")) if FIGURES.is_file() else {}
    wanted = () if arguments.report else arguments.part or parts[:3]
    if "import" in wanted and "import" not in figures:
        figures["import"] = import_seconds()
        save(figures)
    if {"small", "sd15", "sdxl"} & set(wanted):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            host = InProcessHost(Path(folder))
            host.load_extra("nodes_preview_any")
            bench = Bench(host, figures)
            import comfy.utils
            import nodes

            comfy.utils.PROGRESS_BAR_ENABLED = False
            nodes.NODE_CLASS_MAPPINGS["Given"] = Given
            if "small" in wanted:
                small(bench, arguments.rounds or 10)
            for name in LARGE:
                if name in wanted:
                    large(bench, name, arguments.rounds or 1)
    write_report(figures)


if __name__ == "__main__":
    main()
