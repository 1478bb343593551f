"""How many of n images are both good and different, with novelty guidance and without.

    python dev.py bench novelty [--part PART ...] [--jobs 2] [--refresh] [--report]

Draws chains of queue items through the real KSampler, part by part, the most important first, and
writes benchmarks/results/novelty.json, .md and .png after each part. Chains that are drawn already
are kept (their images in benchmarks/work/, their figures in the results), so it can be stopped and
run again at any time, on another machine too.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.chains import (
    ANTITHETIC,
    Chain,
    Sampler,
    code_hash,
    draw,
    guidance_defaults,
    is_drawn,
    load,
)
from benchmarks.novelty_report import write_report
from benchmarks.novelty_rows import NOTHING_IN_IT, Earlier
from benchmarks.results import earlier_rows
from benchmarks.workers import Place, add_arguments, draw_all, worker_host, workers

SHIPPED = Sampler("euler", 20)  # as in example_workflows/novelty.json
OTHERS = (Sampler("euler_ancestral", 20), Sampler("euler_ancestral", 40))
CFG = 3.0
ALL_CFG = (1.0, 1.5, 2.0, 3.0, 6.0)
SWEPT_CFG = (1.5, 3.0, 6.0)
SWEPT_CLASSES = (0, 3, 8)

Inputs = dict[str, Any] | None
"""What Novelty Guidance has in place of its defaults; None: the node is not there."""

PLAIN: Inputs = None
DEFAULTS: Inputs = {}


ALWAYS = {"cfg_start_percent": 0.0}  # CFG at all noise levels


def ball(radius: float) -> dict[str, Any]:
    """SPELL as published: the whole run, its push not limited, CFG at all noise levels."""
    return ALWAYS | late_ball(radius)


def late_ball(radius: float) -> dict[str, Any]:
    """The same with CFG where it is by default."""
    return {"repulsion": "ball", "radius": radius, "strength": 2.0, "start_percent": 0.0,
            "end_percent": 1.0, ANTITHETIC: False}


def swept(repulsion: str, strengths: Iterable[float]) -> tuple[Inputs, ...]:
    return tuple({"repulsion": repulsion, "strength": strength} for strength in strengths)


def net(radius: float) -> dict[str, Any]:
    return {"repulsion": "net", "radius": radius}


BALL = ball(0.3)
LATE_CFG = late_ball(NOTHING_IN_IT)
FRONT = (PLAIN, DEFAULTS, LATE_CFG, *map(net, (0.15, 0.19, 0.22, 0.25)),
         *(net(radius) | ALWAYS for radius in (0.2, 0.25, 0.3)),
         *map(late_ball, (0.2, 0.25, 0.3)), *map(ball, (0.2, 0.25, 0.3, 0.35)),
         *(net(0.19) | {"strength": strength} for strength in (0.1, 0.9)), {"strength": 0.9})
STRENGTHS = (0.1, 0.3, 0.9)
SWEEP = (PLAIN, LATE_CFG, *map(ball, (0.2, 0.3, 0.4)),
         *swept("net", STRENGTHS), *swept("exact", STRENGTHS))
SHORT_SWEEP = (PLAIN, LATE_CFG, *map(ball, (0.2, 0.3)), *swept("net", STRENGTHS))
FEATURES = (DEFAULTS, *map(net, (0.15, 0.19, 0.25)),
            *(net(radius) | ALWAYS for radius in (0.19, 0.25, 0.3)))


@dataclass(frozen=True, kw_only=True)
class Part:
    """Every combination of what it names; memory: inputs of Novelty Memory."""

    name: str
    guidance: Sequence[Inputs]
    samplers: Sequence[Sampler] = (SHIPPED,)
    cfgs: Sequence[float] = (CFG,)
    labels: Sequence[int] = range(10)
    seeds: Sequence[int] = (0,)
    count: int = 128
    memory: dict[str, Any] | None = None

    def chains(self, defaults: dict[str, Any]) -> list[Chain]:
        return [Chain(sampler=sampler, cfg=cfg, label=label, seeds=seeds, count=self.count,
                      memory=self.memory, guidance=None if inputs is None else defaults | inputs)
                for seeds in self.seeds for sampler in self.samplers for cfg in self.cfgs
                for inputs in self.guidance for label in self.labels]


PARTS = (  # the most important first
    Part(name="default", guidance=(PLAIN, DEFAULTS, LATE_CFG, BALL)),
    Part(name="front", guidance=FRONT, labels=SWEPT_CLASSES),
    Part(name="worth", guidance=(PLAIN,), count=512),
    Part(name="cfg", guidance=(PLAIN, DEFAULTS), cfgs=ALL_CFG, labels=SWEPT_CLASSES),
    Part(name="early", guidance=({"early_push": "off"},), cfgs=(1.0,), labels=SWEPT_CLASSES),
    Part(name="sweep", guidance=SWEEP, cfgs=SWEPT_CFG, labels=SWEPT_CLASSES),
    Part(name="features", guidance=FEATURES, labels=SWEPT_CLASSES, memory={"space": "features"}),
    Part(name="seeds", guidance=(PLAIN, DEFAULTS, LATE_CFG, BALL), seeds=(1, 2)),
    Part(name="worth-cfg", guidance=(PLAIN,), cfgs=ALL_CFG, labels=SWEPT_CLASSES, count=512),
    Part(name="sweep-samplers", guidance=SHORT_SWEEP, samplers=OTHERS, cfgs=SWEPT_CFG,
         labels=SWEPT_CLASSES),
)


def draw_and_save(place: Place, chain: Chain) -> int:
    """Draws one chain; returns how many images it has."""
    drawn = draw(worker_host(place), chain)
    drawn.save(chain)
    return len(drawn.images)


def shipped_defaults(place: Place) -> dict[str, Any]:
    return guidance_defaults(worker_host(place))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench novelty", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.name for part in PARTS]
    parser.add_argument("--part", action="append", choices=names, help="only this part, or these")
    add_arguments(parser)
    parser.add_argument("--refresh", action="store_true",
                        help="draw again what was drawn with other guidance code than the present")
    arguments = parser.parse_args()

    with workers(arguments.jobs) as (pool, place):
        defaults = pool.submit(shipped_defaults, place).result()
        plan = [chain for part in PARTS for chain in part.chains(defaults)]
        earlier = Earlier(earlier_rows("novelty"))
        for part in PARTS:
            if part.name in (arguments.part or names) and not arguments.report:
                chains = part.chains(defaults)
                missing = [chain for chain in chains
                           if not is_drawn(chain) and earlier.row(chain) is None
                           or arguments.refresh and is_outdated(chain, earlier)]
                draw_all(pool, functools.partial(draw_and_save, place), part.name, missing)
                write_report(plan, earlier, defaults, SHIPPED, CFG)
        write_report(plan, earlier, defaults, SHIPPED, CFG)
    if outdated := sum(is_outdated(chain, earlier) for chain in plan):
        print(f"{outdated} chains were drawn with other guidance code than the present; "
              "--refresh draws them again.")


def is_outdated(chain: Chain, earlier: Earlier) -> bool:
    """Whether the present code might guide it differently."""
    if chain.guidance is None:
        return False
    drawn, row = load(chain), earlier.row(chain)
    code = drawn.code if drawn is not None else None if row is None else row["code"]
    return code not in (None, code_hash())


if __name__ == "__main__":
    main()
