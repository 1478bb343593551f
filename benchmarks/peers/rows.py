"""The chains drawn so far, measured, and which settings of each method are the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.chains import Chain, load
from benchmarks.measures import Measure, vendi_score
from benchmarks.models import MODELS
from benchmarks.peers.methods import Inputs
from benchmarks.peers.plan import (
    FINAL, SEED_SETS, SWEPT, Case, Cell, other_cells, ours, plain)
from benchmarks.peers.plan import swept_cells as swept

POINTS = (16, 32, 64, 128, 256)  # where the curves over n are read
MOST_LOST = 0.02  # of the share of good images, by a best setting
D, GOOD = "distinct_good", "good"
FILE = "file"  # of a chain in the results
Pair = tuple[int, int]
"""A class and a set of seeds."""


@dataclass(frozen=True)
class Figures:
    """Of one chain. at: the measures of its first n images, by n; seconds: per image."""

    at: dict[int, dict[str, float]]
    seconds: float
    code: str


@dataclass(frozen=True)
class InBatches:
    """Of one class's batches: means over the batches. each: the Vendi score of every batch."""

    vendi: float
    good: float
    agreement: float
    seconds: float
    code: str
    each: Sequence[float] = ()


class Earlier:
    """The figures of earlier results: of chains that may not be here any more, since their images
    are not kept with the results. All by the name of a chain's file."""

    def __init__(self, cases: Iterable[dict[str, Any]] = ()):
        self.chains: dict[str, Figures] = {}
        self.batches: dict[str, InBatches] = {}
        for case in cases:
            for row in (*case["swept"], *case["best"]):
                for chain in row["chains"]:
                    at = {int(n): figures for n, figures in chain["curves"].items()}
                    known = self.chains.get(chain[FILE])
                    if known is None or max(known.at) < max(at):
                        self.chains[chain[FILE]] = Figures(at, chain["seconds"], chain["code"])
            for row in case["batches"]:
                for of_class in row["classes"]:
                    self.batches[of_class[FILE]] = InBatches(
                        **{name: value for name, value in of_class.items() if name != FILE})


class Measured:
    """Figures of chains, each measured once."""

    def __init__(self, defaults: Inputs, earlier: Earlier | None = None):
        self.defaults = defaults
        self._earlier = earlier or Earlier()
        self._measures: dict[str, Measure] = {}
        self._known: dict[tuple[Path, int, int], Figures | InBatches | None] = {}

    def measure(self, model: str) -> Measure:
        if model not in self._measures:
            self._measures[model] = MODELS[model].measure()
        return self._measures[model]

    def chain(self, chain: Chain) -> Figures | None:
        """Of one image after the other; None if it is not drawn to its whole length."""
        return self._once(chain, self._figures)

    def in_batches(self, chain: Chain) -> InBatches | None:
        """Of batches of which nothing is remembered, likewise."""
        return self._once(chain, self._batches)

    def of(self, chain: Chain) -> Figures | InBatches | None:
        return self.chain(chain) if chain.batch == 1 else self.in_batches(chain)

    def _once(self, chain: Chain, measure: Callable[[Chain], Any]) -> Any:
        file = chain.file
        key = (file, file.stat().st_mtime_ns if file.is_file() else 0, chain.count)
        if key not in self._known:
            self._known[key] = measure(chain)
        return self._known[key]

    def _figures(self, chain: Chain) -> Figures | None:
        drawn = load(chain)
        if drawn is None or len(drawn.images) < chain.count:
            earlier = self._earlier.chains.get(chain.file.stem)
            if earlier is None or chain.count not in earlier.at:
                return None
            return replace(earlier, at={n: figures for n, figures in earlier.at.items()
                                        if n <= chain.count})
        measure = self.measure(chain.model)
        return Figures({n: measure.summary(drawn.images[:n], chain.label)
                        for n in POINTS if n <= chain.count},
                       drawn.seconds.median().item() / chain.batch, drawn.code)

    def _batches(self, chain: Chain) -> InBatches | None:
        drawn = load(chain)
        if drawn is None or len(drawn.images) < chain.count:
            return self._earlier.batches.get(chain.file.stem)
        measure = self.measure(chain.model)
        each = [round(vendi_score(batch), 4)
                for batch in measure.features(drawn.images).split(chain.batch)]
        return InBatches(
            mean(each),
            measure.good(drawn.images, chain.label).float().mean().item(),
            measure.hits(drawn.images, chain.label).float().mean().item(),
            drawn.seconds.median().item() / chain.batch, drawn.code, each)

    def cell(self, cell: Cell, count: int) -> dict[Pair, Figures]:
        """What is drawn of a cell with so many images."""
        found = {(label, seeds): self.chain(cell.chain(self.defaults, label, count, seeds))
                 for label in cell.case.labels for seeds in SEED_SETS}
        return {pair: one for pair, one in found.items() if one is not None}

    def batches(self, cell: Cell) -> dict[int, InBatches]:
        """Of each class that is drawn."""
        found = {label: self.in_batches(cell.batches(self.defaults, label))
                 for label in cell.case.all_labels}
        return {label: one for label, one in found.items() if one is not None}


def average(found: dict[Pair, Figures], figure: str, n: int, over: Iterable[Pair]) -> float:
    return mean(found[pair].at[n][figure] for pair in over)


@dataclass(frozen=True)
class Score:
    """A cell beside plain chains of the same classes and seeds. gain: mean ratio of D(n), spread:
    its standard deviation; lost: how much the share of good images is lower."""

    cell: Cell
    gain: float
    spread: float
    lost: float


def score(measured: Measured, cell: Cell, count: int) -> Score | None:
    """None where the two have no chain in common. Plain is at the CFG people use, whatever the
    cell's, since CFG is one of the things compared."""
    it, base = (measured.cell(one, count) for one in (cell, plain(cell.case)))
    over = sorted(it.keys() & base.keys())
    if not over:
        return None
    ratios = [it[pair].at[count][D] / max(1, base[pair].at[count][D]) for pair in over]
    return Score(cell, mean(ratios), stdev(ratios) if len(ratios) > 1 else 0.0,
                 average(base, GOOD, count, over) - average(it, GOOD, count, over))


def scores(measured: Measured, case: Case, count: int = SWEPT) -> list[Score]:
    """Of all cells of a case that are drawn."""
    found = (score(measured, cell, count) for cell in [*swept(case), *other_cells(case)])
    return [one for one in found if one is not None]


def best_cells(case: Case, found: Sequence[Score]) -> list[Cell]:
    """Plain and our defaults; for each method its highest gain at a share of good images within
    two points of plain, the highest of all first; then its highest gain regardless, where that is
    another. All at the CFG of the case, since others are swept in a single class."""
    methods: dict[str, list[Score]] = {}
    for one in found:
        if one.cell in swept(case):
            methods.setdefault(one.cell.setting.method, []).append(one)
    fair = ([one for one in of_method if one.lost <= MOST_LOST] for of_method in methods.values())
    kept, any_quality = (
        sorted((max(of_method, key=_gain) for of_method in groups if of_method), key=_gain,
               reverse=True) for groups in (fair, methods.values()))
    cells = [plain(case), ours(case), *(one.cell for one in (*kept, *any_quality))]
    return [cell for i, cell in enumerate(cells) if cell not in cells[:i]]


def _gain(one: Score) -> float:
    return one.gain


def shown_count(measured: Measured, case: Case) -> int:
    """How many images the figures are of: the long chains' once plain has them."""
    return FINAL if measured.cell(plain(case), FINAL) else SWEPT
