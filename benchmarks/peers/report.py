"""The figures of what is drawn so far: JSON, tables, a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.models import MODELS
from benchmarks.peers.fronts import plot
from benchmarks.peers.plan import CASES, SWEPT, Case, Cell, of_batches, ours, plain
from benchmarks.peers.rows import (
    D, FILE, GOOD, MOST_LOST, POINTS, Figures, InBatches, Measured, Pair, Score, best_cells, scores,
    shown_count)
from benchmarks.results import RESULTS, circumstances, command_line, write_json

COLUMNS = {GOOD: "good", "class_accuracy": "class", "recall": "recall", "coverage": "coverage",
           "vendi": "Vendi", "nearest_in_history": "to history"}
LEGEND = """
D(n): how many of n images, in the order they came, are good (inside the manifold of the real ones,
and of the asked class) and at least tau away from every good image before them; tau is the median
distance between nearest neighbours among the real images of the class. Gain: D(n) over that of
seed change only at the CFG of the model's section, mean over classes and sets of seeds; this is
what the plot shows, against how much the share of good images changed. Good: share of good images;
good_real: that of the real ones, each measured by the others, as is D(n) of real images. Class:
share of images of the asked class. Recall: Kynkäänniemi et al.; coverage: Naeem et al., k = 5. To
history: mean distance to the nearest image before. All in features of an independent judge. ±
beside what the defaults are ahead by: standard error of the mean over the batches. Other CFGs were
drawn in few classes, and not all strengths in all: compare the gains of rows with as many chains.
In the plot, lines go over the strengths swept, hollow marks are at other CFGs, stars are
the best settings' long chains with their standard deviation, and green is within two points of
plain; what loses more than 25 points is out of view. The peers' banks were not lost when the memory
was reopened half-way.
"""


@dataclass(frozen=True)
class CaseFigures:
    """What is drawn of a case. count: images a chain of the best settings has; swept, best: scores
    of all settings at 64 images, and of the best ones at `count`."""

    case: Case
    count: int
    swept: list[Score]
    best: list[Score]
    batches: dict[Cell, dict[int, InBatches]]


def collect(measured: Measured, case: Case) -> CaseFigures | None:
    """None while plain chains are missing."""
    swept = scores(measured, case)
    if not swept:
        return None
    count = shown_count(measured, case)
    cells = best_cells(case, swept)
    long = [] if count == SWEPT else scores(measured, case, count)
    best = [one for one in (long or swept) if one.cell in cells]
    found = ((cell, measured.batches(cell)) for cell in cells + of_batches(case))
    return CaseFigures(case, count, swept, best, {cell: of for cell, of in found if of})


def write_report(measured: Measured) -> None:
    """benchmarks/results/peers.json, .md and .png, of what is drawn."""
    cases = [found for case in CASES if not case.missing
             and (found := collect(measured, case)) is not None]
    if not cases:
        return
    summary: dict[str, Any] = {}
    for one in cases:
        prefix = one.case.name.replace("-", "_")
        summary |= {f"{prefix}_{name}": round(value, 3) if isinstance(value, float) else value
                    for name, value in headline(measured, one).items()}
    facts = circumstances(command_line("peers"))
    write_json("peers", {"summary": summary, **facts, "defaults": measured.defaults,
                         "cases": [as_json(measured, one) for one in cases]})
    (RESULTS / "peers.md").write_text(page(measured, cases, summary, facts), "utf-8")
    plot(cases, RESULTS / "peers.png")


def headline(measured: Measured, one: CaseFigures) -> dict[str, Any]:
    """Ours are the defaults; the best peer is the one with the highest gain over all strengths, at
    a share of good images within two points of plain. D over the classes and sets of seeds that
    plain, ours and every peer have: a peer that has fewer chains yet does not drop out."""
    case, count = one.case, one.count
    base, mine = (measured.cell(cell, count) for cell in (plain(case), ours(case)))
    rivals = [score for score in one.best if is_peer(score.cell)]
    over = sorted(set(base).intersection(
        mine, *(measured.cell(score.cell, count) for score in rivals)))
    fair = [score for score in rivals if score.lost <= MOST_LOST]
    peer = max(fair, key=lambda score: score.gain, default=None)
    anyhow = max(rivals, key=lambda score: score.gain, default=None)

    def distinct(found: dict[Pair, Figures]) -> float | None:
        return mean(found[pair].at[count][D] for pair in over) if over else None

    def of(score: Score | None) -> float | None:
        return None if score is None else distinct(measured.cell(score.cell, count))

    in_batches = {cell: mean(two.vendi for two in found.values())
                  for cell, found in one.batches.items()}
    good = {cell: mean(two.good for two in found.values()) for cell, found in one.batches.items()}
    least = good.get(plain(case), 1.0) - MOST_LOST
    batch_peer = max((cell for cell in in_batches if is_peer(cell) and good[cell] >= least),
                     key=in_batches.get, default=None)
    return {
        "images": count, "chains": len(over),
        "distinct_ours": distinct(mine), "distinct_plain": distinct(base),
        "distinct_best_peer": of(peer), "best_peer": title(peer.cell) if peer else None,
        "distinct_best_peer_any_quality": of(anyhow),
        "best_peer_any_quality": title(anyhow.cell) if anyhow else None,
        "good_real": mean(good_real(measured, case)),
        "good_delta": mean(mine[pair].at[count][GOOD] - base[pair].at[count][GOOD]
                           for pair in over) if over else None,
        "batch_vendi_plain": in_batches.get(plain(case)),
        "batch_vendi_ours": in_batches.get(ours(case)),
        "batch_vendi_best_peer": in_batches.get(batch_peer),
        "batch_best_peer": title(batch_peer) if batch_peer else None,
    }


def is_peer(cell: Cell) -> bool:
    return not cell.setting.is_ours and cell != plain(cell.case)


def title(cell: Cell) -> str:
    """A setting in words."""
    setting = cell.setting
    strength = "" if setting.strength is None or setting.cfg else f" {setting.strength:g}"
    return f"{setting.method}{strength}, CFG {cell.cfg:g}"


def as_json(measured: Measured, one: CaseFigures) -> dict[str, Any]:
    """All that the tables and the plot are made of."""
    def row(score: Score, count: int) -> dict[str, Any]:
        setting, found = score.cell.setting, measured.cell(score.cell, count)

        def file(pair: Pair) -> str:
            label, seeds = pair
            return score.cell.chain(measured.defaults, label, count, seeds).file.stem

        return {"method": setting.method, "strength": setting.strength, "cfg": score.cell.cfg,
                "guidance": setting.guidance, "memory": setting.memory,
                "patches": [list(patch) for patch in setting.patches],
                "gain": round(score.gain, 4), "good_lost": round(score.lost, 4),
                "chains": [{FILE: file((label, seeds)), "class": label, "seeds": seeds,
                            "seconds": round(of.seconds, 4), "code": of.code,
                            "curves": {str(n): {name: round(value, 4)
                                                for name, value in figures.items()}
                                       for n, figures in of.at.items()}}
                           for (label, seeds), of in found.items()]}

    return {"name": one.case.name, "sampler": str(one.case.sampler), "cfg": one.case.cfg,
            "images": one.count, "swept": [row(score, SWEPT) for score in one.swept],
            "best": [] if one.count == SWEPT else [row(score, one.count) for score in one.best],
            "batches": [{"setting": title(cell), "classes": [
                {FILE: cell.batches(measured.defaults, label).file.stem} | asdict(two)
                for label, two in found.items()]} for cell, found in one.batches.items()]}


def page(measured: Measured, cases: Sequence[CaseFigures], summary: dict[str, Any],
         facts: dict[str, Any]) -> str:
    lines = ["# Novelty guidance beside its peers", "",
             f"`python dev.py bench peers`, {facts['date']}, {facts['machine']['processor']}, "
             f"ComfyUI {facts['versions']['comfyui']}, torch {facts['versions']['torch']}", "",
             *(f"- `{name}`: {'not measured yet' if value is None else value}"
               for name, value in summary.items()), "", "![fronts](peers.png)", "",
             LEGEND.strip(), ""]
    for one in cases:
        lines += [f"## {MODELS[one.case.model].title}: {one.case.sampler}, CFG {one.case.cfg:g}",
                  "", f"### One image after the other: the best settings, {one.count} images", "",
                  "The best within two points of plain's share of good images, and the best "
                  "regardless. Mean and standard deviation over classes and sets of seeds.", "",
                  *table(measured, one.best, one.count, spread=True), "",
                  "### D(n)", "", *curves(measured, one), ""]
        if one.batches:
            lines += ["### Batches of 4, nothing remembered", "", *batch_table(one), ""]
        lines += [f"### Every setting swept, {SWEPT} images", "",
                  *table(measured, one.swept, SWEPT), ""]
    return "\n".join(lines)


def table(measured: Measured, found: Sequence[Score], count: int, *,
          spread: bool = False) -> list[str]:
    """Markdown rows, the highest gain first."""
    heads = ["method", "chains", "gain", f"D({count})", *COLUMNS.values(), "s/image"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for score in sorted(found, key=lambda one: -one.gain):
        chains = list(measured.cell(score.cell, count).values())
        cells = [cell([one.at[count][figure] for one in chains], spread)
                 for figure in (D, *COLUMNS)]
        seconds = f"{mean(one.seconds for one in chains):.2f}"
        lines.append(f"| {title(score.cell)} | {len(chains)} | {score.gain:.2f} | "
                     f"{' | '.join(cells)} | {seconds} |")
    return lines


def cell(values: Sequence[float], spread: bool) -> str:
    digits = 1 if mean(values) > 4 else 2
    text = f"{mean(values):.{digits}f}"
    return text + f" ± {stdev(values):.{digits}f}" if spread and len(values) > 1 else text


def good_real(measured: Measured, case: Case) -> list[float]:
    """The share of real images that are good, each measured by the others, of each class."""
    measure = measured.measure(case.model)
    return [measure.good_real(label).float().mean().item() for label in case.labels]


def curves(measured: Measured, one: CaseFigures) -> list[str]:
    """D at each n of the best settings, means over their chains, and of real images."""
    points = [n for n in POINTS if n <= one.count]
    lines = [f"| method | {' | '.join(f'n = {n}' for n in points)} |",
             f"|{'---|' * (len(points) + 1)}"]
    for score in sorted(one.best, key=lambda score: -score.gain):
        chains = measured.cell(score.cell, one.count).values()
        cells = [f"{mean(chain.at[n][D] for chain in chains):.1f}" for n in points]
        lines.append(f"| {title(score.cell)} | {' | '.join(cells)} |")
    measure = measured.measure(one.case.model)
    real = [measure.distinct_real(label) for label in one.case.labels]
    cells = [f"{mean(int(curve[n - 1]) for curve in real):.1f}" if n <= min(map(len, real)) else ""
             for n in points]
    return [*lines, f"| real images | {' | '.join(cells)} |"]


def batch_table(one: CaseFigures) -> list[str]:
    ours_too = one.batches.get(ours(one.case), {})
    lines = ["| method | Vendi of a batch | the defaults are ahead by | good | class | s/image |",
             "|---|---|---|---|---|---|"]
    for setting, found in sorted(one.batches.items(),
                                 key=lambda pair: -mean(two.vendi for two in pair[1].values())):
        vendi, *others = (f"{mean(getattr(two, name) for two in found.values()):.3f}"
                          for name in ("vendi", "good", "agreement", "seconds"))
        lines.append(f"| {title(setting)} | {vendi} | {lead(ours_too, found)} | "
                     f"{' | '.join(others)} |")
    return lines


def lead(ours_too: Mapping[int, InBatches], found: Mapping[int, InBatches]) -> str:
    """By how much our batches' Vendi scores are higher, with the standard error of that mean over
    the same batches; nothing where they are not both there."""
    ahead = [mine - theirs for label in ours_too.keys() & found.keys()
             for mine, theirs in zip(ours_too[label].each, found[label].each, strict=False)]
    if len(ahead) < 2 or found is ours_too:
        return ""
    return f"{mean(ahead):+.3f} ± {stdev(ahead) / len(ahead) ** 0.5:.3f}"
