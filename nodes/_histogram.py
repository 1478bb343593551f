"""The picture of how minority scores are distributed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH, HEIGHT = 960, 540
SHARP = 2  # drawn so many times larger, then scaled down
LEFT, RIGHT, TOP, BOTTOM = 78, 30, 92, 74
QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99}
MOST_BINS = 80

PAPER, INK, FAINT, GRID = "#ffffff", "#22262e", "#6b7280", "#e5e7eb"
COMMON, RARE = (74, 112, 181), (224, 102, 46)  # a bar's colour at the share of images below it


def histogram(scores: Sequence[float], title: str) -> Tensor:
    """Finite scores -> IMAGE `[1, 540, 960, 3]`. They may be few, or all equal."""
    values = np.asarray(scores, np.float64)
    counts, edges = _bins(values)
    picture = Image.new("RGB", (WIDTH * SHARP, HEIGHT * SHARP), PAPER)
    draw = _Pen(picture)
    heights = _ticks(0, counts.max() * 1.08, whole=True)
    top = max(counts.max() * 1.08, heights[-1])

    def x(value: float) -> float:
        return LEFT + (value - edges[0]) / (edges[-1] - edges[0]) * (WIDTH - LEFT - RIGHT)

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - count / top * (HEIGHT - TOP - BOTTOM)

    for count in heights:
        draw.line(LEFT, y(count), WIDTH - RIGHT, y(count), GRID)
        draw.text(LEFT - 10, y(count), f"{count:,.0f}", 14, FAINT, "rm")
    below = np.concatenate([[0], np.cumsum(counts)[:-1]]) / len(values)
    for i, count in enumerate(counts):
        if count:
            gap = 0.5 if len(counts) > 1 else 0
            share = below[i] + count / len(values) / 2
            draw.bar(x(edges[i]) + gap, min(y(count), y(0) - 1), x(edges[i + 1]) - gap, y(0),
                     _mix(share ** 3))
    draw.line(LEFT, y(0), WIDTH - RIGHT, y(0), INK)
    for value in _ticks(edges[0], edges[-1]):
        draw.line(x(value), y(0), x(value), y(0) + 5, INK)
        draw.text(x(value), y(0) + 9, f"{value:.6g}", 14, FAINT, "mt")
    _mark_quantiles(draw, values, x, y(0))

    images = f"{len(values):,} image" + "s" * (len(values) != 1)
    draw.text(LEFT, 16, title, 20, INK, "lt")
    draw.text(WIDTH - RIGHT, 19, images, 17, FAINT, "rt")
    draw.text(LEFT, HEIGHT - 14, "common", 15, COMMON, "lb")
    draw.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "minority score", 15, INK, "mb")
    draw.text(WIDTH - RIGHT, HEIGHT - 14, "rare", 15, RARE, "rb")
    draw.upright(8, (TOP + HEIGHT - BOTTOM) / 2, "images", 15, INK)
    small = picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(small, np.float32) / 255)[None]


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


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers from low to high, about seven."""
    step = 10.0 ** math.floor(math.log10((high - low) / 6))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 7)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _mark_quantiles(draw: _Pen, values: np.ndarray, x, bottom: float) -> None:
    """Lines at the quantiles, their labels in rows where they would overlap."""
    named: dict[float, list[str]] = {}
    for name, share in QUANTILES.items():
        named.setdefault(float(np.quantile(values, share)), []).append(name)
    row_ends: list[float] = []
    for value, names in named.items():
        label = f"{', '.join(names)}: {value:.4g}"
        width = draw.width(label, 14)
        left = min(max(x(value) - width / 2, LEFT), WIDTH - RIGHT - width)
        row = next((i for i, end in enumerate(row_ends) if left > end + 12), len(row_ends))
        row_ends[row:row + 1] = [left + width]
        height = TOP - 8 - 17 * row
        draw.dashed(x(value), height, bottom, INK)
        draw.text(left, height - 2, label, 14, INK, "lb", PAPER)


def _mix(share: float) -> tuple[int, int, int]:
    return tuple(round(a + (b - a) * share) for a, b in zip(COMMON, RARE, strict=True))


class _Pen:
    """Draws in the picture's final pixels."""

    def __init__(self, picture: Image.Image):
        self.picture = picture
        self.draw = ImageDraw.Draw(picture)

    def line(self, x0: float, y0: float, x1: float, y1: float, colour) -> None:
        self.draw.line([v * SHARP for v in (x0, y0, x1, y1)], colour, SHARP)

    def dashed(self, x: float, y0: float, y1: float, colour) -> None:
        for y in np.arange(y0, y1, 7):
            self.line(x, y, x, min(y + 4, y1), colour)

    def bar(self, x0: float, y0: float, x1: float, y1: float, colour) -> None:
        self.draw.rectangle([x0 * SHARP, y0 * SHARP, max(x0 + 1, x1) * SHARP, y1 * SHARP], colour)

    def text(self, x: float, y: float, text: str, size: int, colour, anchor: str,
             behind: str | None = None) -> None:
        font = ImageFont.load_default(size * SHARP)
        place = (x * SHARP, y * SHARP)
        if behind is not None:
            self.draw.rectangle(self.draw.textbbox(place, text, font, anchor), behind)
        self.draw.text(place, text, colour, font, anchor)

    def width(self, text: str, size: int) -> float:
        return ImageFont.load_default(size * SHARP).getlength(text) / SHARP

    def upright(self, x: float, y: float, text: str, size: int, colour) -> None:
        """Text that runs upwards, its middle at y."""
        width, height = math.ceil(self.width(text, size)) * SHARP, round(size * 1.4) * SHARP
        strip = Image.new("RGB", (width, height), PAPER)
        ImageDraw.Draw(strip).text((width / 2, height / 2), text, colour,
                                   ImageFont.load_default(size * SHARP), "mm")
        turned = strip.rotate(90, expand=True)
        self.picture.paste(turned, (round(x * SHARP), round(y * SHARP - turned.height / 2)))
