"""Ordinal classes of rarity: quantiles of the minority score.

Um, Lee and Ye, "Don't Play Favorites" (2301.12334), 4.1, with the labels of the authors' code
(construct_ms_dataset.py): class 0 is the most typical, the last the rarest.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_CLASSES = 100  # of the paper
GOOD_SHARE = 100  # images a class, that the automatic number of classes leaves
FEW = 50  # images a class, below which a warning is due


def check_scores(scores: Tensor) -> None:
    """ValueError unless these are at least two finite scores `[images]` that differ."""
    if scores.ndim != 1 or len(scores) < 2:
        raise ValueError(f"There are {scores.numel()} scored images; a classifier needs at least "
                         "2, and some hundred to be of use. Score more images.")
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise ValueError(f"{bad} of {len(scores)} scores are not finite, so they cannot be "
                         "ranked. Take these images out, or score them again with another "
                         "distance.")
    if scores.min() == scores.max():
        raise ValueError(f"All {len(scores)} images have the same score, {scores[0].item():g}, so "
                         "none is rarer than another. Score different images, or use another "
                         "distance or sigma.")


def automatic_classes(images: int) -> int:
    """As many classes as leave GOOD_SHARE images to each, from 2 to MOST_CLASSES."""
    return max(2, min(MOST_CLASSES, images // GOOD_SHARE))


def quantile_thresholds(scores: Tensor, classes: int) -> Tensor:
    """The upper bounds of the classes `[classes]`, float32: quantiles (i + 1) / L of the scores
    `[images]`.

    Raises ValueError for scores that cannot be ranked, for fewer images than classes, and where
    so many scores are alike that classes would be empty.
    """
    check_scores(scores)
    if classes < 2:
        raise ValueError(f"The number of classes is {classes}; expected 2 or more.")
    if len(scores) < classes:
        raise ValueError(f"There are {len(scores)} scored images for {classes} classes. Score more "
                         f"images, or ask for {len(scores)} classes or fewer.")
    quantiles = torch.arange(1, classes + 1, dtype=torch.float64) / classes
    exact = scores.double().sort().values
    # torch.quantile refuses more than 16 million values; linear interpolation, as numpy's.
    place = quantiles * (len(exact) - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=len(exact) - 1)
    thresholds = torch.lerp(exact[low], exact[high], place - low).float()
    thresholds[-1] = exact[-1]
    filled = len(labels_of(scores, thresholds).unique())
    if filled < classes:
        raise ValueError(
            f"Of {classes} classes only {filled} would hold an image: many scores are alike "
            f"({len(exact.unique())} different values among {len(exact)}), so thresholds coincide. "
            "Ask for fewer classes, take double images out, or score with more noise draws.")
    return thresholds


def labels_of(scores: Tensor, thresholds: Tensor) -> Tensor:
    """Classes `[images]`, int64: class i where thresholds[i - 1] < score <= thresholds[i]."""
    # The last threshold is left out, so that what lies above all of them is of the last class.
    return torch.bucketize(scores.float(), thresholds[:-1].to(scores.device))


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices for training and for validation, rising: of each class its share, chosen by the
    seed; a class of two or more images gives at least one to validation and keeps one.

    With a share of 0 there is no validation.
    """
    if not 0 <= share <= 0.5:
        raise ValueError(f"The validation share is {share}; expected 0 to 0.5.")
    generator = torch.Generator().manual_seed(seed)
    validation = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        count = min(max(round(share * len(members)), 1), len(members) - 1) if share else 0
        chosen = torch.randperm(len(members), generator=generator)[:count]
        validation[members[chosen]] = True
    return (~validation).nonzero()[:, 0], validation.nonzero()[:, 0]


def few_samples_warning(labels: Tensor, classes: int) -> str | None:
    """A warning where the smallest class has fewer training images than a classifier can learn
    from; labels: those of the training images."""
    smallest = int(torch.bincount(labels, minlength=classes).min())
    if smallest >= FEW:
        return None
    advice = max(2, len(labels) // GOOD_SHARE)
    better = (f"Better: {advice} classes, or more images." if advice < classes
              else "Better: more images.")
    return (f"Only {smallest} training images for the smallest of {classes} classes; below {FEW} "
            f"the classifier learns them by heart. {better}")
