"""Diversity Report as text, as a table, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict

from torch import Tensor

from .diversity import SAME_PICTURE, Diversity, closest_pairs
from .diversity_figures import Extras, Features, Figure, figures

PAIRS = 6
NAMED = 10  # of what was left out
MOST_ROWS = 10000  # images whose own numbers go into the JSON


def text(found: Diversity, features: Features, names: Sequence[str], extras: Extras) -> str:
    """The report in plain words. names: `[n]`, what the images are called."""
    against, all_figures = found.against, figures(found, extras)
    lines = [_count(found.count, "image") + (
        "" if against is None else f", compared with {_count(against.count, 'reference image')}")]
    if found.count > 1 and found.spread <= 1e-6:
        lines.append("All images are the same, so far as these features can tell.")
    lines += ["", *map(_line, all_figures), *_pairs(found, names)]
    if extras.left_out:
        lines += ["", f"{_count(len(extras.left_out), 'image')} left out:",
                  *extras.left_out[:NAMED], *["..."] * (len(extras.left_out) > NAMED)]
    lines += ["", "What this means",
              f"Features: {features.name}, {features.dim} numbers for each image "
              f"({features.meaning}). All distances and similarities are between these, so compare "
              "only reports with the same features, and sets of about the same size."]
    if against is not None and not 0.5 <= found.count / against.count <= 2:
        lines.append("The two sets differ much in size, which moves recall and coverage.")
    lines += [f"{figure.name}: {figure.reading}. Definition: {figure.definition}."
              for figure in all_figures if figure.value is not None]
    return "\n".join(lines)


def table(found: Diversity, extras: Extras) -> str:
    """A Markdown table: one row a figure, with its definition."""
    rows = ["| measure | value | k or q | definition | meaning |", "|---|---|---|---|---|"]
    for figure in figures(found, extras):
        value = (f"missing: {figure.missing}" if figure.value is None
                 else f"{figure.value:.4g}" + f" ({figure.more})" * bool(figure.more))
        k = "" if figure.k is None else f"{figure.k:g}"
        rows.append(f"| {figure.name} | {value} | {k} | {figure.definition} | {figure.reading} |")
    return "\n".join(rows)


def as_json(found: Diversity, features: Features, names: Sequence[str], extras: Extras) -> str:
    """Everything: settings, figures, pairs, and each image's own numbers, up to MOST_ROWS."""
    against, history = found.against, extras.history
    columns: dict[str, Tensor | None] = {
        "avg_knn": found.avg_knn, "lof": found.lof, "nearest": found.nearest}
    if against is not None:
        columns |= {"avg_knn_reference": against.avg_knn, "lof_reference": against.lof,
                    "nearest_reference": against.nearest}
    if history is not None:
        columns["history"] = history.distance
    known = {key: column.tolist() for key, column in columns.items() if column is not None}
    return json.dumps({
        "count": found.count,
        "reference": 0 if against is None else against.count,
        "features": asdict(features),
        "settings": asdict(found.settings),
        "figures": {figure.key: {
            "name": figure.name, "value": _finite(figure.value), "k": _finite(figure.k),
            "definition": figure.definition, "meaning": figure.reading, "more": figure.more,
            "missing": figure.missing if figure.value is None else ""}
            for figure in figures(found, extras)},
        "closest_pairs": [{"first": names[i], "second": names[j], "distance": distance,
                           "same": distance <= found.same}
                          for i, j, distance in closest_pairs(found, PAIRS)],
        "images": [{"name": names[i]} | {key: _finite(column[i]) for key, column in known.items()}
                   for i in range(min(found.count, MOST_ROWS))],
        "left_out": [*extras.left_out],
    }, indent=1, allow_nan=False)


def pair_words(found: Diversity, distance: float) -> str:
    """What to say of two images that are so far apart."""
    if distance <= found.same:
        return "the same picture"
    return f"{distance / found.spread:.0%} of the usual distance"


def _line(figure: Figure) -> str:
    name = figure.name
    if figure.k is not None:
        name += f" ({'q' if figure.key == 'vendi' else 'k'} = {figure.k:g})"
    if figure.value is None:
        return f"{name}: {figure.missing}"
    return f"{name}: {figure.value:.4g}" + f" ({figure.more})" * bool(figure.more)


def _pairs(found: Diversity, names: Sequence[str]) -> list[str]:
    pairs = closest_pairs(found, PAIRS)
    if not pairs:
        return []
    return ["", f"Closest pairs (up to {SAME_PICTURE:.0%} of the usual distance, the root mean "
                "square of all pairs, two images are called the same):",
            *(f"{names[i]} and {names[j]}: {pair_words(found, distance)}"
              for i, j, distance in pairs)]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + "s" * (number != 1)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
