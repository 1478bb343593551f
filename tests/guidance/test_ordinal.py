"""Ordinal classes: the paper's thresholds and labels, the split, and scores that give none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from guidance.ordinal import (
    automatic_classes,
    few_samples_warning,
    labels_of,
    quantile_thresholds,
    stratified_split,
)


def scores(n: int = 1000, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).exp()


@pytest.mark.parametrize("classes", [2, 7, 100])
def test_labels_are_those_of_the_authors_code(classes):
    values = scores()
    thresholds = quantile_thresholds(values, classes)
    q_th = [np.quantile(values.double().numpy(), (i + 1) / classes) for i in range(classes)]
    expected = []
    for ms in values.tolist():
        for j in range(classes):
            if (j == 0 or q_th[j - 1] < ms) and ms <= q_th[j] + 1e-6:
                expected.append(j)
                break
    assert labels_of(values, thresholds).tolist() == expected
    assert thresholds.numpy() == pytest.approx(q_th, rel=1e-6)
    assert thresholds[-1] == values.max()


def test_classes_are_equally_large():
    counts = torch.bincount(labels_of(scores(), quantile_thresholds(scores(), 10)))
    assert counts.tolist() == [100] * 10


def test_rarer_than_every_image_is_of_the_last_class():
    thresholds = quantile_thresholds(scores(), 10)
    assert labels_of(torch.tensor([-1.0, 1e9]), thresholds).tolist() == [0, 9]


def test_a_score_on_a_threshold_is_of_the_class_below_it():
    thresholds = torch.tensor([1.0, 2.0, 3.0])
    assert labels_of(thresholds, thresholds).tolist() == [0, 1, 2]


def test_split_is_stratified_and_deterministic():
    labels = labels_of(scores(), quantile_thresholds(scores(), 10))
    training, validation = stratified_split(labels, 0.05, seed=3)
    assert torch.bincount(labels[validation]).tolist() == [5] * 10
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(1000))
    assert torch.equal(validation, stratified_split(labels, 0.05, seed=3)[1])
    assert not torch.equal(validation, stratified_split(labels, 0.05, seed=4)[1])


def test_split_leaves_every_class_something_to_learn_from():
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    for share in (0.05, 0.5):
        training, validation = stratified_split(labels, share, seed=0)
        assert labels[training].unique().tolist() == [0, 1, 2]
        assert labels[validation].unique().tolist() == [1, 2]
    assert len(stratified_split(labels, 0.0, seed=0)[1]) == 0
    with pytest.raises(ValueError, match="share is 0.9; expected 0 to 0.5"):
        stratified_split(labels, 0.9, seed=0)


@pytest.mark.parametrize(("values", "classes", "message"), [
    ([1.0], 2, "There are 1 scored images"),
    ([], 2, "There are 0 scored images"),
    ([1.0, 2.0, 3.0], 5, "3 scored images for 5 classes.*3 classes or fewer"),
    ([1.0, 2.0], 1, "classes is 1; expected 2 or more"),
    ([0.5] * 50, 2, "All 50 images have the same score, 0.5"),
    ([1.0, float("nan"), 2.0, float("inf")], 2, "2 of 4 scores are not finite"),
    ([1.0] * 40 + [2.0] * 10, 10, "Of 10 classes only 2 .*2 different values among 50.*coincide"),
])
def test_scores_that_make_no_classes(values, classes, message):
    with pytest.raises(ValueError, match=message):
        quantile_thresholds(torch.tensor(values), classes)


@pytest.mark.parametrize(("images", "classes"), [(2, 2), (150, 2), (1000, 10), (10_000, 100),
                                                 (100_000, 100)])
def test_automatic_number_of_classes(images, classes):
    assert automatic_classes(images) == classes


def test_warning_names_the_number():
    labels = torch.arange(10).repeat_interleave(30)
    warning = few_samples_warning(labels, 10)
    assert warning.startswith("Only 30 training images for the smallest of 10 classes")
    assert "3 classes" in warning
    assert few_samples_warning(labels.repeat(2), 10) is None
    assert few_samples_warning(labels.repeat(2), 11).startswith("Only 0 training images")
