"""The picture of how minority scores are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ._pen import FAINT, GRID, INK, PAPER, Pen, as_image, ticks

WIDTH, HEIGHT = 960, 540
LEFT, RIGHT, TOP, BOTTOM = 78, 30, 92, 74
QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99}
MOST_BINS = 80

COMMON, RARE = (74, 112, 181), (224, 102, 46)  # a bar's colour at the share of images below it


def histogram(scores: Sequence[float], title: str) -> Tensor:
    """Finite scores -> IMAGE `[1, 540, 960, 3]`. They may be few, or all equal."""
    values = np.asarray(scores, np.float64)
    counts, edges = _bins(values)
    pen = Pen(WIDTH, HEIGHT)
    heights = [count for count in ticks(0, counts.max() * 1.08) if count == int(count)]
    top = max(counts.max() * 1.08, heights[-1])

    def x(value: float) -> float:
        return LEFT + (value - edges[0]) / (edges[-1] - edges[0]) * (WIDTH - LEFT - RIGHT)

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - count / top * (HEIGHT - TOP - BOTTOM)

    for count in heights:
        pen.path([(LEFT, y(count)), (WIDTH - RIGHT, y(count))], GRID)
        pen.text(LEFT - 10, y(count), f"{count:,.0f}", 14, FAINT, "rm")
    below = np.concatenate([[0], np.cumsum(counts)[:-1]]) / len(values)
    for i, count in enumerate(counts):
        if count:
            gap = 0.5 if len(counts) > 1 else 0
            share = below[i] + count / len(values) / 2
            pen.bar(x(edges[i]) + gap, min(y(count), y(0) - 1), x(edges[i + 1]) - gap, y(0),
                     _mix(share ** 3))
    pen.path([(LEFT, y(0)), (WIDTH - RIGHT, y(0))], INK)
    for value in ticks(edges[0], edges[-1]):
        pen.path([(x(value), y(0)), (x(value), y(0) + 5)], INK)
        pen.text(x(value), y(0) + 9, f"{value:.6g}", 14, FAINT, "mt")
    _mark_quantiles(pen, values, x, y(0))

    images = f"{len(values):,} image" + "s" * (len(values) != 1)
    pen.text(LEFT, 16, title, 20, INK, "lt")
    pen.text(WIDTH - RIGHT, 19, images, 17, FAINT, "rt")
    pen.text(LEFT, HEIGHT - 14, "common", 15, COMMON, "lb")
    pen.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "minority score", 15, INK, "mb")
    pen.text(WIDTH - RIGHT, HEIGHT - 14, "rare", 15, RARE, "rb")
    pen.upright(8, (TOP + HEIGHT - BOTTOM) / 2, "images", 15, INK)
    return as_image(pen.finished())


def _bins(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges: bins by Freedman and Diaconis; one filled bin where all are equal."""
    low, high = values.min(), values.max()
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = abs(low) / 10 or 0.5
        edges = np.linspace(low - 2.5 * half, low + 2.5 * half, 12)
        return np.histogram(values, edges)
    spread = np.subtract(*np.quantile(values, [0.75, 0.25]))
    width = 2 * spread * len(values) ** (-1 / 3)
    bins = math.ceil((high - low) / width) if width > 0 else MOST_BINS
    return np.histogram(values, min(max(bins, 8), MOST_BINS))


def _mark_quantiles(pen: Pen, values: np.ndarray, x, bottom: float) -> None:
    """Lines at the quantiles, their labels in rows where they would overlap."""
    named: dict[float, list[str]] = {}
    for name, share in QUANTILES.items():
        named.setdefault(float(np.quantile(values, share)), []).append(name)
    row_ends: list[float] = []
    for value, names in named.items():
        label = f"{', '.join(names)}: {value:.4g}"
        width = pen.width(label, 14)
        left = min(max(x(value) - width / 2, LEFT), WIDTH - RIGHT - width)
        row = next((i for i, end in enumerate(row_ends) if left > end + 12), len(row_ends))
        row_ends[row:row + 1] = [left + width]
        height = TOP - 8 - 17 * row
        pen.dashed_upright(x(value), height, bottom, INK)
        pen.text(left, height - 2, label, 14, INK, "lb", PAPER)


def _mix(share: float) -> tuple[int, int, int]:
    return tuple(round(a + (b - a) * share) for a, b in zip(COMMON, RARE, strict=True))
