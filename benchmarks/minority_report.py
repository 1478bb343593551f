"""The figures of the sets that `benchmarks.minority` has drawn so far: JSON, tables, pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from benchmarks.avatars_measures import AvatarsMeasure
from benchmarks.minority_costs import load_costs
from benchmarks.minority_orderings import RAREST, orderings_table
from benchmarks.minority_scores import DISTANCES, FACES_SEED, load_scores, ranking_file
from benchmarks.minority_sets import CANDIDATES, GUIDANCE, Patch, Set, load
from benchmarks.results import RESULTS, circumstances, earlier_rows, write_json
from demo.avatars import ATTRIBUTES, avatars
from dev import ROOT

COLUMNS = {"rare": "rare", **{name: name for name in ATTRIBUTES}, "several": "several",
           "intact": "intact", "rare_intact": "rare and intact", "avgknn": "AvgkNN", "lof": "LOF",
           "score": "score", "precision": "precision", "recall": "recall", "density": "density",
           "coverage": "coverage", "seconds": "s/image"}
COMMAND = "python dev.py bench minority"
README = ROOT / "README.md"
SHORT = ("rare", "intact", "precision", "recall", "avgknn", "seconds")  # what the README shows
README_FIGURES = re.compile("(?<=<!-- figures: from benchmarks/results/minority.md -->\n).*?"
                            "(?=<!-- end of figures -->)", re.DOTALL)
KEY, FIGURES = "set", "figures"  # of a row in the results
REAL_COUNT = 9000  # drawn faces, of which 500 are rare
SHOWN = 12  # images a row of the grids
LEGEND = """
Rare: share of images with a rare attribute (glasses, hat, side view; several: more than one of
them), told by an independent reader. Intact: share that the reader takes for a whole face. AvgkNN
(k = 5) and LOF (k = 20): against 5,000 drawn faces, larger is rarer. Score: mean minority score.
Precision and recall (Kynkäänniemi et al.), density and coverage (Naeem et al.): k = 5, against the
5,000; recall and coverage grow with n. All in the reader's features; it saw neither the model's
training faces nor anything generated. Seconds: median of 3 batches of 20 images, by the image, all
methods in turn in one process.
"""


@dataclass(frozen=True)
class Row:
    """images: None where a set was drawn on another machine, and only its figures are here."""

    wanted: Set
    images: Tensor | None
    figures: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return {"method": self.wanted.name, KEY: self.wanted.key, "steps": self.wanted.steps,
                "patch": None if self.wanted.patch is None else asdict(self.wanted.patch),
                FIGURES: {name: round(value, 4) for name, value in self.figures.items()}}


class Earlier:
    """The figures of earlier results: of sets that may have been drawn on another machine, since
    their images are not kept with the results."""

    def __init__(self):
        parts = earlier_rows("minority", "sets")
        self.ranks: list[dict] = earlier_rows("minority", "ranking")
        self._figures = {(row["method"], row[KEY]): row[FIGURES]
                         for name in parts for row in parts[name]}

    def figures(self, wanted: Set) -> dict[str, float]:
        found = self._figures.get((wanted.name, wanted.key), {})
        return found if found.get("count") == wanted.count else {}


def write_report(plan: Mapping[str, Sequence[Set]],
                 defaults: Mapping[str, Mapping[str, Any]]) -> None:
    """benchmarks/results/minority.json, .md and the pictures. plan: the sets of each part."""
    measure, earlier = AvatarsMeasure(), Earlier()
    parts = {name: measured(measure, sets, earlier) for name, sets in plan.items()}
    if top := best_of(measure, parts.get("top", []), earlier):
        parts["main"].append(top)
    drawn = drawn_faces(measure)
    ranks = (json.loads(ranking_file().read_text("utf-8")) if ranking_file().is_file()
             else earlier.ranks)
    write_json("minority", {
        "summary": summary({row.wanted.name: row.figures for row in parts["main"]}, ranks),
        "ranking": ranks, "defaults": defaults,
        "sets": {name: [row.as_json() for row in rows] for name, rows in parts.items()},
        **circumstances(COMMAND)})
    (RESULTS / "minority.md").write_text(text(parts, drawn, ranks), "utf-8")
    readme = README.read_text("utf-8")
    figures = "\n".join([*table([drawn[0], *parts["main"]], SHORT), ""])
    README.write_text(README_FIGURES.sub(lambda _: figures, readme, count=1), "utf-8")
    matplotlib.use("Agg")
    by_rarity = {row.wanted.name: row for row in parts["main"] if row.images is not None and (
        row.wanted.patch is None or row.wanted.name.startswith("class, rarity"))}
    if len(by_rarity) > 1:
        grid(by_rarity)
        densities(measure, by_rarity)
    if parts["main"]:
        front(parts)


def measured(measure: AvatarsMeasure, sets: Sequence[Set], earlier: Earlier) -> list[Row]:
    """What is drawn of the sets. The images may be here and what else was measured of them not."""
    rows, costs = [], load_costs()
    for wanted in sets:
        images, figures = load(wanted), earlier.figures(wanted)
        drawn = images is not None and len(images) == wanted.count
        if not (drawn or figures):
            continue
        if drawn:
            figures = figures | measure.summary(images)
            if (scores := load_scores(wanted)) is not None:
                figures["score"] = scores.mean().item()
        if wanted.name in costs:
            figures = figures | {"seconds": costs[wanted.name]}
        rows.append(Row(wanted, images if drawn else None, figures))
    return rows


def drawn_faces(measure: AvatarsMeasure) -> list[Row]:
    """What real faces come to, and real faces that are rare: the best that a model can do."""
    images, attributes = avatars(REAL_COUNT, seed=FACES_SEED)
    rare = images[attributes.any(dim=1)]
    return [Row(Set(name=name, count=len(some)), some, measure.summary(some))
            for name, some in (("drawn", images[:1000]), ("drawn, rare ones only", rare))]


def best_of(measure: AvatarsMeasure, rows: Sequence[Row], earlier: Earlier) -> Row | None:
    """The rarest quarter of the candidates, by minority score."""
    if not rows:
        return None
    wanted = replace(rows[0].wanted, name=RAREST, count=CANDIDATES // 4)
    if rows[0].images is None or (scores := load_scores(rows[0].wanted)) is None:
        known = earlier.figures(wanted)
        return Row(wanted, None, known) if known else None
    kept = scores.topk(CANDIDATES // 4).indices
    kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))]
    images = rows[0].images[kept]
    figures = measure.summary(images) | {"score": scores[kept].mean().item()}
    if (seconds := load_costs().get("plain")) is not None:
        figures["seconds"] = 4 * seconds
    return Row(wanted, images, figures)


def summary(figures: Mapping[str, Mapping[str, float]], ranks: Sequence[Mapping]) -> dict:
    """Flat headline figures; what is not drawn yet is left out."""
    found = {}
    plain = figures.get("plain")
    if plain and (rare := figures.get("class, rarity 99")):
        found |= {"rare_rate_ratio": rare["rare"] / plain["rare"],
                  "rare_intact_ratio": rare["rare_intact"] / plain["rare_intact"],
                  "precision_ratio": rare["precision"] / plain["precision"],
                  "recall_ratio": rare["recall"] / plain["recall"]}
        if "seconds" in rare:
            found["seconds_ratio"] = rare["seconds"] / plain["seconds"]
    if plain and (common := figures.get("class, rarity 0")):
        found["majority_precision_ratio"] = common["precision"] / plain["precision"]
    if ranks:
        found["score_auc"] = max(row["auc"] for row in ranks)
    return {name: round(value, 4) for name, value in found.items()}


def text(parts: Mapping[str, Sequence[Row]], drawn: Sequence[Row], ranks: Sequence[Mapping]
         ) -> str:
    lines = ["# Minority guidance on avatars", "",
             f"Made by `{COMMAND}`, as far as its parts are drawn.", "",
             *table([*drawn, *parts["main"]]), "", LEGEND.strip(), ""]
    titles = {"scale": "Scale", "samplers": "Other samplers, plain", "beta": "Mixed mode",
              "window": "Window of guidance", "ablation": "Other classifiers",
              "free": "Without a classifier"}
    for name, title in titles.items():
        if parts.get(name):
            lines += [f"## {title}", "", *table(parts[name]), ""]
    if orderings := orderings_table({row.wanted.name: row.figures
                                     for rows in parts.values() for row in rows}):
        lines += ["## Beside the paper", "", *orderings, ""]
    if ranks:
        lines += ["## Does the score rank rare above common?", "",
                  "ROC AUC of \"has a rare attribute\" over 1,500 common and 500 rare faces, five "
                  "noise draws each. Brackets: rank correlation of the common faces' scores with "
                  "brightness, and with saturation.", "", *ranking_table(ranks), ""]
    return "\n".join(lines)


def table(rows: Sequence[Row], figures: Sequence[str] = tuple(COLUMNS)) -> list[str]:
    """Markdown, without the columns that no row has."""
    figures = [name for name in figures if any(name in row.figures for row in rows)]
    titles = ["method", "n", *(COLUMNS[figure] for figure in figures)]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in rows:
        cells = [cell(row.figures.get(figure)) for figure in figures]
        lines.append(f"| {row.wanted.name} | {row.wanted.count} | {' | '.join(cells)} |")
    return lines


def cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.{2 if value >= 1 else 3 if value >= 0.01 else 4}f}"


def ranking_table(ranks: Sequence[Mapping]) -> list[str]:
    lines = [f"| sigma | {' | '.join(DISTANCES)} |", f"|{'---|' * (1 + len(DISTANCES))}"]
    for sigma in sorted({row["sigma"] for row in ranks}):
        found = {row["distance"]: row for row in ranks if row["sigma"] == sigma}
        cells = [f"{row['auc']:.3f} ({row['with_brightness']:.2f}, {row['with_saturation']:.2f})"
                 for row in map(found.get, DISTANCES)]
        lines.append(f"| {sigma:g} | {' | '.join(cells)} |")
    return lines


def grid(rows: Mapping[str, Row]) -> None:
    """The same seeds in each row, as figures 4 and 6 of the paper."""
    from matplotlib import pyplot

    order = [name for name in ("class, rarity 0", "plain", "class, rarity 50", "class, rarity 99")
             if name in rows]
    figure, panels = pyplot.subplots(len(order), 1, figsize=(10, 0.95 * len(order)),
                                     layout="constrained", squeeze=False)
    for name, panel in zip(order, panels[:, 0], strict=True):
        images = rows[name].images[:SHOWN].clamp(-1, 1).permute(2, 0, 3, 1)
        panel.imshow((images.flatten(1, 2) + 1).numpy() / 2)
        panel.set(xticks=[], yticks=[])
        panel.set_ylabel(name.removeprefix("class, "), rotation=0, ha="right", va="center")
    figure.savefig(RESULTS / "minority_grid.png", dpi=110)
    pyplot.close(figure)


def densities(measure: AvatarsMeasure, rows: Mapping[str, Row]) -> None:
    """How LOF is distributed, as figure 5 of the paper."""
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6.5, 4), layout="constrained")
    lof = {name: measure.local_outlier_factor(row.images) for name, row in rows.items()}
    edges = np.linspace(0.9, np.quantile(np.concatenate([*lof.values()]), 0.995), 60)
    for name, values in lof.items():
        panel.hist(values, edges, density=True, histtype="step", linewidth=1.8,
                   label=name.removeprefix("class, "))
    panel.set(xlabel="local outlier factor (larger: rarer)", ylabel="density")
    panel.legend()
    panel.grid(alpha=0.3)
    figure.savefig(RESULTS / "minority_lof.png", dpi=110)
    pyplot.close(figure)


def front(parts: Mapping[str, Sequence[Row]]) -> None:
    """Rate of rare images against precision: a line per method, a point per strength."""
    from matplotlib import pyplot

    def swept(patch: Patch | None) -> str | None:
        if patch is None or patch.node != GUIDANCE:
            return None
        if patch.inputs["mode"] == "mixed":
            return "mixed, beta varied"
        return f"class at rarity {patch.inputs['rarity']:g}, scale varied"

    lines: dict[str, list[Row]] = {}
    for row in [*parts["scale"], *parts["beta"]]:
        lines.setdefault(swept(row.wanted.patch), []).append(row)
    figure, panel = pyplot.subplots(figsize=(7.5, 5), layout="constrained")
    for name, rows in lines.items():
        panel.plot([row.figures["precision"] for row in rows],
                   [row.figures["rare"] for row in rows], "o-", label=name)
    for row in parts["main"]:
        if swept(row.wanted.patch) is None:
            panel.plot(row.figures["precision"], row.figures["rare"], "s", label=row.wanted.name)
    panel.set(xlabel="precision", ylabel="share of images with a rare attribute")
    panel.legend(fontsize=8)
    panel.grid(alpha=0.3)
    figure.savefig(RESULTS / "minority_front.png", dpi=110)
    pyplot.close(figure)
