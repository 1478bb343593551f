"""What counts as new beside a long history, on sets whose figures are known."""

from __future__ import annotations

import json

import torch

from benchmarks.long_history import figures, text
from benchmarks.measures import DigitsMeasure
from benchmarks.results import RESULTS
from demo.data import digits


def test_only_good_images_far_from_all_remembered_are_new():
    measure = DigitsMeasure()
    images, labels = digits()
    threes = images[labels == 3]
    features = measure.features(threes)
    remembered = features[:100]
    known = figures(measure, threes[:64], remembered, 3)
    assert (known["new"], known["good"]) == (0, 1) and known["nearest"] < 0.05
    others = figures(measure, threes[100:], remembered, 3)
    far = torch.cdist(features[100:], remembered).min(dim=1).values >= measure.tau(3)
    assert 0 < others["new"] == int(far.sum()) < len(far)
    assert figures(measure, images[labels == 8][:64], remembered, 3)["new"] == 0


def test_the_committed_report_is_that_of_the_committed_figures():
    found = json.loads((RESULTS / "long_history.json").read_text("utf-8"))
    report = (RESULTS / "long_history.md").read_text("utf-8")
    assert text(found["rows"], found["command"]) == report
