"""Scored images on disk."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from guidance.scored_set import Scored, ScoredImages, ScoredSet, ScoredSetError, ScoreSettings

SETTINGS = ScoreSettings(space="PixelSpace/3", channels=3, distance="latent_l2", sigma=6.4, draws=5,
                         seed=0, size=(8, 8), log_snr=tuple(torch.linspace(-10, 10, 65).tolist()))
ANSWER = (0.5, *torch.linspace(-1, 1, 100).tolist())


@pytest.fixture
def kept(tmp_path) -> ScoredSet:
    return ScoredSet.open(tmp_path, SETTINGS, ANSWER)


def picture(number: int, size: int = 8) -> torch.Tensor:
    return torch.full((3, size, size), number / 64)


def add(kept: ScoredSet, *numbers: int, size: int = 8) -> ScoredImages:
    kept.add([Scored(f"hash {n}", n / 10, picture(n, size), f"/{n}.png", f"stamp {n}")
              for n in numbers])
    return ScoredImages.ranked(kept, {f"hash {n}": (n / 10, f"/{n}.png") for n in numbers})


def test_members_are_ranked_rarest_first_with_their_latents(kept):
    images = add(kept, 3, 1, 7, 5)
    assert images.hashes == ("hash 7", "hash 5", "hash 3", "hash 1")
    assert images.scores.tolist() == pytest.approx([0.7, 0.5, 0.3, 0.1])
    assert images.paths == ("/7.png", "/5.png", "/3.png", "/1.png")
    assert len(images) == 4
    latents = images.latents(torch.tensor([2, 0, 2]))
    assert latents.dtype == torch.float32
    assert torch.equal(latents, torch.stack([picture(3), picture(7), picture(3)]))
    assert images.extreme(2, rarest=True) == [0, 1]
    assert images.extreme(9, rarest=False) == [3, 2, 1, 0]
    assert images.settings == SETTINGS


def test_ranking_does_not_depend_on_the_order_of_equal_scores(kept):
    members = {"b": (1.0, ""), "a": (1.0, ""), "c": (2.0, "")}
    backwards = dict(reversed(members.items()))
    assert ScoredImages.ranked(kept, members).hashes == ("c", "a", "b")
    assert ScoredImages.ranked(kept, backwards).hashes == ("c", "a", "b")


def test_a_set_is_found_again_by_settings_and_answer(kept, tmp_path):
    add(kept, 1, 2)
    again = ScoredSet.open(tmp_path, SETTINGS, [v * (1 + 1e-4) for v in ANSWER])
    assert again.path == kept.path
    assert again.scores(["hash 1", "hash 2", "hash 3"]) == {"hash 1": 0.1, "hash 2": 0.2}
    assert again.known_files(["/1.png", "/9.png"]) == {"/1.png": ("stamp 1", "hash 1")}


@pytest.mark.parametrize("change", [
    {"space": "SD15/4"}, {"distance": "l1"}, {"sigma": 3.0}, {"draws": 1}, {"seed": 1},
    {"size": (8, 16)}])
def test_other_settings_are_another_set(kept, tmp_path, change):
    other = ScoredSet.open(tmp_path, replace(SETTINGS, **change), ANSWER)
    assert other.path != kept.path


@pytest.mark.parametrize("answer", [
    (0.5, *torch.linspace(-1, 1.1, 100).tolist()), (0.6, *ANSWER[1:]), ANSWER[:50]])
def test_another_answer_is_another_set(kept, tmp_path, answer):
    add(kept, 1)
    other = ScoredSet.open(tmp_path, SETTINGS, answer)
    assert other.path != kept.path
    assert other.scores(["hash 1"]) == {}
    assert ScoredSet.open(tmp_path, SETTINGS, answer).path == other.path
    assert ScoredSet.open(tmp_path, SETTINGS, ANSWER).path == kept.path


def test_what_is_known_stays_as_it_is(kept):
    add(kept, 1)
    kept.add([Scored("hash 1", 9.0, picture(9), "/copy.png", "stamp")])
    assert kept.scores(["hash 1"]) == {"hash 1": 0.1}
    assert torch.equal(kept.latents(["hash 1"])[0], picture(1))
    assert kept.known_files(["/copy.png"]) == {"/copy.png": ("stamp", "hash 1")}


def test_a_changed_file_is_noted_anew(kept):
    add(kept, 1, 2)
    kept.note_files([("/1.png", "newer", "hash 2")])
    assert kept.known_files(["/1.png"]) == {"/1.png": ("newer", "hash 2")}


def test_a_path_that_is_no_text_is_known_too(kept):
    path = os.fsdecode(b"/caf\xe9.png")
    kept.note_files([(path, "stamp", "hash")])
    kept.add([Scored("hash 1", 0.1, picture(1), path + "2", "stamp")])
    assert kept.known_files([path, "/1.png", path + "2"]) == {
        path: ("stamp", "hash"), path + "2": ("stamp", "hash 1")}


def test_more_images_than_one_question_holds(kept):
    images = add(kept, *range(1200))
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(0))
    found = images.latents(order)[:, 0, 0, 0]
    assert torch.allclose(found, (1199 - order) / 64, rtol=1e-3)
    assert len(kept.scores(images.hashes)) == 1200


def test_latents_of_several_sizes_are_refused(kept):
    add(kept, 1)
    add(kept, 2, size=4)
    images = ScoredImages.ranked(kept, {"hash 1": (0.1, ""), "hash 2": (0.2, "")})
    with pytest.raises(ScoredSetError, match="latents of 2 sizes"):
        images.latents([0, 1])
    assert images.latents([0]).shape == (1, 3, 4, 4)


def test_a_deleted_file_is_an_error_and_a_new_run_starts_anew(kept, tmp_path):
    images = add(kept, 1)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(ScoredSetError, match="were deleted. Run Minority Score again"):
        images.latents([0])
    assert not kept.path.exists()
    assert ScoredSet.open(tmp_path, SETTINGS, ANSWER).scores(["hash 1"]) == {}


def test_the_other_sets_are_found_when_one_is_deleted(kept, tmp_path):
    sets = [ScoredSet.open(tmp_path, SETTINGS, (number, number, number)) for number in (1, 2)]
    add(sets[1], 1)
    for one in (kept, sets[0]):
        one.path.unlink()
    found = ScoredSet.open(tmp_path, SETTINGS, (2, 2, 2))
    assert found.path == sets[1].path and found.scores(["hash 1"]) == {"hash 1": 0.1}
    assert ScoredSet.open(tmp_path, SETTINGS, (3, 3, 3)).path == kept.path


def test_a_file_that_is_no_database_is_an_error_that_names_it(kept, tmp_path):
    kept.path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ScoredSetError, match=kept.path.name):
        ScoredSet.open(tmp_path, SETTINGS, ANSWER)
    assert kept.path.read_bytes().startswith(b"no database")


def test_a_batch_is_kept_whole_or_not_at_all(kept):
    broken = Scored("hash 2", None, picture(2))
    with pytest.raises(ScoredSetError):
        kept.add([Scored("hash 1", 0.1, picture(1)), broken])
    assert kept.scores(["hash 1", "hash 2"]) == {}
