"""Minority scores of avatars, and how well they rank the rare ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.chains import WORK
from benchmarks.minority_sets import (
    MODEL,
    SHIPPED,
    Set,
    classifier_file,
    content_hash,
    load,
)
from demo.avatars import avatars
from demo.host import InProcessHost

FACES_SEED = 4  # faces that nothing was trained on
DRAWS = 5
SIGMAS = (0.8, 1.6, 3.2, 6.4, 12.8)
DISTANCES = ("latent_l2", "l2", "l1", "lpips_random")  # those that need no download


def model(host: InProcessHost):
    """The MODEL, as the loader node gives it."""
    return host.run({"model": {"class_type": "UncommonLoadADM",
                               "inputs": {"model_name": MODEL.stem}},
                     "shown": {"class_type": "PreviewAny", "inputs": {"source": ["model", 0]}}}
                    ).outputs["model"][0]


def scores(host: InProcessHost, images: Tensor, sigma: float, distances: Sequence[str],
           draws: int = DRAWS) -> dict[str, Tensor]:
    """Minority scores `[n]` of images `[n, 3, size, size]` in [-1, 1] by each of the distances;
    the model restores the images once for all of them."""
    denoise = host.pack("nodes._scorer").HostDenoiser(model(host), None, sigma)
    load_distance = host.pack("guidance.distances").load_distance
    noise_for = host.pack("guidance.minority_score").noise_for
    measures = {name: load_distance(name) for name in distances}
    total = {name: [] for name in distances}
    with torch.inference_mode():
        for start in range(0, len(images), 100):
            part = images[start:start + 100]
            sums = dict.fromkeys(distances, 0.0)
            for draw in range(draws):
                noise = torch.stack([noise_for(f"avatar {start + i}", 0, draw, one.shape)
                                     for i, one in enumerate(part)])
                restored = denoise(part, noise).clamp(-1, 1)
                for name, measure in measures.items():
                    sums[name] = sums[name] + measure(part, restored) / draws
            for name in distances:
                total[name].append(sums[name])
    return {name: torch.cat(parts) for name, parts in total.items()}


def faces(common: int, rare: int) -> tuple[Tensor, Tensor]:
    """Drawn faces `[common + rare, 3, size, size]` and whether each is rare, in the order of the
    endless series, which is skipped where one kind is complete."""
    images, flags, missing = [], [], {False: common, True: rare}
    for number in itertools.count():
        if not any(missing.values()):
            return torch.cat(images), torch.tensor(flags)
        image, attributes = avatars(1, seed=FACES_SEED, first=number)
        kind = bool(attributes.any())
        if missing[kind]:
            missing[kind] -= 1
            images.append(image)
            flags.append(kind)
    raise AssertionError


def ranking_file() -> Path:
    return WORK / "minority" / f"ranking-{content_hash(MODEL)[:16]}.json"


def ranking(host: InProcessHost, common: int = 1500, rare: int = 500) -> list[dict]:
    """A row for each noise level and distance: ROC AUC of "has a rare attribute", and the rank
    correlation of the common faces' scores with their brightness and saturation."""
    images, is_rare = faces(common, rare)
    ordinary = images[~is_rare]
    brightness = ordinary.mean(dim=(1, 2, 3))
    saturation = (ordinary.amax(dim=1) - ordinary.amin(dim=1)).mean(dim=(1, 2))
    rows = []
    for sigma in SIGMAS:
        for name, score in scores(host, images, sigma, DISTANCES).items():
            common_scores = score[~is_rare]
            rows.append({"sigma": sigma, "distance": name,
                         "auc": round(float(roc_auc_score(is_rare, score)), 4),
                         "with_brightness": rank_correlation(common_scores, brightness),
                         "with_saturation": rank_correlation(common_scores, saturation)})
    return rows


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    return round(float(torch.corrcoef(ranks)[0, 1]), 4)


def scores_file(wanted: Set) -> Path:
    return wanted.file.with_suffix(f".scores-{content_hash(classifier_file(SHIPPED))[:8]}.npy")


def score_set(host: InProcessHost, wanted: Set) -> None:
    """Keeps the minority scores of a set's images, by the distance and the noise level of the
    scores that the shipped classifier learnt."""
    shipped = host.pack("guidance.minority_checkpoint").load_classifier(classifier_file(SHIPPED))
    found = scores(host, load(wanted), shipped.sigma, [shipped.distance], draws=1)
    np.save(scores_file(wanted), found[shipped.distance].numpy())


def load_scores(wanted: Set) -> Tensor | None:
    """`[count]`, or None where the set is not scored to its whole count: sets that differ in
    nothing else share a file."""
    file = scores_file(wanted)
    found = torch.from_numpy(np.load(file)) if file.is_file() else torch.empty(0)
    return found[:wanted.count] if len(found) >= wanted.count else None
