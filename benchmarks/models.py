"""The models under test."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.avatars_dit_measure import AvatarsDitMeasure
from benchmarks.measures import DigitsMeasure, Measure
from demo.avatars import AVATARS_SIZE
from demo.data import DIGITS_SIZE
from dev import ROOT

DIGITS = "digits"
Nodes = dict[str, tuple[str, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class ModelUnderTest:
    """title: for people; file: its weights; size: of an image, in pixels; nodes: those that give
    `model`, `positive` and `negative` for a class, as id -> (type, inputs); measure: makes what
    judges its images."""

    title: str
    file: Path
    size: int
    nodes: Callable[[int], Nodes]
    measure: Callable[[], Measure] = DigitsMeasure

    @property
    def hash(self) -> str:
        return _hash(self.file)


@functools.cache
def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights(name: str) -> Path:
    return ROOT / "demo" / "models" / f"{name}.safetensors"


def _adm(name: str) -> Callable[[int], Nodes]:
    def nodes(label: int) -> Nodes:
        return {"model": ("UncommonLoadADM", {"model_name": name}),
                "positive": ("UncommonClassConditioning", {"class_number": label}),
                "negative": ("UncommonClassConditioning", {"class_number": -1})}
    return nodes


def _dit(label: int) -> Nodes:
    return {"model": ("AvatarsDitLoader", {}),
            "positive": ("AvatarsDitClass", {"class_number": label}),
            "negative": ("AvatarsDitClass", {"class_number": -1})}


MODELS = {
    DIGITS: ModelUnderTest(title="digits (U-Net, EPS)", file=weights("digits"), size=DIGITS_SIZE,
                        nodes=_adm("digits")),
    "digits-distilled": ModelUnderTest(
        title="digits, guidance-distilled (no CFG)", file=weights("digits_distilled"),
        size=DIGITS_SIZE, nodes=_adm("digits_distilled")),
    "avatars-dit": ModelUnderTest(
        title="avatars-dit (DiT, flow)", file=weights("avatars_dit"), size=AVATARS_SIZE,
        nodes=_dit, measure=AvatarsDitMeasure),
}
