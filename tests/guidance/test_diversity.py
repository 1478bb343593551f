"""Measures of diversity against the libraries that define them, and the command."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from prdc import compute_prdc
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from dev import ROOT
from guidance import neighbours, spectrum
from guidance.distances import Lpips
from guidance.diversity import Settings, closest_pairs, measure, measure_steps
from guidance.diversity_command import main
from guidance.diversity_figures import Extras, Features, History, figures
from guidance.diversity_report import as_json, table, text
from guidance.neighbours import nearest
from guidance.picture_features import LpipsFeatures, pixel_features, square
from guidance.spectrum import map_of, mean_cosine, spread, vendi

ABOUT = Features(name="pixels", meaning="colours", dim=4)


def cloud(count: int, dim: int = 8, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    """Fixed float32 points."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator) + shift


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr(neighbours, "ROWS", 7)
        monkeypatch.setattr(neighbours, "COLUMNS", 11)
        monkeypatch.setattr(neighbours, "REFINED", 3)
        monkeypatch.setattr(spectrum, "CHUNK", 13)


# Against the libraries

def test_neighbours_are_scikit_learns(blocks):
    points, others = cloud(90), cloud(70, seed=1)
    for k in (1, 6, 70):
        distance, index = nearest(points, others, k)
        expected = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(others.double())
        true_distance, true_index = expected.kneighbors(points.double())
        assert np.allclose(distance, true_distance, atol=1e-9)
        assert (index.numpy() == true_index).all()


def test_avg_knn_is_pyods_knn_with_method_mean(blocks):
    """PyOD 3: the mean of NearestNeighbors.kneighbors() in the set, and of kneighbors(X) of
    pictures that are not in it."""
    points, reference = cloud(90, shift=0.5), cloud(70, seed=1)
    found = measure(points, reference)
    own = NearestNeighbors(n_neighbors=5).fit(points.double()).kneighbors()[0].mean(axis=1)
    assert np.allclose(found.avg_knn, own, atol=1e-6, rtol=0)
    fitted = NearestNeighbors(n_neighbors=5).fit(reference.double())
    assert np.allclose(found.against.avg_knn, fitted.kneighbors(points.double())[0].mean(axis=1),
                       atol=1e-6, rtol=0)
    assert np.allclose(found.against.own_avg_knn, fitted.kneighbors()[0].mean(axis=1), atol=1e-6,
                       rtol=0)


def test_lof_is_scikit_learns(blocks):
    points, reference = cloud(90, shift=0.5), cloud(70, seed=1)
    points[0] *= 10
    found = measure(points, reference)
    own = LocalOutlierFactor(n_neighbors=20).fit(points.double())
    assert np.allclose(found.lof, -own.negative_outlier_factor_, atol=1e-6, rtol=0)
    assert found.lof.argmax() == 0
    fitted = LocalOutlierFactor(n_neighbors=20, novelty=True).fit(reference.double())
    assert np.allclose(found.against.lof, -fitted.score_samples(points.double()), atol=1e-6,
                       rtol=0)
    assert np.allclose(found.against.own_lof, -fitted.negative_outlier_factor_, atol=1e-6, rtol=0)


def test_lof_beside_copies_is_scikit_learns():
    points = torch.cat([cloud(1).repeat(9, 1), cloud(30, seed=1)])
    found = measure(points, settings=Settings(k_lof=5)).lof
    expected = -LocalOutlierFactor(n_neighbors=5).fit(points.double()).negative_outlier_factor_
    assert np.allclose(found, expected, rtol=1e-6)
    assert found[:9].tolist() == pytest.approx([1.0] * 9)


def test_a_picture_beside_more_than_k_copies_has_a_lof_beyond_all_bounds():
    points = torch.cat([cloud(1).repeat(9, 1), cloud(4, seed=1)])
    found = measure(points, settings=Settings(k_lof=5))
    expected = -LocalOutlierFactor(n_neighbors=5).fit(points.double()).negative_outlier_factor_
    assert np.allclose(found.lof, expected, rtol=1e-6)
    assert found.lof.max() > 1e6
    assert "largest without bound" in text(found, ABOUT, [""] * 13, Extras())


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_precision_to_coverage_are_prdcs(blocks, k, shift):
    real, fake = cloud(90), cloud(70, seed=1, shift=shift) * 0.8
    with contextlib.redirect_stdout(None):
        expected = compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=k)
    found = measure(fake, real, Settings(k_manifold=k)).against.manifolds
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-6)
        assert 0 < value < 1 or (name == "density" and value > 0)


def test_k_of_the_balls_may_be_the_largest():
    one, other = (measure(cloud(40), cloud(30, seed=1), Settings(k_knn=2, k_lof=k, k_manifold=12)
                          ).against.manifolds for k in (3, 20))
    assert one == other and None not in (one.recall, one.precision)


def test_a_picture_on_a_balls_surface_is_outside():
    """A set that shares pictures with its reference: distances equal radii but for rounding."""
    real = torch.tensor([[0.1], [0.4], [0.9], [1.6], [2.5]]).repeat(1, 7)
    found = measure(real[[3]], real, Settings(k_manifold=1)).against.manifolds
    assert found.coverage == pytest.approx(0.2)  # 3 lies in its own ball, and on that of 4
    assert found.density == 1


def test_vendi_counts_what_is_different():
    distinct = torch.eye(6)
    for q in (0.5, 1.0, 2.0, torch.inf):
        assert vendi(distinct, q) == pytest.approx(6)
        assert vendi(distinct[:1].repeat(5, 1), q) == pytest.approx(1)
        assert vendi(distinct[[0, 0, 1, 1, 2, 2]], q) == pytest.approx(3)
    uneven = distinct[[0, 0, 0, 1]]
    assert vendi(uneven, 1.0) == pytest.approx(np.exp(-(.75 * np.log(.75) + .25 * np.log(.25))))
    assert vendi(uneven, 2.0) == pytest.approx(1 / (.75 ** 2 + .25 ** 2))
    assert vendi(uneven, torch.inf) == pytest.approx(1 / .75)


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0])
def test_vendi_is_that_of_the_similarities_for_more_pictures_than_features(blocks, q):
    points = cloud(100, 6, shift=0.3)
    unit = torch.nn.functional.normalize(points.double(), dim=1).numpy()
    values = np.linalg.eigvalsh(unit @ unit.T / 100)
    values = values[values > 1e-12]
    expected = (np.exp(-(values * np.log(values)).sum()) if q == 1 else
                (values ** q).sum() ** (1 / (1 - q)))
    assert vendi(points, q) == pytest.approx(expected, abs=1e-9)


def test_mean_cosine_and_spread_are_those_of_all_pairs(blocks):
    points = cloud(40, shift=0.4).double()
    pairs = ~torch.eye(40, dtype=torch.bool)
    unit = torch.nn.functional.normalize(points, dim=1)
    assert mean_cosine(points) == pytest.approx(float((unit @ unit.T)[pairs].mean()))
    squared = torch.cdist(points, points)[pairs].square()
    assert spread(points) == pytest.approx(float(squared.mean().sqrt()))


def test_features_of_zeros_are_like_one_another_and_unlike_the_rest():
    points = torch.cat([torch.zeros(2, 3), torch.eye(3)])
    assert vendi(points) == pytest.approx(vendi(torch.eye(4)[[0, 0, 1, 2, 3]]))
    assert mean_cosine(points) == pytest.approx(2 / 20)


@pytest.mark.parametrize("count", [30, 5])
def test_the_map_is_the_first_two_principal_components(blocks, count):
    points = cloud(count, 8) * torch.tensor([9.0, 4, 1, 1, 1, 1, 1, 1])
    centred = (points - points.mean(0)).double()
    expected = torch.linalg.svd(centred, full_matrices=False)
    place = map_of(points)
    assert torch.allclose(place.abs(), (expected.U * expected.S)[:, :2].abs(), atol=1e-6)
    assert torch.equal(map_of(points[:1]), torch.zeros(1, 2, dtype=torch.float64))


# Features

def test_pixel_features_are_root_mean_square_differences_of_any_size():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    large = coarse.repeat_interleave(3, 2).repeat_interleave(2, 3)
    found = pixel_features(coarse)
    assert torch.allclose(pixel_features(large), found, atol=1e-6)
    expected = (coarse[0] - coarse[1]).square().mean().sqrt()
    assert torch.dist(*found) == pytest.approx(float(expected))
    assert pixel_features(torch.ones(1, 3, 5, 9)).shape == (1, 768)


@pytest.mark.parametrize("trained", [False, True])
def test_mean_lpips_is_that_of_all_pairs(trained):
    lpips = Lpips.untrained()
    if trained:  # the layer weights that lpips ships
        import lpips as library

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            lpips = Lpips("alex", library.LPIPS(net="alex", pnet_rand=True, verbose=False).eval())
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(5, 3, 40, 40, generator=generator) * 2 - 1
    features = LpipsFeatures(lpips, 40)
    assert features.mean_of_pairs() is None
    pooled = torch.cat([features(pictures[:2]), features(pictures[2:]),
                        features(torch.zeros(1, 3, 40, 40), counted=False)])
    with torch.no_grad():
        pairs = {(i, j): float(lpips(pictures[[i]], pictures[[j]]))
                 for i in range(5) for j in range(i)}
    assert features.mean_of_pairs() == pytest.approx(np.mean([*pairs.values()]), rel=1e-4)
    assert all(torch.dist(pooled[i], pooled[j]) ** 2 <= value for (i, j), value in pairs.items())
    assert len(pooled) == 6


def test_squares_are_cut_from_the_middle():
    wide = torch.zeros(1, 3, 4, 8)
    wide[..., 2:6] = 1
    assert torch.equal(square(wide, 4), torch.ones(1, 3, 4, 4))
    assert torch.equal(square(wide, 9), torch.ones(1, 3, 9, 9))


# Sets that are small, or odd

@pytest.mark.parametrize("count", [1, 2, 5, 6, 20, 21])
@pytest.mark.parametrize("reference", [None, 1, 2, 5, 6, 21])
def test_small_sets_say_what_is_missing(count, reference):
    other = None if reference is None else cloud(reference, seed=1)
    found = measure(cloud(count), other)
    shown = {figure.key: figure for figure in figures(found, Extras())}
    needed = {"cosine": 2, "avg_knn": 6, "lof": 21, "recall": 6}
    needed_of_reference = {"precision": 6, "density": 6, "coverage": 6, "avg_knn_reference": 5,
                           "lof_reference": 21}
    for have, needs in ((count, needed), (reference, needed_of_reference)):
        for key, least in needs.items():
            if key in shown:
                assert (shown[key].value is not None) == (have >= least), key
                if have < least:
                    assert f"needs {least} " in shown[key].missing
    assert ("precision" in shown) == (reference is not None)
    names = [f"{i}" for i in range(count)]
    for written in (text(found, ABOUT, names, Extras()), table(found, Extras())):
        assert "nan" not in written.lower()
        assert "None" not in written
    assert json.loads(as_json(found, ABOUT, names, Extras()))["count"] == count


def test_equal_pictures():
    found = measure(cloud(1).repeat(30, 1), cloud(30, seed=1))
    assert found.vendi == pytest.approx(1)
    assert found.cosine == pytest.approx(1)
    assert found.avg_knn.tolist() == [0.0] * 30
    assert found.lof.tolist() == pytest.approx([1.0] * 30)
    assert found.twins == 30
    assert found.against.manifolds.recall == 0
    assert "All images are the same" in text(found, ABOUT, [""] * 30, Extras())
    assert "and : the same picture" in text(found, ABOUT, [""] * 30, Extras())


def test_copies_are_found_and_each_picture_is_named_once():
    points = cloud(30)
    points[7], points[20], points[21] = points[3], points[11], points[11]
    found = measure(points)
    assert found.twins == 5
    assert closest_pairs(found, 2) == [(3, 7, 0.0), (11, 20, 0.0)]
    pairs = closest_pairs(found, 99)
    assert len({i for pair in pairs for i in pair[:2]}) == 2 * len(pairs)
    assert [pair[2] for pair in pairs] == sorted(pair[2] for pair in pairs)
    told = json.loads(as_json(found, ABOUT, [""] * 30, Extras()))["closest_pairs"]
    assert [one["same"] for one in told[:3]] == [True, True, False]


def test_a_copy_of_each_picture_does_not_make_all_the_same():
    found = measure(cloud(15).repeat(2, 1))
    assert found.twins == 30
    assert "All images are the same" not in text(found, ABOUT, [""] * 30, Extras())


def test_copies_far_from_the_origin_are_exactly_alike():
    points = cloud(40) + 1e4
    points[5] = points[30]
    distance, index = nearest(points, None, 1)
    assert distance[5].item() == 0 and index[5].item() == 30


def test_features_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="8 features, the reference has 4"):
        measure(cloud(9), cloud(9, 4))


def test_steps_are_told_and_what_they_raise_ends_the_work(blocks):
    done = []
    measure(cloud(40), cloud(30, seed=1), tick=done.append)
    assert sum(done) == measure_steps(40, 30)
    done.clear()
    measure(cloud(1), cloud(1, seed=1), tick=done.append)
    assert sum(done) == measure_steps(1, 1)

    def cancel(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(cloud(40), tick=cancel)


def test_memory_does_not_grow_with_the_square(monkeypatch):
    """The largest tensor that is made, counted where all of them are made."""
    monkeypatch.setattr(neighbours, "ROWS", 64)
    monkeypatch.setattr(neighbours, "COLUMNS", 256)
    monkeypatch.setattr(spectrum, "CHUNK", 256)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            largest.append(made.numel() if isinstance(made, torch.Tensor) else 0)
            return made

    points, reference = cloud(1500), cloud(1200, seed=1)
    with Watch():
        measure(points, reference)
        map_of(points)
    assert max(largest) <= 1500 * 24  # k-nearest of all; the square is 2,250,000


# Report

def test_the_report_tells_all_of_it():
    found = measure(cloud(30), cloud(25, seed=1))
    extras = Extras(
        lpips=0.25, lpips_net="alex", scores=torch.tensor([1.0, 2.0, 6.0]), scores_of="l1",
        reference_scores=torch.tensor([0.5]), left_out=["torn.png: broken"],
        history=History(name="mine", remembered=9, distance=torch.tensor([0.1, 0.3, 0.2] * 10),
                        novelty=torch.tensor([0.5, 0.5, 1.0] * 10)))
    names = [f"{i}.png" for i in range(30)]
    written = text(found, ABOUT, names, extras)
    for part in ("30 images, compared with 25 reference images", "Mean LPIPS (alex): 0.25",
                 "Minority score: 2 (median of 3; largest 6; the scored reference's median: 0.5)",
                 'Distance to the history: 0.2 (median; smallest 0.1, of 9 in "mine"; newer than '
                 "50% of the history was)", "AvgkNN (k = 5): ", "LOF (k = 20): ",
                 f"the reference's own: {found.against.own_lof.median():.4g}",
                 "1 image left out:\ntorn.png: broken", "Features: pixels, 4 numbers"):
        assert part in written
    kept = json.loads(as_json(found, ABOUT, names, extras))
    assert kept["figures"]["lof"]["k"] == 20
    assert kept["figures"]["avg_knn"]["value"] == pytest.approx(float(found.avg_knn.mean()))
    assert [row["lof"] for row in kept["images"]] == pytest.approx(found.lof.tolist())
    assert kept["closest_pairs"][0]["first"] in names
    for figure in figures(found, extras):
        assert figure.definition and figure.reading
        assert f"| {figure.name} | " in table(found, extras)
        assert f"{figure.name}: {figure.reading}" in written


def test_sets_of_other_sizes_are_pointed_out():
    assert "differ much in size" in text(measure(cloud(9), cloud(30, seed=1)), ABOUT, [""] * 9,
                                         Extras())


# The command

@pytest.fixture
def folders(tmp_path):
    generator = np.random.default_rng(0)
    for name, count in (("set", 8), ("reference", 7)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(generator.integers(0, 256, (9 + i, 20, 3), np.uint8)).save(
                tmp_path / name / f"{i}.png")
    (tmp_path / "set" / "8.png").write_bytes((tmp_path / "set" / "2.png").read_bytes())
    (tmp_path / "set" / "torn.png").write_bytes((tmp_path / "set" / "2.png").read_bytes()[:90])
    (tmp_path / "set" / "notes.txt").write_text("no picture")
    return tmp_path


def test_the_command_runs_in_the_packs_folder(folders):
    run = subprocess.run(
        [sys.executable, "-m", "guidance.diversity", str(folders / "set"), "--reference",
         str(folders / "reference"), "--json", str(folders / "out.json")],
        cwd=ROOT, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("9 images, compared with 7 reference images\n")
    assert "2.png and 8.png: the same picture" in run.stdout
    assert "1 image left out:\ntorn.png: " in run.stdout
    kept = json.loads((folders / "out.json").read_text("utf-8"))
    assert kept["count"] == 9
    assert kept["figures"]["precision"]["value"] is not None
    assert kept["figures"]["lof"]["missing"] == "needs 21 images or more, and there are 9"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_the_command_names_files_that_are_no_utf_8(folders, capsys):
    (folders / "set" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no picture")
    assert main([str(folders / "set")]) == 0
    assert "caf?.png: " in capsys.readouterr().out


def test_the_command_says_what_is_wrong(folders, capsys):
    (folders / "empty").mkdir()
    assert main([str(folders / "nowhere")]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert main([str(folders / "set"), "--reference", str(folders / "empty")]) == 1
    assert "holds no image that can be read" in capsys.readouterr().err
    assert main([str(folders / "set"), "--json", str(folders)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(folders / "set"), "--k-lof", "0"])
