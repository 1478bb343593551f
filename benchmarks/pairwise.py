"""Few rows of settings in which every pair of values of two settings occurs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def pairs(row: Row) -> set[tuple]:
    """All pairs of settings in one row, each as ((name, value), (name, value))."""
    return {*itertools.combinations(row.items(), 2)}


def all_pairs(axes: Mapping[str, Sequence]) -> set[tuple]:
    """All pairs that the axes allow."""
    return {((one, a), (other, b)) for one, other in itertools.combinations(axes, 2)
            for a in axes[one] for b in axes[other]}


def pairwise(axes: Mapping[str, Sequence], seed: int = 0) -> list[Row]:
    """Rows that hold every pair; not the fewest, but few: greedy, the same for the same seed.

    Each row begins with a pair that is missing, of the two longest axes while one is, and goes on
    with the value that brings the most missing pairs.
    """
    order = random.Random(seed)
    longest = sorted(axes, key=lambda name: -len(axes[name]))
    missing = dict.fromkeys(sorted(
        all_pairs(axes), key=lambda pair: tuple(longest.index(name) for name, _ in pair)))
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        for name in longest:
            if name not in row:
                values = order.sample(list(axes[name]), len(axes[name]))
                row[name] = max(values, key=lambda value: sum(
                    pair in missing for pair in pairs(_ordered(axes, row | {name: value}))))
        rows.append(_ordered(axes, row))
        for pair in pairs(rows[-1]):
            missing.pop(pair, None)
    return rows


def _ordered(axes: Mapping[str, Sequence], row: Row) -> Row:
    return {name: row[name] for name in axes if name in row}
