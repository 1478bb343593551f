"""Rare avatars on demand: how rare, how good, and what it costs.

    python dev.py bench minority [--part PART ...] [--jobs 2] [--report]

Draws sets of images through the real KSampler, part by part, the most important first, and writes
benchmarks/results/minority.json, .md and pictures after each part; on a GPU where there is one.
What is drawn is kept (in benchmarks/work/), so it can be stopped and run again at any time.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import minority_costs, minority_scores, workers
from benchmarks.chains import WORK, start_host
from benchmarks.minority_report import write_report
from benchmarks.minority_scores import ranking_file
from benchmarks.minority_sets import (
    BOOST, CANDIDATES, GUIDANCE, SELF, SHIPPED, STEPS, Patch, Set, draw)
from benchmarks.workers import Place
from demo.host import InProcessHost
from demo.minority_classifier import ClassifierRecipe, train_classifier
from demo.workflow import widget_defaults

Defaults = dict[str, dict[str, Any]]
"""The widgets of each of the three nodes with the values that the page gives them."""

CPU = not torch.cuda.is_available()
SWEPT = 500  # images of a set in a sweep
SAMPLERS = (("euler", "normal", STEPS, 4000), ("dpmpp_2m", "karras", STEPS, 1000),
            ("heun", "karras", STEPS, 1000), ("euler_ancestral", "normal", 250, SWEPT))
SCALES = (1.0, 2.0, 3.0, 4.0, 6.0)
OTHER_CLASSIFIERS = {  # appendix C of the paper: how many classes, how much data, which distance
    "2 classes": ClassifierRecipe(classes=2),
    "10 classes": ClassifierRecipe(classes=10),
    "20 classes": ClassifierRecipe(classes=20),
    "a fifth of the data": ClassifierRecipe(count=4000),
    "l1": ClassifierRecipe(distance="l1"),
    "from scratch": ClassifierRecipe(frozen=False, iterations=3000),
}
BETAS = (1.0, 3.0, 6.0, 12.0, 18.0, 24.0)
WINDOWS = ((3.0, 0.0, 0.35), (3.0, 0.0, 0.65), (3.0, 0.0, 1.0), (3.0, 0.25, 0.75),
           (2.0, 0.25, 0.75), (3.0, 0.5, 1.0))  # scale, start and end percent


def by_class(defaults: Defaults, rarity: float, scale: float | None = None,
             classifier: str = SHIPPED) -> Patch:
    inputs = defaults[GUIDANCE] | {"rarity": rarity, "mode": "class"}
    del inputs["beta"]  # of the other mode
    return Patch(node=GUIDANCE, classifier=classifier,
                 inputs=inputs if scale is None else inputs | {"scale": scale})


def mixed(defaults: Defaults, beta: float | None = None) -> Patch:
    inputs = defaults[GUIDANCE] | {"mode": "mixed"}
    return Patch(node=GUIDANCE, classifier=SHIPPED,
                 inputs=inputs if beta is None else inputs | {"beta": beta})


def within(patch: Patch, start: float, end: float) -> Patch:
    return replace(patch, inputs=patch.inputs | {"start_percent": start, "end_percent": end})


def other(defaults: Defaults, node: str, **inputs: Any) -> Patch:
    return Patch(node=node, inputs=defaults[node] | inputs)


def main_sets(defaults: Defaults) -> list[Set]:
    return [Set(name="plain"),
            *(Set(name=f"class, rarity {rarity:g}", patch=by_class(defaults, rarity))
              for rarity in (99.0, 50.0, 0.0)),
            Set(name="mixed", patch=mixed(defaults)),
            Set(name="self-guided, backprop", patch=other(defaults, SELF, mode="backprop")),
            Set(name="self-guided, free", patch=other(defaults, SELF, mode="free")),
            Set(name="boost and skip", patch=other(defaults, BOOST)),
            Set(name="boost and skip, gamma 4, skip 3",  # the paper's for faces
                patch=other(defaults, BOOST, gamma=4.0, skip=3))]


def top_sets(defaults: Defaults) -> list[Set]:
    return [Set(name="candidates", count=CANDIDATES)]


def sampler_sets(defaults: Defaults) -> list[Set]:
    return [Set(name=f"plain, {sampler}, {scheduler}, {steps} steps", sampler=sampler,
                scheduler=scheduler, steps=steps, count=count)
            for sampler, scheduler, steps, count in SAMPLERS]


def scale_sets(defaults: Defaults) -> list[Set]:
    return [Set(name=f"class, rarity {rarity:g}, scale {scale:g}", count=SWEPT,
                patch=by_class(defaults, rarity, scale))
            for rarity in (99.0, 0.0) for scale in SCALES]


def beta_sets(defaults: Defaults) -> list[Set]:
    return [Set(name=f"mixed, beta {beta:g}", count=SWEPT, patch=mixed(defaults, beta))
            for beta in BETAS]


def window_sets(defaults: Defaults) -> list[Set]:
    return [Set(name=f"rarity 99, scale {scale:g}, from {start:g} to {end:g}", count=SWEPT,
                patch=within(by_class(defaults, 99.0, scale), start, end))
            for scale, start, end in WINDOWS]


def free_sets(defaults: Defaults) -> list[Set]:
    return [*(Set(name=f"self-guided, {mode}, scale {scale:g}, every {every}", count=SWEPT,
                  patch=other(defaults, SELF, mode=mode, scale=scale, every_n_steps=every))
              for mode, scale, every in (("backprop", 0.4, 1), ("backprop", 1.5, 5),
                                         ("free", 0.4, 1), ("free", 1.5, 1))),
            *(Set(name=f"boost and skip, gamma {gamma:g}, skip {skip}", count=SWEPT,
                  patch=other(defaults, BOOST, gamma=gamma, skip=skip))
              for gamma, skip in ((1.5, 1), (2.0, 2), (4.0, 8)))]


def other_classifiers(defaults: Defaults) -> list[Set]:
    return [Set(name=f"rarity 99, {name}", count=SWEPT,
                patch=by_class(defaults, 99.0, classifier=name.replace(" ", "-")))
            for name in OTHER_CLASSIFIERS]


PARTS: dict[str, Callable[[Defaults], list[Set]]] = {  # the most important first
    "main": main_sets, "scale": scale_sets, "samplers": sampler_sets,
    "beta": beta_sets, "top": top_sets, "window": window_sets, "ablation": other_classifiers,
    "free": free_sets}
SCORED_PARTS = ("main", "top")


@functools.cache
def worker_host(place: Place) -> InProcessHost:
    """That of a worker process; it finds the classifiers that this benchmark trained."""
    host = workers.worker_host(place, cpu=CPU)
    import folder_paths

    folder_paths.add_model_folder_path("minority_classifiers", str(WORK / "minority"))
    return host


def draw_set(place: Place, wanted: Set) -> int:
    return draw(worker_host(place), wanted)


def node_defaults(place: Place) -> Defaults:
    nodes = worker_host(place).pack_nodes
    return {name: widget_defaults(nodes[name].GET_NODE_INFO_V1())
            for name in (GUIDANCE, SELF, BOOST)}


def train_others(place: Place) -> None:
    """The classifiers of the part "ablation", one after the other; each resumes."""
    host = start_host(WORK / "minority" / "host", place[1], cpu=CPU)
    for name, recipe in OTHER_CLASSIFIERS.items():
        target = WORK / "minority" / f"{name.replace(' ', '-')}.safetensors"
        if not target.is_file():
            train_classifier(host, recipe, target)


def rank_faces(place: Place) -> None:
    if not ranking_file().is_file():
        rows = minority_scores.ranking(worker_host(place))
        ranking_file().parent.mkdir(parents=True, exist_ok=True)
        ranking_file().write_text(json.dumps(rows), "utf-8")


def measure_costs(place: Place, sets: Sequence[Set]) -> None:
    if not minority_costs.costs_file().is_file():
        minority_costs.measure_costs(worker_host(place), sets)


def score_set(place: Place, wanted: Set) -> None:
    """Minority scores as those that the shipped classifier learnt."""
    if minority_scores.load_scores(wanted) is None:
        minority_scores.score_set(worker_host(place), wanted)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python dev.py bench minority", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["costs", "score", *PARTS]
    parser.add_argument("--part", action="append", choices=names, help="only this part, or these")
    workers.add_arguments(parser)
    arguments = parser.parse_args()

    with workers.workers(arguments.jobs) as (pool, place):
        defaults = pool.submit(node_defaults, place).result()
        for name in [] if arguments.report else arguments.part or names:
            if name == "costs":
                pool.submit(measure_costs, place, main_sets(defaults)).result()
            elif name == "score":
                pool.submit(rank_faces, place).result()
            else:
                if name == "ablation":
                    train_apart(train_others, place)
                sets = PARTS[name](defaults)
                in_parallel(pool, name, functools.partial(draw_set, place), sets)
                if name in SCORED_PARTS:
                    in_parallel(pool, f"{name}: scores", functools.partial(score_set, place), sets)
            write_report({name: make(defaults) for name, make in PARTS.items()}, defaults)
        write_report({name: make(defaults) for name, make in PARTS.items()}, defaults)


def train_apart(work: Callable[..., None], *arguments: Any) -> None:
    """In a process of its own, since its host has another folder."""
    with workers.processes(1) as worker:
        worker.submit(work, *arguments).result()


def in_parallel(pool: ProcessPoolExecutor, title: str, work: Callable[[Set], Any],
                sets: Sequence[Set]) -> None:
    for _ in tqdm(pool.map(work, sets), desc=title, total=len(sets), unit="set"):
        pass


if __name__ == "__main__":
    main()
