"""Which chains are drawn, in the order of what they tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.chains import Chain, Sampler
from benchmarks.models import DIGITS, MODELS
from benchmarks.peers.methods import (
    LOWER_CFG, METHODS, OF_BATCHES, OF_CFG, OURS, PLAIN, WITHOUT_CFG, Inputs, Setting, middle)
from guidance.starts import affordable

SWEPT = 64
FINAL = 256
SEED_SETS = (0, 1, 2)
BATCH = 4
BATCHES = 200


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model as it is sampled. cfg: the one people use; others: as many more; labels: swept;
    all_labels: its classes, for batches."""

    name: str
    model: str
    sampler: Sampler
    cfg: float
    others: tuple[float, ...] = ()
    labels: tuple[int, ...] = (0, 3, 8)
    all_labels: Sequence[int] = range(10)

    @property
    def missing(self) -> str | None:
        """Why it cannot be drawn, if it cannot."""
        file = MODELS[self.model].file
        return None if file.is_file() else f"{self.name}: skipped, {file} is not there."

    def methods(self) -> list[str]:
        useless = WITHOUT_CFG if self.others else OF_CFG
        if affordable(self.sampler.steps) == 1:
            useless += WITHOUT_CFG[1:]
        return [name for name in METHODS if name not in useless]


@dataclass(frozen=True)
class Cell:
    """One setting at one CFG: what is averaged over classes and seeds."""

    case: Case
    setting: Setting
    cfg: float

    def chain(self, defaults: Inputs, label: int, count: int, seeds: int = 0) -> Chain:
        return self.setting.chain(defaults, model=self.case.model, sampler=self.case.sampler,
                                  cfg=self.cfg, label=label, seeds=seeds, count=count)

    def batches(self, defaults: Inputs, label: int) -> Chain:
        """This class's share of all batches."""
        return self.setting.batches(
            defaults, batch=BATCH, model=self.case.model, sampler=self.case.sampler, cfg=self.cfg,
            label=label, count=BATCH * BATCHES // len(self.case.all_labels))


CASES = (
    Case(name="digits", model=DIGITS, sampler=Sampler("euler", 20), cfg=3.0, others=(1.5, 6.0)),
    Case(name="digits-distilled", model="digits-distilled", sampler=Sampler("euler", 20), cfg=1.0),
    Case(name="avatars-dit", model="avatars-dit", sampler=Sampler("euler", 20), cfg=3.0,
         others=(1.5, 6.0), labels=(0, 1), all_labels=range(8)),
    Case(name="digits-distilled-4", model="digits-distilled", sampler=Sampler("euler", 4),
         cfg=1.0),
)


def swept_cells(case: Case) -> list[Cell]:
    """Every setting at the model's CFG."""
    return [Cell(case, setting, setting.cfg or case.cfg)
            for name in case.methods() for setting in METHODS[name]]


def other_cells(case: Case) -> list[Cell]:
    """Each method's middle setting at the other CFGs; plain ones are there as lower CFG."""
    return [Cell(case, middle(name), cfg) for cfg in case.others
            for name in case.methods() if name != LOWER_CFG]


def sweep(case: Case, defaults: Inputs) -> Iterator[Chain]:
    """The middle settings in all classes, then the others in all but the first."""
    middles = {name: middle(name) for name in case.methods()}
    cells = swept_cells(case)
    for cell in cells:
        if cell.setting == middles[cell.setting.method]:
            yield from (cell.chain(defaults, label, SWEPT) for label in case.labels)
    for cell in cells:
        if cell.setting != middles[cell.setting.method]:
            yield from (cell.chain(defaults, label, SWEPT) for label in case.labels[1:])


def sweep_cfg(case: Case, defaults: Inputs) -> Iterator[Chain]:
    """One class at the other CFGs."""
    return (cell.chain(defaults, case.labels[1], SWEPT) for cell in other_cells(case))


def final(cells: Sequence[Cell], defaults: Inputs, sets: Iterable[int]) -> Iterator[Chain]:
    """The best settings, long and with these sets of seeds."""
    return (cell.chain(defaults, label, FINAL, seeds) for seeds in sets
            for cell in cells for label in cell.case.labels)


def batches(cells: Sequence[Cell], defaults: Inputs) -> Iterator[Chain]:
    return (cell.batches(defaults, label) for cell in cells for label in cell.case.all_labels)


def of_batches(case: Case) -> list[Cell]:
    """What is drawn in batches only."""
    return [Cell(case, setting, case.cfg) for setting in OF_BATCHES]


def plain(case: Case) -> Cell:
    return Cell(case, middle(PLAIN), case.cfg)


def ours(case: Case) -> Cell:
    """Our defaults."""
    return Cell(case, middle(OURS), case.cfg)
