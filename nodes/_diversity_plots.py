"""The pictures of Diversity Report: densities over one another, a map, and the closest pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..guidance.diversity import Diversity, closest_pairs
from ..guidance.diversity_figures import Extras, figures
from ..guidance.diversity_report import PAIRS, pair_words
from ..guidance.spectrum import map_of
from ._diversity_reader import Picture
from ._images import as_picture
from ._pen import BLUE, FAINT, GRID, INK, ORANGE, SHARP, Pen, as_image, ticks

WIDTH, PANEL = 620, 310  # of a density; the map is as wide, and as high as all of them
LEFT, RIGHT, TOP, BOTTOM = 34, 30, 78, 62
BINS = 480
MOST_DOTS = 4000  # of a set; more would be one blot
BOUNDLESS = 1e6  # a LOF beside copies
THUMBNAIL, COLUMNS, CELL = 150, 3, (330, 216)


@dataclass(frozen=True)
class Curve:
    """A set's values `[n]`."""

    label: str
    values: Tensor
    colour: str


@dataclass(frozen=True)
class Box:
    """A place in the picture, in its pixels, with room for axes."""

    left: float
    top: float
    right: float
    bottom: float


def draw_plots(found: Diversity, features: Tensor, reference: Tensor | None,
               extras: Extras) -> Tensor:
    """IMAGE. features: `[n, dim]`; reference: `[m, dim]`."""
    densities = _densities(found, extras)
    pen = Pen(2 * WIDTH, len(densities) * PANEL)
    for number, (title, x_label, curves, missing) in enumerate(densities):
        box = Box(LEFT, number * PANEL + TOP, WIDTH - RIGHT, (number + 1) * PANEL - BOTTOM)
        _density(pen, box, title, x_label, curves, missing)
    _map(pen, Box(WIDTH + LEFT, TOP, 2 * WIDTH - RIGHT, len(densities) * PANEL - BOTTOM),
         features, reference)
    return as_image(pen.finished())


def _densities(found: Diversity, extras: Extras) -> list[tuple[str, str, list[Curve], str]]:
    """(title, label of the values, curves, what is missing where there are none)."""
    missing = {figure.key: figure.missing for figure in figures(found, extras)}
    against, settings = found.against, found.settings
    densities = []
    for key, title, k, label, own, in_reference, of_reference in (
            ("avg_knn", "AvgkNN", settings.k_knn, "distance: farther is more unusual",
             found.avg_knn, against and against.avg_knn, against and against.own_avg_knn),
            ("lof", "LOF", settings.k_lof, "1: among its like; larger is more unusual", found.lof,
             against and against.lof, against and against.own_lof)):
        curves = [Curve("images", own, ORANGE)]
        if against is not None:
            key, title = f"{key}_reference", f"{title} in the reference"
            curves = [Curve("reference", of_reference, BLUE),
                      Curve("images", in_reference, ORANGE)]
        curves = [curve for curve in curves if curve.values is not None]
        densities.append((f"{title}, k = {k}", label, curves, missing[key]))
    if extras.scores is not None:
        curves = [Curve("scored", extras.scores, ORANGE)]
        if extras.reference_scores is not None:
            curves.insert(0, Curve("scored reference", extras.reference_scores, BLUE))
        densities.append(("Minority score", "larger is rarer for the model", curves, ""))
    return densities


def _density(pen: Pen, box: Box, title: str, x_label: str, curves: Sequence[Curve],
             missing: str) -> None:
    pen.text(box.left, box.top - 54, title, 18, INK, "lt")
    pen.path([(box.left, box.bottom), (box.right, box.bottom)], INK)
    if not curves:
        pen.text((box.left + box.right) / 2, (box.top + box.bottom) / 2, missing, 14, FAINT, "mm")
        return
    _legend(pen, box, [(curve.label, len(curve.values), curve.colour) for curve in curves])
    values = [curve.values.double().numpy() for curve in curves]
    low, high = _range(values)
    shapes = [_smoothed(one, low, high) for one in values]
    top = 1.06 * max(shape.max() for shape in shapes)

    def x(value: float) -> float:
        return box.left + (value - low) / (high - low) * (box.right - box.left)

    for value in ticks(low, high):
        pen.path([(x(value), box.top), (x(value), box.bottom)], GRID)
        pen.path([(x(value), box.bottom), (x(value), box.bottom + 5)], INK)
        pen.text(x(value), box.bottom + 9, f"{value:.6g}", 13, FAINT, "mt")
    centres = np.linspace(low, high, BINS + 1)[:-1] + (high - low) / BINS / 2
    for curve, shape in zip(curves, shapes, strict=True):
        heights = box.bottom - shape / top * (box.bottom - box.top)
        pen.path([*zip(map(x, centres), heights, strict=True)], curve.colour, 2.5)
    beyond = sum(int((one > high).sum()) for one in values)
    note = f"{x_label}; {beyond:,} farther right" if beyond else x_label
    pen.text((box.left + box.right) / 2, box.bottom + 42, note, 14, INK, "ms")


def _range(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Where nearly all values of all sets lie, and some room."""
    values = [one[one < BOUNDLESS] for one in values if (one < BOUNDLESS).any()] or values
    low = min(np.quantile(one, 0.005) for one in values)
    high = max(np.quantile(one, 0.98) for one in values)
    room = 0.12 * (high - low)
    if room <= 1e-6 * max(abs(low), abs(high), 1e-6):
        room = abs(low) / 2 or 0.5
    return float(max(low - room, min(low, 0.0))), float(high + room)  # none of these is below 0


def _smoothed(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Kernel density at BINS places, with Silverman's bandwidth, from binned values."""
    counts, edges = np.histogram(values, BINS, (low, high))
    step = edges[1] - edges[0]
    shown = values[(values >= low) & (values <= high)]
    if not len(shown):
        return np.zeros(BINS)
    quartiles = np.subtract(*np.quantile(shown, [0.75, 0.25])) / 1.34
    spread = min(quartiles, shown.std()) if quartiles > 0 else shown.std()
    width = max(0.9 * spread * len(shown) ** -0.2, 1.5 * step)
    reach = math.ceil(4 * width / step)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum())[reach:reach + BINS]
    return smooth / (len(values) * step)


def _map(pen: Pen, box: Box, features: Tensor, reference: Tensor | None) -> None:
    pen.text(box.left, box.top - 54, "Map", 18, INK, "lt")
    sets = [("images", features, ORANGE)]
    if reference is not None:
        sets.insert(0, ("reference", reference, BLUE))
    _legend(pen, box, [(label, len(rows), colour) for label, rows, colour in sets])
    place = map_of(torch.cat([rows for _, rows, _ in sets]))
    low, high = place.min(0).values, place.max(0).values
    size = torch.tensor([box.right - box.left - 16, box.bottom - box.top - 16])
    scale = float((size / (high - low).clamp(min=1e-12)).min())
    middle = torch.tensor([(box.left + box.right) / 2, (box.top + box.bottom) / 2])
    spots = (place - (low + high) / 2) * scale + middle
    pen.draw.rectangle([box.left * SHARP, box.top * SHARP, box.right * SHARP, box.bottom * SHARP],
                       outline=GRID, width=SHARP)
    radius = 4 if len(spots) <= 500 else 2.5
    for (_, _, colour), group in zip(sets, spots.split([len(rows) for _, rows, _ in sets]),
                                     strict=True):
        for spot in group[::-(-len(group) // MOST_DOTS)].tolist():
            pen.dot(*spot, radius, colour)
    pen.text((box.left + box.right) / 2, box.bottom + 42,
             "near means alike: the two directions in which the features differ most", 14, INK,
             "ms")


def _legend(pen: Pen, box: Box, entries: Sequence[tuple[str, int, str]]) -> None:
    x, y = box.left, box.top - 18
    for label, count, colour in entries:
        words = f"{label} ({count:,})"
        pen.dot(x + 6, y, 5, colour)
        pen.text(x + 18, y, words, 14, INK, "lm")
        x += 18 + pen.width(words, 14) + 24


def draw_pairs(found: Diversity, pictures: Sequence[Picture]) -> Tensor:
    """IMAGE: the pictures that are most alike, two by two."""
    pairs = closest_pairs(found, PAIRS)
    across = min(COLUMNS, max(1, len(pairs)))
    pen = Pen(across * CELL[0], max(1, -(-len(pairs) // COLUMNS)) * CELL[1])
    if not pairs:
        pen.text(CELL[0] / 2, CELL[1] / 2, "a pair needs two images", 15, FAINT, "mm")
    for number, (i, j, distance) in enumerate(pairs):
        left, top = number % COLUMNS * CELL[0], number // COLUMNS * CELL[1]
        for at, index in enumerate((i, j)):
            x = left + 12 + at * (THUMBNAIL + 6)
            _thumbnail(pen, pictures[index], x, top + 10)
            name = _shortened(pen, pictures[index].name)
            pen.text(x + THUMBNAIL / 2, top + THUMBNAIL + 26, name, 12, FAINT, "ms")
        same = distance <= found.same
        pen.text(left + 15 + THUMBNAIL, top + CELL[1] - 16, pair_words(found, distance), 15,
                 ORANGE if same else INK, "ms")
    return as_image(pen.finished())


def _thumbnail(pen: Pen, picture: Picture, x: float, y: float) -> None:
    side = THUMBNAIL * SHARP
    try:
        small = ImageOps.pad(as_picture(picture.load()[0]), (side, side),
                             Image.Resampling.LANCZOS, color=GRID)
    except OSError:  # the file has gone
        small = Image.new("RGB", (side, side), GRID)
    pen.picture.paste(small, (round(x * SHARP), round(y * SHARP)))


def _shortened(pen: Pen, name: str) -> str:
    if pen.width(name, 12) <= THUMBNAIL:
        return name
    while pen.width("..." + name, 12) > THUMBNAIL:
        name = name[1:]
    return "..." + name
