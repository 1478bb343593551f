"""Is the guidance right with every kind of model, sampler, schedule and CFG of the host?

    python dev.py bench matrix [--count N] [--jobs 2] [--refresh] [--report]

Draws the product of all, the rows of the tests (every pair of values) first, then the rest in a
shuffled order, so that what was drawn when it was stopped is a sample of the whole; what must hold
of each case is told in matrix_case.py. Writes benchmarks/results/matrix.json. Cases that are drawn
already are kept (in benchmarks/work/), so it can be stopped and run again at any time.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from benchmarks.chains import WORK, code_hash
from benchmarks.pairwise import Row, pairwise
from benchmarks.results import circumstances, command_line, write_json
from benchmarks.workers import Place, add_arguments, worker_host, workers

DRAWN = WORK / "matrix.jsonl"
COUNTED = ("evaluations", "off_grid", "outside", "pushed", "early")


@functools.cache
def worker_matrix(place: Place) -> Any:
    """The one matrix of a worker process."""
    host = worker_host(place)
    from benchmarks.matrix_case import Matrix

    warnings.simplefilter("ignore")  # of samplers, about the schedules that they are given
    return Matrix(host, place[0] / str(os.getpid()))


def host_axes(place: Place) -> dict[str, list]:
    worker_matrix(place)
    from benchmarks.matrix_case import axes

    return axes()


def draw(place: Place, row: Row) -> dict:
    """One case, as it is kept."""
    matrix = worker_matrix(place)
    from benchmarks.matrix_case import Case

    return {"case": row, "code": code_hash(), **asdict(matrix.check(Case(**row)))}


def plan(axes: Mapping[str, Sequence]) -> list[Row]:
    """All rows, in the order in which they are drawn."""
    first = pairwise(axes)
    rest = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    random.Random(0).shuffle(rest)
    seen = {key(row) for row in first}
    return first + [row for row in rest if key(row) not in seen]


def key(row: Row) -> str:
    return json.dumps(row, sort_keys=True)


def kept() -> dict[str, dict]:
    """What is drawn already, the last of each case; a line that a crash cut off does not count."""
    found = {}
    for line in DRAWN.read_text("utf-8").splitlines() if DRAWN.is_file() else ():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        found[key(one["case"])] = one
    return found


def draw_all(pool: ProcessPoolExecutor, place: Place, rows: Sequence[Row]) -> None:
    DRAWN.parent.mkdir(parents=True, exist_ok=True)
    with DRAWN.open("a", encoding="utf-8") as file:
        file.write("\n")  # a crash may have cut off the last line
        done = pool.map(functools.partial(draw, place), rows)
        for one in tqdm(done, total=len(rows), unit="case"):
            file.write(json.dumps(one) + "\n")
            file.flush()


def summarise(drawn: Sequence[dict], whole: int, pairs: int) -> dict:
    """drawn: the cases, those of the tests first; whole: how many there are; pairs: how many hold
    every pair of values."""
    counts = {name: sum(one[name] for one in drawn) for name in COUNTED}
    return {"cases": len(drawn), "of": whole, "every_pair_with": pairs,
            "failed": sum(bool(one["failures"]) for one in drawn),
            "refused_by_the_host": sum(one["refused"] is not None for one in drawn), **counts}


def by_value(drawn: Iterable[dict], axes: Mapping[str, Sequence]) -> dict[str, dict]:
    """For each value of each axis, how many cases were drawn and how many failed."""
    table: dict[str, dict] = {axis: {str(value): {"cases": 0, "failed": 0, "refused": 0}
                                     for value in values} for axis, values in axes.items()}
    for one in drawn:
        for axis in axes:
            cell = table[axis][str(one["case"][axis])]
            cell["cases"] += 1
            cell["failed"] += bool(one["failures"])
            cell["refused"] += one["refused"] is not None
    return table


def write_report(rows: Sequence[Row], axes: Mapping[str, Sequence]) -> int:
    """Writes the results of what is drawn; returns how many cases failed."""
    found = kept()
    drawn = [found[key(row)] for row in rows if key(row) in found]
    summary = summarise(drawn, len(rows), len(pairwise(axes)))
    write_json("matrix", {
        "summary": summary, "by_value": by_value(drawn, axes),
        "failures": [one for one in drawn if one["failures"]],
        "refused": [{"case": one["case"], "why": one["refused"]} for one in drawn
                    if one["refused"] is not None],
        "code": sorted({one["code"] for one in drawn}), **circumstances(command_line("matrix"))})
    print(json.dumps(summary, indent=1))
    return summary["failed"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench matrix", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="draw this many cases at most, then report")
    add_arguments(parser)
    parser.add_argument("--refresh", action="store_true",
                        help="draw again what was drawn with other guidance code than the present")
    arguments = parser.parse_args()

    with workers(arguments.jobs) as (pool, place):
        axes = pool.submit(host_axes, place).result()
        rows = plan(axes)
        if not arguments.report:
            found = kept()
            missing = [row for row in rows if key(row) not in found
                       or arguments.refresh and found[key(row)]["code"] != code_hash()]
            draw_all(pool, place, missing[:arguments.count])
        raise SystemExit(write_report(rows, axes) > 0)


if __name__ == "__main__":
    main()
