"""What the paper (Um and Ye, 2301.12334) orders, and whether it is so on the avatars."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

CLASSES = ("class, rarity 0", "class, rarity 50", "class, rarity 99")
RAREST = "rarest quarter of plain, by score"


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """figure: that rises over these sets in this order; source: where the paper says so; why: it
    is not so here, if it is not."""

    what: str
    source: str
    figure: str
    sets: tuple[str, ...]
    why: str = ""


def _at(rarity: int, *scales: int) -> tuple[str, ...]:
    return tuple(f"class, rarity {rarity}, scale {scale}" for scale in scales)


ORDERINGS = (
    Ordering(what="A rarer class gives rarer images", source="figures 4 and 5", figure="lof",
             sets=CLASSES),
    Ordering(what="The same, by the distance to real ones", source="figure 4", figure="avgknn",
             sets=CLASSES),
    Ordering(what="The same, by the model's own score", source="figure 4", figure="score",
             sets=CLASSES),
    Ordering(what="A larger scale goes farther into the rarest class", source="figure 5",
             figure="lof", sets=_at(99, 1, 2, 3, 4, 6)),
    Ordering(what="A larger scale draws the typical closer together", source="figure 5",
             figure="lof_spread", sets=_at(0, 6, 1)),
    Ordering(what="A larger scale draws the rarest closer together", source="figure 5",
             figure="lof_spread", sets=_at(99, 6, 1),
             why="scale 1 leaves most images common, and rare faces lie farther apart than those "
                 "even where they are drawn (spread .14 to .15, common ones .06)"),
    Ordering(what="Guidance finds rarer images than keeping the rarest of many",
             source="experiments", figure="avgknn", sets=("plain", RAREST, CLASSES[-1])),
    Ordering(what="Typical images are the better ones", source="experiments", figure="precision",
             sets=(CLASSES[-1], "plain", CLASSES[0])),
    Ordering(what="More classes tell the rarest better", source="appendix C.2", figure="rare",
             sets=("rarity 99, 2 classes", "rarity 99, 10 classes", "rarity 99, 20 classes",
                   *_at(99, 3))),
    Ordering(what="A fifth of the data still gives rarer images", source="appendix C",
             figure="avgknn", sets=("plain", "rarity 99, a fifth of the data")),
    Ordering(what="Mixed: a larger beta gives rarer images", source="appendix C.4", figure="lof",
             sets=tuple(f"mixed, beta {beta}" for beta in (1, 3, 6, 12, 18, 24))),
)
NAMES = {"lof": "LOF", "lof_spread": "spread of LOF", "avgknn": "AvgkNN"}


def orderings_table(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Markdown, of the orderings whose sets are all drawn. figures: of each set, by its name."""
    lines = []
    for one in ORDERINGS:
        values = [figures.get(name, {}).get(one.figure) for name in one.sets]
        if None in values:
            continue
        holds = all(a < b for a, b in itertools.pairwise(values))
        name = NAMES.get(one.figure, one.figure)
        verdict = "yes" if holds else f"no{one.why and ': '}{one.why}"
        lines.append(f"| {one.what} | {one.source} | {name}: {'; '.join(one.sets)} | "
                     f"{', '.join(f'{value:.4g}' for value in values)} | {verdict} |")
    return lines and ["| the paper | where | what should rise | here | so? |",
                      "|---|---|---|---|---|", *lines]
