"""What the methods of `benchmarks.minority` cost, measured in one run, one after the other."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.chains import WORK
from benchmarks.minority_sets import MODEL, Set, content_hash, graph
from demo.host import InProcessHost

IMAGES = 20  # a batch
ROUNDS = 3


def costs_file() -> Path:
    return WORK / "minority" / f"costs-{content_hash(MODEL)[:16]}.json"


def load_costs() -> dict[str, float]:
    """Seconds an image, by the name of the set."""
    return json.loads(costs_file().read_text("utf-8")) if costs_file().is_file() else {}


def measure_costs(host: InProcessHost, sets: Sequence[Set]) -> None:
    """A batch of each set a round; the first round, which loads the models, does not count."""
    found: dict[str, list[float]] = {wanted.name: [] for wanted in sets}
    for number in range(ROUNDS + 1):
        for wanted in sets:
            started = time.perf_counter()
            host.run(graph(wanted, number, IMAGES))
            found[wanted.name].append((time.perf_counter() - started) / IMAGES)
    costs_file().parent.mkdir(parents=True, exist_ok=True)
    costs_file().write_text(json.dumps({name: median(all_[1:]) for name, all_ in found.items()}),
                            "utf-8")
