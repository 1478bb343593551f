"""Pareto fronts of the peers: how many more distinct good images, at what loss of quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from benchmarks.peers.methods import METHODS
from benchmarks.peers.plan import plain
from benchmarks.peers.rows import MOST_LOST, Score

PALETTE = ("black", "tab:blue", "tab:red", "tab:orange", "tab:olive", "tab:brown", "tab:pink",
           "tab:purple", "0.55", "gold", "tab:green", "lime", "maroon", "navy", "tab:cyan", "teal",
           "skyblue", "slateblue", "dodgerblue")
MOST_SHOWN = 25  # points of good images that a setting in view may lose
COLOURS = dict(zip(METHODS, PALETTE, strict=True))


def plot(cases: Sequence, file: Path) -> None:
    """A panel for each of the `CaseFigures`: lines over strength at the model's CFG, hollow marks
    at other CFGs, stars for the best settings' long chains."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(cases), figsize=(1.5 + 5 * len(cases), 6.5),
                                     squeeze=False, layout="constrained")
    for one, panel in zip(cases, panels[0], strict=True):
        _draw(panel, one)
    panels[0][0].set_ylabel("distinct good images, times those of seed change only")
    handles = {label: handle for panel in panels[0]
               for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _draw(panel, one) -> None:
    methods: dict[str, list[Score]] = {}
    for score in one.swept:
        methods.setdefault(score.cell.setting.method, []).append(score)
    for method, found in methods.items():
        colour = COLOURS[method]
        here = [score for score in found if score.cell.cfg == (score.cell.setting.cfg
                                                              or one.case.cfg)]
        panel.plot(*_points(here), "s-" if method.startswith("ours") else "o-", color=colour,
                   markersize=5, linewidth=1.2, label=method)
        other = [score for score in found if score not in here]
        panel.plot(*_points(other), "o", color=colour, markersize=5, fillstyle="none")
    if one.count > 64:
        for score in one.best:
            if score.cell != plain(one.case):
                panel.errorbar(-100 * score.lost, score.gain, yerr=score.spread, fmt="*",
                               color=COLOURS[score.cell.setting.method], markersize=13,
                               capsize=3)
    panel.set_xlim(left=max(-MOST_SHOWN, panel.get_xlim()[0]))
    panel.axvspan(-100 * MOST_LOST, panel.get_xlim()[1], color="tab:green", alpha=0.06)
    panel.axhline(1, color="0.7", linewidth=0.8)
    panel.set(title=f"{one.case.name}, {one.case.sampler}, CFG {one.case.cfg:g}",
              xlabel="share of good images beside plain, points")
    panel.grid(alpha=0.3)


def _points(found: Sequence[Score]) -> tuple[list[float], list[float]]:
    return [-100 * score.lost for score in found], [score.gain for score in found]

