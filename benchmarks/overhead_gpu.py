"""What guidance adds to a sampling step on a GPU.

    python dev.py bench overhead_gpu [--part NAME ...] [--rounds N]

The host's full architectures of SD 1.5 (512 x 512) and SDXL (1024 x 1024) with random weights in
bfloat16, 20 steps of Euler at CFG 7 throughout, with a memory of 10,000 samples and a base
classifier with random weights; as they are, and compiled by the host's TorchCompileModel. Some
minutes on an H200. Writes benchmarks/results/overhead_gpu.json and .md; a part that is measured
again takes the place of what was there.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.overhead import Watch, watched
from benchmarks.overhead_graphs import GIVEN, Given, build_memory, graph, large_model
from benchmarks.overhead_report import quartiles
from benchmarks.results import RESULTS, circumstances, command_line, earlier_rows, write_json
from demo.host import InProcessHost

STEPS = 20
COUNTED = 4  # steps of the runs whose kernels and waits are counted
OURS = ("novelty", "minority", "adapter")
COUNTS = ("ours kernels", "ours device", "model kernels", "model device", "waits")
LEGEND = """
Step: seconds of the sampler over its steps, without a wait in between, median. Times plain: beside
the plain run of the same round and seed, median and quartiles; where the processor is what is
waited for, it tells more of the machine than of guidance. Host: what the processor spends in our
code in a step, mostly in starting kernels, and as a ratio to all else in the step; what it adds
where the model does not keep the GPU busy. Kernels, device: of ours, from one run under a profiler
without CUDA graphs, by the step; the model's, and the ratio: what guidance adds where the model
does keep it busy. Waits: how often a step waits for the device by itself, which is what a run of
twice the steps waits more. All at full CFG: with the defaults, CFG begins at 35 % of the denoising
in a run of novelty guidance, which then takes less time than a plain one. Minority guidance works
in the first half of the denoising only; all figures are of all steps.
"""


class Part(NamedTuple):
    """model: of overhead_graphs.LARGE; compiled: by which backend of TorchCompileModel; profiled:
    whether kernels and waits are counted."""

    model: str
    batch: int
    rounds: int
    compiled: str = ""
    profiled: bool = False
    variants: tuple[str, ...] = ("plain", "novelty", "features", "minority", "both")


PARTS = {
    "SD 1.5, batch 1": Part("sd15", 1, 12, profiled=True),
    "SD 1.5, batch 4": Part("sd15", 4, 6, profiled=True),
    "SDXL, batch 1": Part("sdxl", 1, 4, profiled=True),
    "SDXL, batch 4": Part("sdxl", 4, 2),
    "SD 1.5, batch 1, cudagraphs": Part("sd15", 1, 12, "cudagraphs"),
    "SD 1.5, batch 1, inductor": Part("sd15", 1, 12, "inductor"),
}


class ProfiledWatch(Watch):
    """Names, for torch's profiler, what every call belongs to."""

    def wrap(self, name: str, function: Callable) -> Callable:
        def named(*args, **kwargs):
            with torch.profiler.record_function(name):
                return function(*args, **kwargs)
        return super().wrap(name, named)


@contextlib.contextmanager
def sampling_timed() -> Iterator[list[float]]:
    """Seconds of every sampling while it lasts, with the device's work."""
    import comfy.samplers

    sample, found = comfy.samplers.KSAMPLER.sample, []

    def timed(*args, **kwargs):
        torch.cuda.synchronize()
        started = time.perf_counter()
        result = sample(*args, **kwargs)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
        return result

    comfy.samplers.KSAMPLER.sample = timed
    try:
        yield found
    finally:
        comfy.samplers.KSAMPLER.sample = sample


class GPUBench:
    """Runs of one part, whose model is Given."""

    def __init__(self, host: InProcessHost, part: Part, size: int):
        self.host, self.part, self.size = host, part, size

    def run(self, variant: str, seed: int, steps: int = STEPS) -> None:
        self.host.run(graph(
            self.host, variant, part=self.part.model, size=self.size, steps=steps, seed=seed,
            cfg=7.0, batch=self.part.batch, compiled=self.part.compiled, cfg_start_percent=0.0))

    def measure(self) -> dict[str, list[dict[str, Any]]]:
        """Per variant what each round found; the first has the counts as well."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.part.variants}
        for variant in self.part.variants:
            self.run(variant, 10 ** 6)  # compiles, and finds the fastest kernels
        for number in range(self.part.rounds):
            for variant in random.Random(number).sample(self.part.variants, len(found)):
                with sampling_timed() as seconds, watched(self.host) as watch:
                    self.run(variant, number)
                calls = watch.take()
                found[variant].append({
                    "step": sum(seconds) / STEPS,
                    "host": sum(wall for name in OURS for wall, _ in calls.get(name, ())) / STEPS})
        if self.part.profiled:
            for variant in self.part.variants:
                found[variant][0] |= self.kernels(variant) | {"waits": self.waits(variant)}
        return found

    def kernels(self, variant: str) -> dict[str, float]:
        """Kernels and seconds of the device a step, of ours and of the model."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with self.nothing_replayed(), watched(self.host, ProfiledWatch()), torch.profiler.profile(
                activities=activities) as profiler:
            self.run(variant, 0, COUNTED)
        events = profiler.events()
        main = {event.thread for event in events if event.name == "model"}
        count, seconds = Counter[str](), Counter[str]()
        for event in events:
            if event.kernels and event.name not in (*OURS, "model"):
                whose = _whose(event, main)
                count[whose] += len(event.kernels)
                seconds[whose] += 1e-6 * sum(kernel.duration for kernel in event.kernels)
        return {f"{whose} {what}": by[whose] / COUNTED for whose in ("ours", "model")
                for what, by in (("kernels", count), ("device", seconds))}

    @contextlib.contextmanager
    def nothing_replayed(self) -> Iterator[None]:
        """Within, no CUDA graphs are recorded, whose kernels the profiler tells of as one."""
        replayed = self.host.pack("guidance.replayed")
        room, replayed.ROOM = replayed.ROOM, math.inf
        try:
            yield
        finally:
            replayed.ROOM = room

    def waits(self, variant: str) -> float:
        """How often a step waits for the device, as torch warns of it."""
        once, twice = (self._waits_of_run(variant, count) for count in (COUNTED, 2 * COUNTED))
        return (twice - once) / COUNTED

    def _waits_of_run(self, variant: str, steps: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                self.run(variant, 2 * 10 ** 6, steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(one.message) for one in told)


def _whose(event: Any, main: set[int]) -> str:
    """Of what a profiled event is a part: "ours", "model" or "other"; main: the thread that
    samples. What works in others is autograd, which only minority guidance uses."""
    parent = event
    while parent is not None:
        if parent.name in OURS:
            return "ours"
        if parent.name == "model":
            return "model"
        parent = parent.cpu_parent
    return "other" if event.thread in main else "ours"


def rows(found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Per variant: what a step costs."""
    table = {}
    for variant, runs in found.items():
        beside = [run["step"] / plain["step"]
                  for run, plain in zip(runs, found["plain"], strict=True)]
        table[variant] = {"runs": len(runs), "step": median(run["step"] for run in runs),
                          "times_plain": quartiles(beside),
                          "host": median(run["host"] for run in runs),
                          "ratio": median(run["step"] / (run["step"] - run["host"])
                                          for run in runs)} | {
            name: runs[0][name] for name in COUNTS if name in runs[0]}
    return table


def write_report(parts: dict[str, Any]) -> None:
    """benchmarks/results/overhead_gpu.json and .md. parts: by name, what was found and where."""
    tables = {name: rows(part["found"]) for name, part in parts.items()}
    summary = {f"{name}: {variant}": round(row["ratio"], 4)
               for name, table in tables.items() for variant, row in table.items()
               if variant != "plain"}
    write_json("overhead_gpu", {"summary": summary, "tables": tables, "parts": parts})
    lines = ["# Overhead on a GPU: what guidance adds to a step"]
    for name, table in tables.items():
        told = parts[name]["circumstances"]
        lines += ["", f"## {name}", "",
                  f"`{told['command']}`, {told['date']}, {parts[name]['gpu']}, bfloat16, ComfyUI "
                  f"{told['versions']['comfyui']}, torch {told['versions']['torch']}", "",
                  "| guidance | runs | step (ms) | times plain | host (ms) | ratio | kernels "
                  "| device (ms) | the model's | ratio | waits |", "|" + "---|" * 11]
        lines += [_row(variant, row) for variant, row in table.items()]
    (RESULTS / "overhead_gpu.md").write_text("\n".join(lines) + "\n" + LEGEND, "utf-8")


def _row(variant: str, row: dict[str, Any]) -> str:
    middle, low, high = row["times_plain"]
    cells = [variant, str(row["runs"]), f"{1e3 * row['step']:.2f}",
             "1" if variant == "plain" else f"{middle:.3f} ({low:.3f} to {high:.3f})",
             f"{1e3 * row['host']:.2f}", f"{row['ratio']:.3f}"]
    cells += ([f"{row['ours kernels']:.0f}", f"{1e3 * row['ours device']:.3f}",
               f"{1e3 * row['model device']:.2f}",
               f"{1 + row['ours device'] / row['model device']:.3f}", f"{row['waits']:g}"]
              if "waits" in row else [""] * 5)
    return f"| {' | '.join(cells)} |"


def start_host(folder: str) -> InProcessHost:
    host = InProcessHost(Path(folder), cpu=False)
    for name in ("nodes_preview_any", "nodes_torch_compile"):
        host.load_extra(name)
    import comfy.utils
    import nodes

    comfy.utils.PROGRESS_BAR_ENABLED = False
    nodes.NODE_CLASS_MAPPINGS["Given"] = Given
    return host


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench overhead_gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part, or these")
    parser.add_argument("--rounds", type=int, help="how often each variant runs")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA GPU here. For the processor: bench overhead.")
    wanted = {name: part for name, part in PARTS.items() if name in (arguments.part or PARTS)}
    parts = earlier_rows("overhead_gpu", "parts") or {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        host = start_host(folder)
        for model in dict.fromkeys(part.model for part in wanted.values()):
            size = large_model(host, model, torch.bfloat16)
            for space in ("latent", "features"):
                build_memory(host, model, space)
            for name, part in wanted.items():
                if part.model == model:
                    part = part._replace(rounds=arguments.rounds or part.rounds)
                    found = GPUBench(host, part, size).measure()
                    parts[name] = {"gpu": torch.cuda.get_device_name(), "found": found,
                                   "circumstances": circumstances(command_line("overhead_gpu"))}
                    write_report({name: parts[name] for name in PARTS if name in parts})
                    print(name, {variant: round(row["ratio"], 4)
                                 for variant, row in rows(found).items()}, flush=True)
            GIVEN.clear()


if __name__ == "__main__":
    main()
