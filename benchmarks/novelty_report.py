"""The figures of the chains that `benchmarks.novelty` has drawn so far: JSON, tables, a plot."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

import matplotlib

from benchmarks.chains import EARLY, Chain, Sampler
from benchmarks.novelty_rows import (
    Earlier, Group, Row, average, best, common, distinct_real, grouped, measured, ratio, some,
    worth)
from benchmarks.results import RESULTS, circumstances, command_line, write_json
from dev import ROOT

COLUMNS = {"distinct_good": "D(128)", "distinct_good_1.3tau": "D at 1.3 tau", "good": "good",
           "class_accuracy": "class", "precision": "precision", "recall": "recall",
           "density": "density", "coverage": "coverage", "vendi": "Vendi",
           "nearest_in_history": "to history", "seconds": "s/image"}
SHORT = ("distinct_good", "good", "seconds")  # what the README shows
README_FIGURES = re.compile("(?<=<!-- figures: from benchmarks/results/novelty.md -->\n).*?"
                            "(?=<!-- end of figures -->)", re.DOTALL)
COLOURS = ("0.6", "tab:orange", "tab:red", "tab:cyan", "tab:blue", "tab:purple", "tab:green",
           "tab:brown", "tab:olive")
FRONTS = (("ball", "radius", False), ("ball", "radius", True), ("net", "radius", False),
          ("net", "radius", True), ("net", "strength", True), ("exact", "strength", True),
          ("features", "radius", False), ("features", "radius", True))
LEGEND = """
D(128): how many of 128 images, in the order they came, are good (inside the manifold of the real
digits, and of the asked class) and at least tau away from every good image before them; tau is the
median distance between nearest neighbours among the real digits of the class. Good: share of good
images. Class: share of images of the asked class. Precision and recall: Kynkäänniemi et al.;
density and coverage: Naeem et al.; all with k = 5 against the real digits of the class. To history:
mean distance to the nearest image before. All in features of an independent classifier.
distinct_real_digits: D(128) of 128 real digits of a class, each measured by the others; mean over
ten classes.
"""


def summarise(groups: Sequence[Group], defaults: dict[str, Any], cfg: float) -> dict[str, Any]:
    """The headline figures, of groups of one sampler; None where chains are not drawn yet."""
    ours = [group for group in groups if some(group).is_default(defaults)]
    plain = [group for group in groups if some(group).method == "plain"]

    def at_cfg(groups: Iterable[Group]) -> list[Group]:
        return [group for group in groups if some(group).chain.cfg == cfg]

    here, plain_here = best(at_cfg(ours)), best(at_cfg(plain))
    ball = best(at_cfg(group for group in groups
                       if some(group).method == "ball" and not some(group).is_late))
    late_cfg = best(at_cfg(group for group in groups if some(group).is_late
                           and not some(group).pushes))
    over = common([here, plain_here]) if here and plain_here else ()
    images, bound = worth(here, plain_here) if over else (None, False)
    return {
        "distinct_ratio_same_cfg": ratio(here, plain_here),
        "distinct_ratio_best_cfg": ratio(best(ours), best(plain)),
        "distinct_ratio_ball": ratio(here, ball),
        "distinct_ratio_late_cfg": ratio(here, late_cfg),
        "worth_plain_images": images,
        "worth_plain_images_is_lower_bound": bound,
        "good_delta": average(here, "good", over) - average(plain_here, "good", over)
        if over else None,
        "chains": len(over),
    }


def write_report(plan: Sequence[Chain], earlier: Earlier, defaults: dict[str, Any],
                 shipped: Sampler, cfg: float) -> None:
    """benchmarks/results/novelty.json, .md and .png, and the README's table, of what is drawn."""
    rows = measured(plan, earlier)
    if not rows:
        return
    groups = grouped(rows)
    of_shipped = [group for group in groups if some(group).chain.sampler == shipped]
    summary = {name: round(value, 3) if isinstance(value, float) else value
               for name, value in (summarise(of_shipped, defaults, cfg)
                                   | {"distinct_real_digits": distinct_real()}).items()}
    facts = circumstances(command_line("novelty"))
    write_json("novelty", {"summary": summary, **facts, "sampler": str(shipped), "cfg": cfg,
                           "defaults": defaults, "rows": [row.as_json() for row in rows]})
    (RESULTS / "novelty.md").write_text(tables(groups, summary, defaults, shipped, cfg, facts),
                                        "utf-8")
    update_readme(on_all_classes(groups, shipped, cfg), defaults)
    plot(of_shipped, defaults)


def on_all_classes(groups: Iterable[Group], sampler: Sampler, cfg: float) -> list[Group]:
    return [group for group in groups if len({label for label, _ in group}) == 10
            and some(group).chain.sampler == sampler and some(group).chain.cfg == cfg]


def update_readme(groups: Sequence[Group], defaults: dict[str, Any]) -> None:
    """Puts the short table of the settings that have all classes between the README's marks."""
    if any(some(group).is_default(defaults) for group in groups):
        readme = ROOT / "README.md"
        lines = table(groups, defaults, spread=True, figures=SHORT)
        text = "\n".join([*lines, ""])
        written = README_FIGURES.sub(lambda _: text, readme.read_text("utf-8"), count=1)
        readme.write_text(written, "utf-8")


def tables(groups: Sequence[Group], summary: dict[str, Any], defaults: dict[str, Any],
           shipped: Sampler, cfg: float, facts: dict[str, Any]) -> str:
    """The Markdown page: the defaults on all classes, then every setting."""
    wide = on_all_classes(groups, shipped, cfg)
    seed_sets = {len({seeds for _, seeds in group}) for group in wide}
    lines = ["# Novelty guidance: distinct good images", "",
             f"`python dev.py bench novelty`, {facts['date']}, {facts['machine']['processor']}, "
             f"ComfyUI {facts['versions']['comfyui']}, torch {facts['versions']['torch']}", "",
             *(f"- `{name}`: {'not measured yet' if value is None else value}"
               for name, value in summary.items()), "",
             f"## The digits, {shipped}, CFG {cfg:g}", "",
             "Mean and standard deviation over ten classes; sets of seeds: "
             f"{max(seed_sets, default=0)}.", "", *table(wide, defaults, spread=True), "",
             LEGEND.strip(), "",
             "## Every setting", "", "Means over the chains drawn.", ""]
    samplers = dict.fromkeys(some(group).chain.sampler for group in groups)
    for sampler in samplers:
        lines += [f"### {sampler}", "", *table(
            [group for group in groups if some(group).chain.sampler == sampler], defaults), ""]
    return "\n".join(lines)


def table(groups: Sequence[Group], defaults: dict[str, Any], *, spread: bool = False,
          figures: Iterable[str] = tuple(COLUMNS)) -> list[str]:
    """Markdown rows, by CFG and method."""
    titles = ["CFG", "method", "chains", *(COLUMNS[figure] for figure in figures)]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for group in sorted(groups, key=lambda group: some(group).chain.cfg):
        cells = []
        for figure in figures:
            values = [row.figures[figure] for row in group.values()]
            digits = 1 if mean(values) > 4 else 2
            cell = f"{mean(values):.{digits}f}"
            if spread and len(values) > 1 and figure != "seconds":
                cell += f" ± {stdev(values):.{digits}f}"
            cells.append(cell)
        row = some(group)
        lines.append(f"| {row.chain.cfg:g} | {name(row, defaults)} | {len(group)} | "
                     f"{' | '.join(cells)} |")
    return lines


def name(row: Row, defaults: dict[str, Any]) -> str:
    """A method with that of its inputs which is swept."""
    guidance = row.chain.guidance
    if guidance is None:
        return "plain"
    shipped = " (the defaults)" if row.is_default(defaults) else ""
    start = guidance["cfg_start_percent"]
    late = f", CFG from {start:g}" if start else ""
    if not row.pushes:
        return f"no push{late}"
    early = "" if guidance[EARLY] == defaults[EARLY] else f", early_push {guidance[EARLY]}"
    strength = f", strength {guidance['strength']:g}" if row.method != "ball" else ""
    fitted = "from the memory" if row.chain.memory is None else "by default"
    radius = f"{guidance['radius']:g}" if guidance["radius"] else fitted
    return f"{row.method}, radius {radius}{strength}{late}{early}{shipped}"


def on_line(row: Row, method: str, varied: str, late: bool, defaults: dict[str, Any]) -> bool:
    """Whether a row belongs to a method's front over one input, the other being the default."""
    other = {"radius": "strength", "strength": "radius"}[varied]
    guidance = row.chain.guidance
    return (row.method == method and row.is_late == late and row.pushes and guidance[varied] > 0
            and (method == "ball" or guidance[other] == defaults[other]))


def plot(groups: Sequence[Group], defaults: dict[str, Any]) -> None:
    """D(128) against the share of good images: a panel per swept CFG, a line per method."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    plain = [group for group in groups if some(group).method == "plain"]
    guided = [group for group in groups if some(group).method != "plain"]
    settings = Counter(some(group).chain.cfg for group in guided)
    cfgs = sorted(cfg for cfg in settings if settings[cfg] == max(settings.values()))
    if not cfgs:
        return
    figure, panels = pyplot.subplots(1, len(cfgs), figsize=(3 + 3.4 * len(cfgs), 5), sharex=True,
                                     sharey=True, squeeze=False, layout="constrained")
    for cfg, panel in zip(cfgs, panels[0], strict=True):
        draw_front(panel, plain, [g for g in guided if some(g).chain.cfg == cfg], defaults, cfg)
    panels[0][0].set_ylabel("distinct good images of 128")
    figure.legend(*panels[0][-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(RESULTS / "novelty.png", dpi=110)
    pyplot.close(figure)


def draw_front(panel, plain: Sequence[Group], guided: Sequence[Group], defaults: dict[str, Any],
               cfg: float) -> None:
    """One panel: plain at every CFG, the others at this one, over the chains that all have."""
    over = common([*plain, *guided])
    lines = {"seed change only, CFG varied": sorted(plain, key=lambda g: some(g).chain.cfg)}
    for method, varied, late in FRONTS:
        start = f", CFG from {defaults['cfg_start_percent']:g}" if late else ""
        lines[f"{method}, {varied} varied{start}"] = sorted(
            (group for group in guided if on_line(some(group), method, varied, late, defaults)),
            key=lambda group, varied=varied: some(group).chain.guidance[varied])

    def point(group: Group) -> tuple[float, float]:
        return average(group, "good", over), average(group, "distinct_good", over)

    for (label, line), colour in zip(lines.items(), COLOURS, strict=True):
        if len(line) > 1:
            panel.plot(*zip(*map(point, line), strict=True), "o-", color=colour, markersize=4,
                       label=label)
    for group in [*plain, *guided]:
        if some(group).is_default(defaults):
            panel.plot(*point(group), "*", color="tab:blue", markersize=15, label="the defaults")
        elif some(group).method == "plain" and some(group).chain.cfg == cfg:
            panel.plot(*point(group), "ks", markersize=7, label="seed change only, this CFG")
    panel.set(title=f"CFG {cfg:g}", xlabel="share of good images")
    panel.grid(alpha=0.3)
