"""Chains that are drawn with the pack's code changed in one place, to see what the place is for."""

from __future__ import annotations

import argparse
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from benchmarks.chain_table import Table
from benchmarks.chains import Chain, draw
from benchmarks.models import DIGITS, MODELS
from benchmarks.peers.command import shipped_defaults, worker_host
from benchmarks.workers import Place, add_arguments, draw_all, workers
from demo.host import InProcessHost


@dataclass(frozen=True, kw_only=True)
class DesignChain(Chain):
    """design: the one that draws it, by what it changes of the code; empty if nothing."""

    design: str = ""


@dataclass(frozen=True, kw_only=True)
class Change(ABC):
    """What differs from the shipped one. model: of MODELS; guidance: inputs of Novelty Guidance;
    values: of the pack's code, by module and name; plain: no guidance at all."""

    what: str
    model: str = DIGITS
    guidance: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    plain: bool = False

    @abstractmethod
    def chains(self, defaults: dict[str, Any]) -> list[DesignChain]:
        """One for each class; defaults: inputs of Novelty Guidance."""

    @property
    def changes(self) -> str:
        """What its chains are told apart by, beside what is in their graphs."""
        return self.what if self.values else ""

    @contextmanager
    def applied(self, host: InProcessHost) -> Iterator[None]:
        with ExitStack() as stack:
            for (module, name), value in self.values.items():
                stack.enter_context(patch.object(host.pack(module), name, value))
            yield


def draw_design(designs: Iterable[Change], place: Place, chain: DesignChain) -> int:
    """Draws one chain; returns how many images it has."""
    host = worker_host(place)
    with ExitStack() as stack:
        if chain.design:
            stack.enter_context(next(one for one in designs if (one.model, one.changes) == (
                chain.model, chain.design)).applied(host))
        drawn = draw(host, chain)
    drawn.save(chain)
    return len(drawn.images)


def run(name: str, description: str | None, designs: Sequence[Change],
        draw_and_save: Callable[[Place, DesignChain], int],
        report: Callable[[list[dict[str, Any]]], None]) -> None:
    """The command of a benchmark: draws what is missing, and reports the rows of all that is there.

    draw_and_save: draw_design of these designs, as a function that another process can find.
    """
    parser = argparse.ArgumentParser(prog=f"python dev.py bench {name}", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    with workers(arguments.jobs) as (pool, place):
        defaults = pool.submit(shipped_defaults, place).result()
        table = Table(name)
        if not arguments.report:
            draw_all(pool, functools.partial(draw_and_save, place), name, table.missing(
                chain for one in designs for chain in one.chains(defaults)))
    measures = {model: MODELS[model].measure() for model in {one.model for one in designs}}
    report([{"model": one.model, **row} for one in designs
            for row in table.row(one.what, one.chains(defaults), measures[one.model])])
