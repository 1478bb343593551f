"""The numbers of Diversity Report: what each is, what it means, and what it lacks if missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .diversity import SAME_PICTURE, Against, Diversity

OUTLIER = 1.5  # LOF above which an image counts as an outlier


@dataclass(frozen=True, kw_only=True)
class Features:
    """What distances are measured in. name: as chosen; meaning: in a few words; dim: how many
    numbers an image becomes."""

    name: str
    meaning: str
    dim: int


@dataclass(frozen=True, kw_only=True)
class History:
    """The images compared with a novelty memory. distance: `[n]`, to the nearest remembered;
    novelty: `[n]` or empty; remembered: how many; why: what was wrong where there is none."""

    name: str
    remembered: int = 0
    distance: Tensor | None = None
    novelty: Tensor | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What `measure` does not find. lpips: mean of all pairs, lpips_net its network, lpips_why what
    it lacks; scores: `[s]`, minority scores, scores_of what they were scored by."""

    lpips: float | None = None
    lpips_net: str = ""
    lpips_why: str = ""
    scores: Tensor | None = None
    reference_scores: Tensor | None = None
    scores_of: str = ""
    history: History | None = None
    left_out: Sequence[str] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number. value: None where it is missing, and `missing` says why; more: other numbers
    that belong to it; definition: how it is computed; reading: what is good and bad."""

    key: str
    name: str
    value: float | None
    definition: str
    reading: str
    k: float | None = None
    more: str = ""
    missing: str = ""


def figures(found: Diversity, extras: Extras) -> list[Figure]:
    """All figures, in the order of the report."""
    return [*_of_the_set(found, extras),
            *(() if found.against is None else _against(found, found.against)),
            *_of_the_scores(extras), *_of_the_history(extras)]


def _needs(what: str, needed: int, have: int) -> str:
    return f"needs {needed} {what} or more, and there {'is' if have == 1 else 'are'} {have}"


def _of_the_set(found: Diversity, extras: Extras) -> list[Figure]:
    settings, n = found.settings, found.count
    pair = "" if n > 1 else _needs("images", 2, n)
    knn, lof = settings.k_knn, settings.k_lof
    outliers = None if found.lof is None else int((found.lof > OUTLIER).sum())
    return [
        Figure(key="vendi", name="Vendi score", value=found.vendi, k=settings.vendi_q,
               more=f"of {n} at most",
               definition=f"exp of the entropy of order q = {settings.vendi_q:g} of the "
                          "eigenvalues of the matrix of cosine similarities over n (Friedman and "
                          "Dieng, 2022)",
               reading="how many different images there are in effect: 1 if all are the same, "
                       f"{n} if all are unlike. Larger is more diverse"),
        Figure(key="cosine", name="Mean cosine similarity", value=found.cosine, missing=pair,
               definition="mean over all pairs of images of the cosine of their features",
               reading="1 if all are the same, 0 if unlike. Smaller is more diverse"),
        Figure(key="lpips", name="Mean LPIPS" + f" ({extras.lpips_net})" * bool(extras.lpips_net),
               value=extras.lpips, missing=extras.lpips_why or pair,
               definition="mean over all pairs of images of their LPIPS (Zhang et al., 2018), "
                          "the middle square of each scaled to one size",
               reading="how different two of the images look; 0 if all are the same. Larger is "
                       "more diverse"),
        Figure(key="avg_knn", name="AvgkNN", k=knn, value=_mean(found.avg_knn),
               missing=_needs("images", knn + 1, n),
               definition=f"distance of an image to its {knn} nearest others, their mean; then "
                          "the mean over the images",
               reading="how far from one another the images lie. Larger is more diverse"),
        Figure(key="lof", name="LOF", k=lof, value=_median(found.lof),
               missing=_needs("images", lof + 1, n),
               more="" if outliers is None else
                    f"median; {outliers} of {n} above {OUTLIER:g}, largest "
                    f"{_large(float(found.lof.max()))}",
               definition=f"local outlier factor (Breunig et al., 2000): how much denser the {lof} "
                          "nearest others lie than the image itself; the median over the "
                          "images",
               reading="about 1 for an image among its like; well above 1 for one that stands "
                       "alone. More of these: more unusual images, or broken ones, so look at "
                       "them"),
        Figure(key="twins", name="Images with a twin",
               value=float(found.twins) if n > 1 else None, missing=pair, more=f"of {n}",
               definition=f"images nearer to another one than {SAME_PICTURE:.0%} of the root "
                          "mean square distance of two images",
               reading="copies, in all but name. 0 is best"),
    ]


def _against(found: Diversity, against: Against) -> list[Figure]:
    settings, n, m = found.settings, found.count, against.count
    k, shares = settings.k_manifold, against.manifolds
    real, fake = _needs("reference images", k + 1, m), _needs("images", k + 1, n)
    ball = f"which reaches to its k-th nearest other, k = {k}"
    own = None if against.own_lof is None else _median(against.own_lof)
    return [
        Figure(key="precision", name="Precision", value=shares.precision, k=k, missing=real,
               definition="share of the images that lie in the ball of a reference image, "
                          f"{ball} (Kynkaanniemi et al., 2019)",
               reading="how many look like the reference. 1 is best; low: broken images, or ones "
                       "that the reference has no like of"),
        Figure(key="recall", name="Recall", value=shares.recall, k=k, missing=fake,
               definition="share of the reference images that lie in the ball of an image, "
                          f"{ball} (Kynkaanniemi et al., 2019)",
               reading="how much of the reference the set could make. 1 is best; low: the set "
                       "keeps to a part of it"),
        Figure(key="density", name="Density", value=shares.density, k=k, missing=real,
               definition="in how many balls of reference images an image lies, over k; a ball "
                          "reaches to the k-th nearest other (Naeem et al., 2020)",
               reading="about 1 if the set lies like the reference; above it keeps to its crowded "
                       "parts, below it strays"),
        Figure(key="coverage", name="Coverage", value=shares.coverage, k=k, missing=real,
               definition="share of the reference images with an image in their ball, "
                          f"{ball} (Naeem et al., 2020)",
               reading="how much of the reference has a like in the set. 1 is best; it needs "
                       "as many images as the reference has, at the least"),
        Figure(key="avg_knn_reference", name="AvgkNN in the reference",
               value=_mean(against.avg_knn), k=settings.k_knn,
               missing=_needs("reference images", settings.k_knn, m),
               more="" if against.own_avg_knn is None else
                    f"the reference's own: {_mean(against.own_avg_knn):.4g}",
               definition=f"distance of an image to the {settings.k_knn} nearest of the "
                          "reference, their mean; then the mean over the images",
               reading="larger than the reference's own: the images are rarer than its, or not "
                       "like it at all"),
        Figure(key="lof_reference", name="LOF in the reference", value=_median(against.lof),
               k=settings.k_lof, missing=_needs("reference images", settings.k_lof + 1, m),
               more="" if own is None else f"the reference's own: {own:.4g}",
               definition=f"LOF by the {settings.k_lof} nearest of the reference; the median over "
                          "the images",
               reading="larger than the reference's own: the images lie where it is thin"),
        Figure(key="nearest_reference", name="Distance to the reference",
               value=_median(against.nearest),
               more=f"median; smallest {float(against.nearest.min()):.4g}",
               definition="distance of an image to the nearest of the reference",
               reading="near 0: a copy of a reference image"),
    ]


def _of_the_scores(extras: Extras) -> list[Figure]:
    if extras.scores is None:
        return []
    scores, other = extras.scores, extras.reference_scores
    more = f"median of {len(scores)}; largest {float(scores.max()):.4g}"
    if other is not None:
        more += f"; the scored reference's median: {_median(other):.4g}"
    return [Figure(key="minority_score", name="Minority score", value=_median(scores), more=more,
                   definition=f"how far an image is from what the model restores of it "
                              f"({extras.scores_of})",
                   reading="larger: rarer for the model")]


def _of_the_history(extras: Extras) -> list[Figure]:
    history = extras.history
    if history is None:
        return []
    if history.distance is None:
        return [Figure(key="history", name="Distance to the history", value=None,
                       missing=history.why, definition="", reading="")]
    more = f"median; smallest {float(history.distance.min()):.4g}, of {history.remembered} in " \
           f'"{history.name}"'
    if history.novelty is not None and len(history.novelty):
        more += f"; newer than {float(history.novelty.median()):.0%} of the history was"
    return [Figure(key="history", name="Distance to the history", value=_median(history.distance),
                   more=more,
                   definition="distance of an image to the nearest remembered one, in the "
                              "memory's own space: the root mean square difference of the latents, "
                              "averaged over a grid of 8 x 8",
                   reading="near 0: this image was there before. Larger is newer")]


def _mean(values: Tensor | None) -> float | None:
    return None if values is None else float(values.mean())


def _median(values: Tensor | None) -> float | None:
    return None if values is None else float(values.double().quantile(0.5))


def _large(value: float) -> str:
    return f"{value:.4g}" if value < 1e6 else "without bound (more than k copies nearby)"
