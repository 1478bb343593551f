"""Whether queued runs leave anything behind: resident memory over 500 runs.

    python dev.py bench leak [--runs 500]

Queues novelty and minority guidance on the avatars, one image after the other with a memory that
learns, and writes benchmarks/results/leak.json and .md. The first fifth of the runs warms up: what
the allocator and the caches take once is no leak.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.chains import reopen, start_host
from benchmarks.overhead_graphs import GIVEN, Given, demo_model, graph
from benchmarks.results import RESULTS, circumstances, command_line, write_json
from demo.host import InProcessHost

PART = "avatars"


def resident() -> int:
    """Bytes of this process in RAM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def run(host: InProcessHost, runs: int) -> list[int]:
    """Resident bytes after each run."""
    found = []
    started = time.monotonic()
    for seed in range(runs):
        host.run(graph(host, "both", part=PART, size=24, steps=4, seed=seed, cfg=3.0, batch=1,
                       scale=1, database=""))
        gc.collect()
        found.append(resident())
        if seed % 25 == 24:
            print(f"{seed + 1} of {runs}, {found[-1] / 1e6:.1f} MB, "
                  f"{time.monotonic() - started:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench leak", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        host = start_host(Path(folder), torch.get_num_threads())
        import nodes

        nodes.NODE_CLASS_MAPPINGS["Given"] = Given
        demo_model(host, PART)
        found = run(host, runs)
        reopen(host)
        GIVEN.clear()
    warm = runs // 5
    window = max(runs // 20, 1)
    before, after = median(found[warm:warm + window]), median(found[-window:])
    summary = {"runs": runs, "megabytes_before": round(before / 1e6, 2),
               "megabytes_after": round(after / 1e6, 2),
               "growth": round(after / before - 1, 5)}
    told = circumstances(command_line("leak"))
    write_json("leak", {"summary": summary, "circumstances": told,
                        "megabytes": [round(one / 1e6, 2) for one in found]})
    (RESULTS / "leak.md").write_text("\n".join([
        "# Leak: resident memory over queued runs", "",
        f"`{told['command']}`, {told['date']}, {told['machine']['processor']}, torch "
        f"{told['versions']['torch']}", "", *(f"- `{key}`: {value}"
                                              for key, value in summary.items()), "",
        f"Novelty and minority guidance together on the avatars, 4 steps an image, every image "
        f"learnt. Before: the median of {window} runs after the first {warm}; after: of the last "
        f"{window}.", ""]), "utf-8")


if __name__ == "__main__":
    main()
