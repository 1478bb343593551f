"""Novelty guidance side by side with its peers: distinct good images, and diversity in batches.

    python dev.py bench peers [--part PART ...] [--model MODEL ...] [--jobs 2] [--plan] [--report]

Draws chains of queue items through the real KSampler, part by part, the most important first:
`sweep`, 64 images a chain, every method at three strengths; `sweep-cfg`, at other CFGs; `final`,
256 images of each method's best settings; `batches`, 200 batches of 4 with nothing remembered;
`seeds`, what `final` draws with two more sets of seeds. Writes benchmarks/results/peers.json, .md
and .png after each part. Chains that are drawn already are kept (their images in benchmarks/work/,
their figures in the results), so it can be stopped and run again at any time, on another machine
too.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from benchmarks import workers
from benchmarks.chains import Chain, code_hash, draw, guidance_defaults
from benchmarks.peers.methods import Inputs
from benchmarks.peers.node import register
from benchmarks.peers.plan import (
    CASES, SEED_SETS, Case, batches, final, of_batches, sweep, sweep_cfg)
from benchmarks.peers.report import write_report
from benchmarks.peers.rows import Earlier, Measured, best_cells, scores
from benchmarks.results import earlier_rows
from benchmarks.workers import Place
from demo.host import InProcessHost

PARTS = ("sweep", "sweep-cfg", "final", "batches", "seeds")


@functools.cache
def worker_host(place: Place) -> InProcessHost:
    """That of a worker process, with the peers' node."""
    host = workers.worker_host(place)
    register(host)
    return host


def draw_and_save(place: Place, chain: Chain) -> int:
    """Draws one chain; returns how many images it has."""
    drawn = draw(worker_host(place), chain)
    drawn.save(chain)
    return len(drawn.images)


def shipped_defaults(place: Place) -> Inputs:
    return guidance_defaults(worker_host(place))


def chains_of(part: str, case: Case, measured: Measured) -> list[Chain]:
    """The chains of a part, each once. What the last three draw depends on the sweeps."""
    defaults = measured.defaults
    if part == "sweep":
        chains = sweep(case, defaults)
    elif part == "sweep-cfg":
        chains = sweep_cfg(case, defaults)
    else:
        cells = best_cells(case, scores(measured, case))
        chains = (batches(of_batches(case) + cells, defaults) if part == "batches" else
                  final(cells, defaults, SEED_SETS[:1] if part == "final" else SEED_SETS[1:]))
    return list({chain.file: chain for chain in chains}.values())


def outdated(chain: Chain, measured: Measured) -> bool:
    """Whether the present code might draw it differently."""
    found = measured.of(chain)
    return (found is not None and (chain.guidance is not None or bool(chain.patches))
            and found.code != code_hash(chain.patches))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES]
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part, or these")
    parser.add_argument("--model", action="append", choices=names, help="only this, or these")
    workers.add_arguments(parser)
    parser.add_argument("--refresh", action="store_true",
                        help="draw again what was drawn with other code than the present")
    parser.add_argument("--plan", action="store_true",
                        help="draw nothing, only say how many images each part has")
    arguments = parser.parse_args()
    cases = [case for case in CASES if case.name in (arguments.model or names)]
    for case in cases:
        if case.missing:
            print(case.missing)
    cases = [case for case in cases if not case.missing]

    with workers.workers(arguments.jobs) as (pool, place):
        measured = Measured(pool.submit(shipped_defaults, place).result(),
                            Earlier(earlier_rows("peers", "cases")))
        for part in PARTS:
            for case in cases:
                if part not in (arguments.part or PARTS) or arguments.report:
                    continue
                chains = chains_of(part, case, measured)
                missing = [chain for chain in chains if measured.of(chain) is None
                           or arguments.refresh and outdated(chain, measured)]
                if arguments.plan:
                    tell(part, case, chains, missing)
                else:
                    workers.draw_all(pool, functools.partial(draw_and_save, place),
                                     f"{case.name}, {part}", missing)
                    write_report(measured)
        if not arguments.plan:
            write_report(measured)


def tell(part: str, case: Case, chains: Sequence[Chain], missing: Sequence[Chain]) -> None:
    """What is planned; of the last three parts, what follows from the sweeps drawn so far."""
    print(f"{case.name}, {part}: {len(chains)} chains, {sum(one.count for one in chains)} images; "
          f"to draw: {len(missing)} chains, {sum(one.count for one in missing)} images")
