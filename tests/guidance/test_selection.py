"""Which of many embeddings are kept."""

from __future__ import annotations

import itertools
import random
import sys
from statistics import mean

import numpy as np
import pytest
import torch

from demo.avatars import avatars
from guidance import selection
from guidance.latent_space import LatentSpace
from guidance.selection import (
    SAME,
    SelectionError,
    assigned,
    distances,
    farthest_apart,
    most_different,
    nearest,
    novel,
    percentile_distance,
)


def points(n: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def cost(embedding: torch.Tensor, kept) -> float:
    """Plain k-medoids cost, in float64."""
    data = embedding.double()
    return float((data[:, None] - data[[*kept]]).norm(dim=2).min(dim=1).values.sum())


# Keep Most Different

@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_eight_points_have_the_best_medoids_there_are(count, seed):
    embedding = points(8, seed=seed)
    best = min(cost(embedding, kept) for kept in itertools.combinations(range(8), count))
    assert cost(embedding, most_different(embedding, count).kept) == pytest.approx(best, rel=1e-5)


def test_medoids_are_better_than_any_random_choice():
    embedding, choose = points(120, seed=1), random.Random(0)
    found = most_different(embedding, 9)
    best = min(cost(embedding, choose.sample(range(120), 9)) for _ in range(100))
    assert cost(embedding, found.kept) < best


def test_each_group_has_its_medoid():
    centres = torch.eye(4, 6) * 100
    groups = torch.tensor([0, 1, 1, 2, 0, 3, 2, 2, 2, 0])
    embedding = centres[groups] + points(10)
    found = most_different(embedding, 4)
    assert sorted(groups[found.kept].tolist()) == [0, 1, 2, 3]
    assert torch.equal(groups[found.medoid], groups)


@pytest.mark.parametrize("choose", [most_different, farthest_apart])
def test_everything_has_its_nearest_of_the_kept(choose):
    embedding = points(60)
    found = choose(embedding, 7)
    assert found.kept == sorted(set(found.kept)) and len(found.kept) == 7
    to_kept = torch.cdist(embedding.double(), embedding[found.kept].double())
    assert found.medoid == [found.kept[i] for i in to_kept.argmin(dim=1)]
    assert torch.allclose(found.distance.double(), to_kept.min(dim=1).values, atol=1e-3)
    assert all(found.medoid[i] == i for i in found.kept)


def test_the_choice_is_the_same_each_time_and_leaves_random_numbers_alone():
    embedding = points(50)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = most_different(embedding, 6)
    np.random.rand()
    assert most_different(embedding, 6).kept == first.kept
    assert torch.equal(torch.get_rng_state(), states[0])
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    most_different(embedding, 6)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("more", [0, 5])
def test_as_many_as_there_are_keeps_all(n, more, monkeypatch):
    monkeypatch.setitem(sys.modules, "kmedoids", None)  # not even needed
    found = most_different(points(n), n + more)
    assert found.kept == found.medoid == [*range(n)]
    assert not found.distance.any()
    assert found.report(n + more).startswith(f"Kept all {n}")


def test_copies_are_one_group_while_there_are_others():
    embedding = points(4).repeat_interleave(5, dim=0)
    found = most_different(embedding, 4)
    assert [i // 5 for i in found.kept] == [0, 1, 2, 3]
    assert [i // 5 for i in found.medoid] == [i // 5 for i in range(20)]


def test_more_medoids_than_different_points():
    found = most_different(torch.zeros(6, 3), 4)
    assert len(set(found.kept)) == 4
    assert all(found.medoid[i] == i for i in found.kept)
    assert set(found.medoid) <= set(found.kept)


def test_medoids_that_are_copies_of_each_other_stand_for_themselves():
    found = assigned(torch.zeros(3, 3), [0, 2])
    assert found.medoid == [0, 0, 2]


def test_report_of_medoids():
    embedding = torch.tensor([[0.0], [0.1], [0.2], [5.0]])
    assert most_different(embedding, 2).report(2) == (
        "Kept 2 of 4; each stands for 1 to 3 images.\n"
        "Distance to the one that stands for it: 0.05 on average, 0.1 at most\n"
        "The kept ones are at least 4.9 apart")
    assert most_different(embedding, 1).report(1).endswith("on average, 4.9 at most")


def test_distances_in_blocks_are_those_at_once(monkeypatch):
    embedding = points(37)
    monkeypatch.setattr(selection, "CELLS", 37 * 5)
    expected = torch.cdist(embedding.double(), embedding.double())
    assert torch.allclose(distances(embedding).double(), expected, atol=1e-5)
    assert not distances(embedding).diagonal().any()


def test_too_many_images_are_refused():
    with pytest.raises(SelectionError, match="20001 images.*Choose from each part"):
        most_different(torch.zeros(20_001, 1), 3)


def test_none_of_many_is_refused():
    for choose in (most_different, farthest_apart):
        with pytest.raises(SelectionError, match="count is 0; expected at least 1"):
            choose(points(3), 0)


def test_without_kmedoids_the_error_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "kmedoids", None)
    with pytest.raises(SelectionError) as failed:
        most_different(points(5), 2)
    assert f'"{sys.executable}" -m pip install "kmedoids>=0.5"' in str(failed.value)


def apart(embedding: torch.Tensor, kept) -> float:
    """The least distance of any two of these, in float64."""
    return float(torch.nn.functional.pdist(embedding[[*kept]].double()).min())


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_farthest_are_at_least_half_as_far_apart_as_can_be(count, seed):
    embedding = points(9, dim=2, seed=seed)
    best = max(apart(embedding, kept) for kept in itertools.combinations(range(9), count))
    found = farthest_apart(embedding, count)
    assert apart(embedding, found.kept) >= best / 2
    assert found.apart == pytest.approx(apart(embedding, found.kept), rel=1e-5)


def test_the_farthest_hold_what_stands_alone_where_medoids_do_not():
    embedding = points(60)
    embedding[17] += 20
    assert 17 in farthest_apart(embedding, 4).kept
    assert farthest_apart(embedding, 1).kept == [17]
    assert 17 not in most_different(embedding, 1).kept
    assert farthest_apart(embedding, 6).apart > most_different(embedding, 6).apart


def test_the_farthest_of_copies_are_as_many_as_wanted():
    embedding = points(3).repeat_interleave(4, dim=0)
    assert {i // 4 for i in farthest_apart(embedding, 3).kept} == {0, 1, 2}
    found = farthest_apart(embedding, 7)
    assert len(set(found.kept)) == 7 and found.apart == 0 and not found.distance.any()
    assert all(found.medoid[i] == i for i in found.kept)
    assert farthest_apart(embedding, 12).kept == [*range(12)]


def test_the_farthest_of_faces_are_rare_more_often_and_medoids_less():
    """The figures of Keep Most Different's help page."""
    images, attributes = avatars(62 * 64, seed=9)
    rare, embedding = attributes.any(dim=1).float(), LatentSpace("pixels", 3).embed(images)
    draws = [slice(start, start + 64) for start in range(0, len(images), 64)]

    def figures(choose) -> tuple[float, float]:
        found = [choose(embedding[draw], 8) for draw in draws]
        rates = [rare[draw][one.kept].mean().item()
                 for draw, one in zip(draws, found, strict=True)]
        return mean(rates), mean(one.apart for one in found)

    assert rare.mean().item() == pytest.approx(0.059, abs=0.001)
    assert figures(most_different) == pytest.approx((0.016, 0.30), abs=0.005)
    assert figures(farthest_apart) == pytest.approx((0.099, 0.49), abs=0.005)


# Keep Novel

def plain_novel(embedding, remembered, distance) -> tuple[list[int], int, int]:
    kept, known, repeated = [], 0, 0
    for i, one in enumerate(embedding.double()):
        if any((one - other).norm() < distance for other in remembered.double()):
            known += 1
        elif any((one - embedding[j].double()).norm() < distance for j in kept):
            repeated += 1
        else:
            kept.append(i)
    return kept, known, repeated


@pytest.mark.parametrize("distance", [0.5, 1.5, 2.5, 4.0])
@pytest.mark.parametrize("remembered", [0, 1, 15])
def test_novel_is_what_a_plain_loop_keeps(distance, remembered, monkeypatch):
    embedding, history = points(60), points(remembered, seed=1)
    expected = plain_novel(embedding, history, distance)
    for cells in (2 ** 24, 40):
        monkeypatch.setattr(selection, "CELLS", cells)
        found = novel(embedding, history, distance)
        assert (found.kept, found.remembered, found.repeated) == expected


def test_the_cases_of_the_plain_loop_are_not_empty():
    kept, known, repeated = plain_novel(points(60), points(15, seed=1), 1.5)
    assert kept and known and repeated


def test_distance_0_drops_only_copies():
    history = points(4, seed=1) * 30
    embedding = torch.cat([points(3), history[2:3], points(3)[1:2], history[:1] + 0.01])
    found = novel(embedding, history, 0.0)
    assert found.kept == [0, 1, 2, 5]
    assert (found.remembered, found.repeated) == (1, 1)


def test_copies_far_from_the_origin_are_found():
    """Where a distance as a matrix product has lost its digits."""
    history = points(5, dim=256) + 100
    assert nearest(history.clone(), history).max() == 0
    assert novel(history.clone(), history, 0.0).kept == []
    assert novel(history + 2 * SAME, history, 0.0).kept == [*range(5)]


def test_first_comes_first():
    embedding = torch.tensor([[0.0], [1.0], [2.0], [0.0]])
    assert novel(embedding, embedding[:0], 1.5).kept == [0, 2]


@pytest.mark.parametrize(("embedding", "history", "text"), [
    ([[0.0], [5.0]], [[9.0]], "Kept all 2: none is too near, below 1."),
    ([[0.0], [0.5], [9.0]], [[9.0]],
     "Kept 1 of 3; dropped 1 too near to the memory and 1 too near to an image that was kept, "
     "below 1."),
    ([[9.0]], [[9.0]], "Nothing kept, so what follows does not run. Kept 0 of 1; dropped 1 too "
                       "near to the memory, below 1."),
])
def test_report_of_novel(embedding, history, text):
    found = novel(torch.tensor(embedding), torch.tensor(history), 1.0)
    assert found.report(1.0) == text


@pytest.mark.parametrize("percentile", [0, 10, 50, 100])
def test_percentile_of_the_distances_to_the_nearest(percentile):
    embedding = points(40)
    matrix = torch.cdist(embedding.double(), embedding.double()).fill_diagonal_(torch.inf)
    assert percentile_distance(embedding, percentile) == pytest.approx(
        np.percentile(matrix.min(dim=1).values.numpy(), percentile), rel=1e-5)


def test_percentile_asks_some_of_many_but_compares_them_with_all():
    embedding = torch.arange(100.0)[:, None]
    assert percentile_distance(embedding, 50, most=7) == 1.0


def test_percentile_of_copies_is_0():
    assert percentile_distance(torch.ones(2, 3), 50) == 0


@pytest.mark.parametrize("n", [0, 1])
def test_percentile_of_too_few(n):
    assert percentile_distance(points(n), 50) is None


def test_nothing_is_near_an_empty_memory():
    assert torch.isinf(nearest(points(3), points(0))).all()
    assert torch.isinf(nearest(points(1), points(1), own=torch.tensor([0]))).all()
