"""Distances between images, and how LPIPS finds its weights."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from guidance import distances
from guidance.distances import (
    BACKBONES,
    DISTANCES,
    PLAIN,
    DistanceError,
    backbone_path,
    load_distance,
)

WEIGHTS = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """Torch's cache, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(3, 3, 32, 40, generator=generator) * 2 - 1 for _ in range(2))


def save_backbone(folder, net: str = "squeeze", **changes) -> dict[str, torch.Tensor]:
    """A file as torchvision publishes them, with weights of its own."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        weights = {"squeeze": models.squeezenet1_1, "alex": models.alexnet}[net]().state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**weights, **changes}, folder / BACKBONES[net].file)
    return weights


@pytest.mark.parametrize("name", [*PLAIN, "lpips_random"])
def test_every_distance_is_zero_for_equals_and_grows(name, pair):
    original, other = pair
    distance = load_distance(name)
    near, far = original + 0.1 * (other - original), other
    assert distance(original, original).tolist() == [0, 0, 0]
    assert distance(original, near).shape == (3,)
    assert bool((distance(original, near) > 0).all())
    assert bool((distance(original, far) > distance(original, near)).all())
    alone = torch.cat([distance(a[None], b[None]) for a, b in zip(*pair, strict=True)])
    assert torch.allclose(distance(*pair), alone, rtol=1e-5)


def test_plain_distances_are_means_over_the_values(pair):
    a, b = (x.double().numpy() for x in pair)
    expected = {"l1": abs(a - b).mean((1, 2, 3)), "l2": ((a - b) ** 2).mean((1, 2, 3)) ** 0.5,
                "latent_l2": ((a - b) ** 2).mean((1, 2, 3))}
    assert set(expected) == set(PLAIN)
    for name, values in expected.items():
        assert load_distance(name)(*pair).tolist() == pytest.approx(values.tolist())


def test_gradients_pass_through(pair):
    original, restored = pair
    for name in (*PLAIN, "lpips_random"):
        with torch.inference_mode():
            distance = load_distance(name)
        leaf = restored.clone().requires_grad_(True)
        [gradient] = torch.autograd.grad(distance(original, leaf).sum(), leaf)
        assert gradient.norm() > 0


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_lpips_equals_the_package_with_the_same_backbone(tmp_path, pair):
    import lpips

    weights = save_backbone(tmp_path)
    reference = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    reference.net.load_state_dict({
        f"slice{i}.{layer}.{kind}": weights[f"features.{layer}.{kind}"]
        for i, layer, kind in (key.removeprefix("slice").split(".", 2)
                               for key in reference.net.state_dict())})
    distance = load_distance("lpips_squeeze", [tmp_path])
    with torch.no_grad():
        assert torch.equal(distance(*pair), reference(*pair).view(-1))
    assert bool((distance(*pair) > 0).all())


def test_torchs_cache_is_searched_after_the_given_folders(tmp_path, monkeypatch):
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    save_backbone(cache)
    assert backbone_path("squeeze", [tmp_path / "models"]).parent == cache
    save_backbone(tmp_path / "models")
    assert backbone_path("squeeze", [tmp_path / "models"]).parent == tmp_path / "models"


@pytest.mark.parametrize("net", BACKBONES)
def test_a_missing_backbone_names_file_url_size_and_place_and_is_not_downloaded(
        net, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *args, **more: pytest.fail())
    with pytest.raises(DistanceError) as missing:
        load_distance(f"lpips_{net}", [tmp_path / "models" / "lpips"])
    from torchvision import models

    published = getattr(models, WEIGHTS[net]).IMAGENET1K_V1
    message = str(missing.value)
    assert f"Download {published.url} " in message
    assert f"{published.meta['_file_size']:.0f} MB" in message
    assert f'put it into "{tmp_path / "models" / "lpips"}"' in message
    assert str(tmp_path / "torch" / "hub" / "checkpoints") in message
    assert list(tmp_path.rglob("*.pth")) == []


def test_a_truncated_backbone_is_an_error_that_names_it(tmp_path):
    save_backbone(tmp_path)
    file = tmp_path / BACKBONES["squeeze"].file
    file.write_bytes(file.read_bytes()[:10000])
    with pytest.raises(DistanceError, match=f"{file.name}.*cannot be read.*Download it again"):
        load_distance("lpips_squeeze", [tmp_path])


def test_another_networks_file_is_an_error(tmp_path):
    save_backbone(tmp_path, **{"features.0.weight": torch.zeros(1, 1)})
    with pytest.raises(DistanceError, match="1 of 50 are missing or have another shape"):
        load_distance("lpips_squeeze", [tmp_path])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / BACKBONES["squeeze"].file).write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises(DistanceError, match="cannot be read"):
        load_distance("lpips_squeeze", [tmp_path])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_images_below_the_backbones_minimum_are_upsampled(net, tmp_path, pair):
    save_backbone(tmp_path, net)
    distance = load_distance(f"lpips_{net}", [tmp_path])
    small = [image[..., :8, :12] for image in pair]
    with pytest.raises(RuntimeError):
        distance.model(*small)
    assert bool((distance(*small) > 0).all())
    smallest = BACKBONES[net].smallest
    assert distance.model(*(image[..., :smallest, :smallest] for image in pair)).shape[0] == 3
    with pytest.raises(RuntimeError):
        distance.model(*(image[..., :smallest - 1, :smallest - 1] for image in pair))


def test_the_random_backbone_is_always_the_same_and_touches_no_random_state(pair):
    before = torch.get_rng_state()
    first = load_distance("lpips_random")(*pair)
    torch.manual_seed(123)
    second = load_distance("lpips_random")(*pair)
    torch.set_rng_state(before)
    assert torch.equal(first, second)
    load_distance("lpips_random")
    assert torch.equal(torch.get_rng_state(), before)


def test_lpips_is_imported_only_when_used():
    code = ("import sys; from guidance.distances import load_distance; load_distance('l1'); "
            "assert not {'lpips', 'torchvision'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(distances.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DistanceError, match=r'" -m pip install "lpips>='):
        load_distance("lpips_random")


def test_an_unknown_distance_names_the_known_ones():
    with pytest.raises(DistanceError, match=", ".join(DISTANCES)):
        load_distance("cosine")
