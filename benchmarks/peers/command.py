"""Novelty guidance side by side with its peers: distinct good images, and diversity in batches.

    python dev.py bench peers [--part PART ...] [--model MODEL ...] [--jobs 2] [--plan] [--report]

Draws chains of queue items through the real KSampler, part by part, the most important first:
`sweep`, 64 images a chain, every method at three strengths; `sweep-cfg`, at other CFGs; `final`,
256 images and three sets of seeds of each method's best settings; `batches`, 200 batches of 4 with
nothing remembered. Writes benchmarks/results/peers.json, .md and .png after each part. Chains that
are drawn already are kept (in benchmarks/work/), so it can be stopped and run again at any time.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmarks.chains import Chain, code_hash, draw, guidance_defaults, is_drawn, load, start_host
from benchmarks.peers.methods import Inputs
from benchmarks.peers.node import register
from benchmarks.peers.plan import CASES, Case, batches, final, sweep, sweep_cfg
from benchmarks.peers.report import write_report
from benchmarks.peers.rows import Measured, best_cells, scores
from demo.host import InProcessHost

PARTS = ("sweep", "sweep-cfg", "final", "batches")


@functools.cache
def worker_host(folder: Path, threads: int) -> InProcessHost:
    """The one host of a worker process."""
    host = start_host(folder / str(os.getpid()), threads)
    register(host)
    return host


def draw_and_save(folder: Path, threads: int, chain: Chain) -> int:
    """Draws one chain; returns how many images it has."""
    drawn = draw(worker_host(folder, threads), chain)
    drawn.save(chain)
    return len(drawn.images)


def shipped_defaults(folder: Path, threads: int) -> Inputs:
    return guidance_defaults(worker_host(folder, threads))


def chains_of(part: str, case: Case, measured: Measured) -> list[Chain]:
    """The chains of a part, each once. What `final` and `batches` draw depends on the sweeps."""
    defaults = measured.defaults
    if part == "sweep":
        chains = sweep(case, defaults)
    elif part == "sweep-cfg":
        chains = sweep_cfg(case, defaults)
    else:
        make = final if part == "final" else batches
        chains = make(best_cells(case, scores(measured, case)), defaults)
    return list({chain.file: chain for chain in chains}.values())


def outdated(chain: Chain) -> bool:
    """Whether the present code would draw it differently."""
    drawn = load(chain)
    return (drawn is not None and (chain.guidance is not None or bool(chain.patches))
            and drawn.code != code_hash(chain.patches))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part, or these")
    parser.add_argument("--model", action="append", choices=names, help="only this, or these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(),
                        help="processes that draw at once (default: one per core)")
    parser.add_argument("--refresh", action="store_true",
                        help="draw again what was drawn with other code than the present")
    parser.add_argument("--plan", action="store_true",
                        help="draw nothing, only say how many images each part has")
    parser.add_argument("--report", action="store_true", help="draw nothing, only report")
    arguments = parser.parse_args()
    cases = [case for case in CASES if case.name in (arguments.model or names)]
    for case in cases:
        if case.missing:
            print(case.missing)
    cases = [case for case in cases if not case.missing]

    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ProcessPoolExecutor(
            arguments.jobs, multiprocessing.get_context("spawn")) as workers:
        place = (Path(folder), threads)
        measured = Measured(workers.submit(shipped_defaults, *place).result())
        for part in PARTS:
            for case in cases:
                if part not in (arguments.part or PARTS) or arguments.report:
                    continue
                chains = chains_of(part, case, measured)
                missing = [chain for chain in chains if not is_drawn(chain)
                           or arguments.refresh and outdated(chain)]
                if arguments.plan:
                    tell(part, case, chains, missing)
                else:
                    draw_all(workers, place, f"{case.name}, {part}", missing)
                    write_report(measured)
        if not arguments.plan:
            write_report(measured)


def tell(part: str, case: Case, chains: Sequence[Chain], missing: Sequence[Chain]) -> None:
    """What is planned; `final` and `batches` say what follows from the sweeps drawn so far."""
    print(f"{case.name}, {part}: {len(chains)} chains, {sum(one.count for one in chains)} images; "
          f"to draw: {len(missing)} chains, {sum(one.count for one in missing)} images")


def draw_all(workers: ProcessPoolExecutor, place: tuple[Path, int], title: str,
             chains: Sequence[Chain]) -> None:
    with tqdm(total=sum(chain.count for chain in chains), desc=title, unit="image") as bar:
        for done in workers.map(functools.partial(draw_and_save, *place), chains):
            bar.update(done)
