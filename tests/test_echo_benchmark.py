"""The measure of echoes on sets whose figures are known."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.echo import CLASSES, EACH, METHODS, figures, file_of, graph, text
from benchmarks.measures import DigitsMeasure
from benchmarks.results import RESULTS
from demo.data import digits


@pytest.fixture(scope="module")
def measure() -> DigitsMeasure:
    return DigitsMeasure()


@pytest.fixture(scope="module")
def training() -> torch.Tensor:
    """The first EACH digits of each class."""
    images, labels = digits()
    return torch.cat([images[labels == label][:EACH] for label in range(CLASSES)])


def test_the_training_set_is_all_echo(measure, training):
    found = figures(measure, training)
    assert (found["echo_features"], found["echo_pixels"], found["good"]) == (1, 1, 1)
    assert found["nearest_pixels"] < 0.01


def test_noise_is_none(measure, training):
    noise = torch.rand(training.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = figures(measure, noise)
    assert (found["echo_features"], found["echo_pixels"], found["good"]) == (0, 0, 0)
    assert found["nearest_pixels"] > 2


def test_a_half_of_each(measure, training):
    """Every other image moved so far that it is no echo any more."""
    mixed = training.clone()
    mixed[::2] = -mixed[::2]
    assert figures(measure, mixed)["echo_pixels"] == pytest.approx(0.5)


def test_only_the_memory_differs():
    plain, seeded = graph(3, None), graph(3, {"strength": 0.3})
    assert seeded["memory"]["inputs"]["mode"] == "frozen"
    assert seeded["guided"]["inputs"]["batch_repulsion"] == 0
    for name in ("latent", "positive", "negative", "model"):
        assert plain[name] == seeded[name]
    same = {"model": None}
    assert plain["sampled"]["inputs"] | same == seeded["sampled"]["inputs"] | same
    assert len({file_of(3, None), file_of(4, None), file_of(3, {"strength": 0.3})}) == 3


def test_the_committed_report_is_that_of_the_committed_figures():
    found = json.loads((RESULTS / "echo.json").read_text("utf-8"))
    assert list(found["methods"]) == list(METHODS)
    assert text(found["methods"], found["command"]) == (RESULTS / "echo.md").read_text("utf-8")
