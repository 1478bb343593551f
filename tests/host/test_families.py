"""Every family of models that the host knows: networks of their own around kinds of prediction that
the matrix has already."""

from __future__ import annotations

import gc
import re

import pytest
from torch import Tensor

from dev import ROOT

# The host has no gradient of how these turn by place.
NO_GRADIENT = ("anima", "cosmos-flow", "ernie", "joy-image")


def names(file: str) -> list[str]:
    """Of a file's models, read from its text: the module needs the host."""
    text = (ROOT / "demo" / "host" / file).read_text("utf-8").split("UNGUIDED")[0]
    return re.findall(r'^    "([a-z0-9-]+)": SmallModel', text, re.MULTILINE)


FAMILIES, MODELS = names("small_families.py"), names("small_models.py")


@pytest.fixture(scope="module")
def matrix(host, tmp_path_factory):
    from benchmarks.matrix_case import Matrix

    yield Matrix(host, tmp_path_factory.mktemp("families"))
    gc.unfreeze()


def test_all_are_drawn(matrix):
    from benchmarks.matrix_case import SMALL
    assert list(SMALL) == MODELS + FAMILIES


@pytest.mark.parametrize(("sampler", "scheduler", "cfg", "guidance"), [
    ("euler", "normal", 3.0, "novelty"), ("heun", "sgm_uniform", 3.0, "minority"),
    ("dpmpp_2m_sde", "simple", 3.0, "novelty+minority")])
@pytest.mark.parametrize("name", FAMILIES)
def test_pushes_are_the_closed_form(matrix, name, sampler, scheduler, cfg, guidance):
    from benchmarks.matrix_case import SMALL, Case

    if SMALL[name].video:  # Minority Guidance is for images
        guidance = "novelty"
    outcome = matrix.check(Case(model=name, sampler=sampler, scheduler=scheduler, cfg=cfg,
                                guidance=guidance))
    assert not outcome.failures and not outcome.refused and outcome.pushed


def self_guided(matrix, name: str, mode: str) -> Tensor:
    from benchmarks.matrix_case import Case

    model = matrix.node("UncommonSelfGuidedMinority", model=matrix.model(name), mode=mode,
                        scale=0.4, start_percent=0.0, end_percent=1.0, every_n_steps=1)
    matrix.told = []
    with matrix.listening():
        return matrix.draw(model, Case(model=name, sampler="euler", scheduler="normal", cfg=3.0,
                                       guidance="self"), steps=4)


@pytest.mark.parametrize("mode", ["free", "backprop"])
@pytest.mark.parametrize("name", MODELS + FAMILIES)
def test_self_guided_minority(matrix, name, mode):
    if mode == "backprop" and name in NO_GRADIENT:
        with pytest.raises(ValueError, match="rope.*Set mode to free"):
            self_guided(matrix, name, mode)
        return
    assert self_guided(matrix, name, mode).isfinite().all()
    assert "Pushed at" in matrix.told[-1][1]
