"""The chains that `benchmarks.novelty` has drawn, measured and grouped by their settings."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.chains import Chain, load
from benchmarks.measures import DigitsMeasure

NOTHING_IN_IT = 0.01  # so small a radius that nothing is ever in it
COUNT = 128  # all figures are those of the first 128 images, but for the longer curves
FILE, KEPT, IMAGES = "file", "kept", "images"  # of a row in the results
FIGURES = ("distinct_good", "distinct_good_1.3tau", "good", "class_accuracy", "precision", "recall",
           "density", "coverage", "vendi", "nearest", "nearest_in_history", "seconds")


@dataclass(frozen=True)
class Row:
    """One chain's figures. curve: `[count]`, D(1) ... D(count)."""

    chain: Chain
    figures: dict[str, float]
    curve: Tensor
    code: str

    @property
    def method(self) -> str:
        """The repulsion, or the space of the memory if that is another than latent."""
        if self.chain.guidance is None:
            return "plain"
        return (self.chain.memory or {}).get("space", self.chain.guidance["repulsion"])

    def is_default(self, defaults: dict[str, Any]) -> bool:
        """Whether both nodes are as they are shipped."""
        return self.chain.guidance == defaults and self.chain.memory is None

    @property
    def is_late(self) -> bool:
        """Whether CFG begins within the denoising."""
        return self.chain.guidance is not None and self.chain.guidance["cfg_start_percent"] > 0

    @property
    def pushes(self) -> bool:
        """Whether its ball is wide enough for anything ever to lie in it."""
        return self.chain.guidance is not None and self.chain.guidance["radius"] != NOTHING_IN_IT

    def as_json(self) -> dict[str, Any]:
        at = [n for n in (32, 64, 128, 256, 512) if n <= len(self.curve)]
        return {FILE: self.chain.file.stem,
                "method": self.method, "sampler": str(self.chain.sampler),
                "scheduler": self.chain.sampler.scheduler, "cfg": self.chain.cfg,
                "class": self.chain.label, "seeds": self.chain.seeds,
                "guidance": self.chain.guidance, "code": self.code,
                **{name: round(value, 4) for name, value in self.figures.items()},
                "curve": {str(n): int(self.curve[n - 1]) for n in at}, KEPT: self._kept(),
                IMAGES: max(COUNT, len(self.curve))}

    def _kept(self) -> str:
        """Which images the curve counts: a binary digit each, the first of all a 1, as
        hexadecimal number."""
        counts = self.curve.diff(prepend=torch.zeros(1, dtype=self.curve.dtype)).tolist()
        return f"{int('1' + ''.join(map(str, counts)), 2):x}"

    @classmethod
    def of_json(cls, chain: Chain, row: dict[str, Any]) -> Row:
        """What as_json wrote of this chain."""
        counts = torch.tensor([int(digit) for digit in f"{int(row[KEPT], 16):b}"[1:]],
                              dtype=torch.int64)
        return cls(chain, {name: row[name] for name in FIGURES}, counts.cumsum(0), row["code"])


Group = dict[tuple[int, int], Row]
"""The chains of one setting by (class, seed set)."""


class Earlier:
    """The rows of earlier results: of chains that may not be here any more, since their images are
    not kept with the results."""

    def __init__(self, rows: Iterable[dict[str, Any]] = ()):
        self._rows = {row[FILE]: row for row in rows if FILE in row}

    def row(self, chain: Chain) -> dict[str, Any] | None:
        """None if it is not there to its whole length."""
        row = self._rows.get(chain.file.stem)
        return row if row is not None and row[IMAGES] >= chain.count else None


def measured(plan: Iterable[Chain], earlier: Earlier | None = None) -> list[Row]:
    """The rows of all planned chains that are drawn, each once, in the plan's order."""
    earlier = Earlier() if earlier is None else earlier
    chains: dict[Path, Chain] = {}
    for chain in plan:
        if chain.file not in chains or chains[chain.file].count < chain.count:
            chains[chain.file] = chain
    measure, rows = DigitsMeasure(), []
    for chain in chains.values():
        drawn, row = load(chain), earlier.row(replace(chain, count=COUNT))
        if drawn is not None and len(drawn.images) >= max(COUNT, row[IMAGES] if row else 0):
            figures = (measure.summary(drawn.images[:COUNT], chain.label)
                       | {"seconds": drawn.seconds.median().item()})
            rows.append(Row(chain, figures, measure.distinct_good(drawn.images, chain.label),
                            drawn.code))
        elif row is not None:
            rows.append(Row.of_json(chain, row))
    return rows


def distinct_real(orders: int = 5) -> float:
    """D(128) of real digits: mean over the classes, and over random orders of each."""
    measure = DigitsMeasure()
    return mean(int(measure.distinct_real(label, order)[COUNT - 1])
                for label in range(10) for order in range(orders))


def grouped(rows: Iterable[Row]) -> list[Group]:
    groups: dict[str, Group] = defaultdict(dict)
    for row in rows:
        setting = json.dumps([row.chain.sampler.name, row.chain.sampler.steps, row.chain.cfg,
                              row.chain.guidance, row.chain.memory])
        groups[setting][row.chain.label, row.chain.seeds] = row
    return list(groups.values())


def some(group: Group) -> Row:
    """Any row, for what a whole group shares."""
    return next(iter(group.values()))


def common(groups: Sequence[Group]) -> set[tuple[int, int]]:
    """The (class, seed set) that all groups have."""
    return set.intersection(*(set(group) for group in groups)) if groups else set()


def average(group: Group, figure: str, over: Iterable[tuple[int, int]]) -> float:
    return mean(group[pair].figures[figure] for pair in over)


def best(groups: Sequence[Group]) -> Group | None:
    """The one with the highest mean D, over what all have."""
    over = common(groups)
    return max(groups, key=lambda group: average(group, "distinct_good", over)) if over else None


def ratio(ours: Group | None, theirs: Group | None) -> float | None:
    """Mean D of one over mean D of the other, over what both have."""
    over = common([ours, theirs]) if ours and theirs else ()
    return (average(ours, "distinct_good", over) / average(theirs, "distinct_good", over)
            if over else None)


def worth(ours: Group, plain: Group) -> tuple[float | None, bool]:
    """How many times as many plain images it takes to reach our mean D(128), over the longest plain
    chains, and whether that is only a lower bound because even these do not reach it."""
    over = common([ours, plain])
    length = max((len(plain[pair].curve) for pair in over), default=0)
    over = {pair for pair in over if len(plain[pair].curve) == length}
    if length <= COUNT:
        return None, False
    curve = torch.stack([plain[pair].curve for pair in over]).float().mean(dim=0)
    reached = (curve >= average(ours, "distinct_good", over)).nonzero()
    return (int(reached[0]) + 1 if len(reached) else length) / COUNT, len(reached) == 0
