"""The demo's command line."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measures import DigitsMeasure
from demo import run
from demo.data import digits


def test_too_few_runs_are_refused_before_anything_starts(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo", "--runs", str(run.LEAST_RUNS - 1)])
    monkeypatch.setattr(run, "Server", None)
    with pytest.raises(SystemExit):
        run.main()
    assert f"need {run.LEAST_RUNS} or more" in capsys.readouterr().err


def test_the_least_number_of_runs_can_be_measured():
    images, labels = digits()
    threes = images[labels == 3][:run.LEAST_RUNS]
    figures = DigitsMeasure().summary(threes, 3)
    assert all(torch.isfinite(torch.tensor(float(value))) for value in figures.values())
