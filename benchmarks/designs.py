"""Chains that are drawn with the pack's code changed in one place, to see what the place is for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from benchmarks.chains import Chain, draw, guidance_defaults
from benchmarks.models import DIGITS
from benchmarks.peers.command import worker_host
from benchmarks.workers import Place
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


def shipped_defaults(place: Place) -> dict[str, Any]:
    return guidance_defaults(worker_host(place))
