"""Small tables of chains: a row for each setting, a column for each class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.chains import Chain, is_drawn, load
from benchmarks.measures import Measure
from benchmarks.results import earlier_rows

FIGURES = ("distinct_good", "good", "nearest_in_history")
Figures = dict[str, Any]
"""Of one chain, as they are kept in the results."""


class Table:
    """What is known of the chains of benchmarks/results/<name>.json, and of those drawn here."""

    def __init__(self, name: str):
        self._earlier: dict[str, Figures] = {
            one["file"]: one for row in earlier_rows(name) for one in row["chains"]}

    def missing(self, chains: Iterable[Chain]) -> list[Chain]:
        return [chain for chain in chains
                if not is_drawn(chain) and chain.file.stem not in self._earlier]

    def figures(self, chain: Chain, measure: Measure) -> Figures | None:
        """Of one chain; as in the earlier results where its images are not here any more."""
        drawn = load(chain)
        if drawn is None or len(drawn.images) < chain.count:
            return self._earlier.get(chain.file.stem)
        found = measure.summary(drawn.images[:chain.count], chain.label)
        return {"file": chain.file.stem, "class": chain.label, "code": drawn.code,
                "seconds": drawn.seconds.median().item(), **{name: found[name] for name in FIGURES}}

    def row(self, what: str, chains: Sequence[Chain], measure: Measure) -> list[dict[str, Any]]:
        """One row for the results, or none as long as one of its chains is not drawn."""
        found = [self.figures(chain, measure) for chain in chains]
        return [] if None in found else [{"what": what, "chains": found}]


def lines(rows: Iterable[Mapping[str, Any]], labels: Sequence[int]) -> list[str]:
    """The Markdown table: D and share of good images of each class and on average, the distance to
    history, and seconds an image."""
    found = ["| | " + " | ".join(f"class {label}" for label in labels)
             + " | mean | to history | s/image |", "|---" * (len(labels) + 4) + "|"]
    for row in rows:
        chains = row["chains"]
        cells = [f"{one['distinct_good']} ({one['good']:.2f})" for one in chains]
        average = {name: mean(one[name] for one in chains) for name in (*FIGURES, "seconds")}
        found.append(f"| {row['what']} | {' | '.join(cells)} | {average['distinct_good']:.1f} "
                     f"({average['good']:.3f}) | {average['nearest_in_history']:.2f} | "
                     f"{average['seconds']:.2f} |")
    return found
