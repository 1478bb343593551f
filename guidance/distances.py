"""How far a restored image is from its original: LPIPS (Zhang et al., 2018), L1, L2, latent L2.

The first six compare images `[batch, 3, height, width]` in [-1, 1]; `latent_l2` compares latents
as the sampler sees them. All give `[batch]`, and gradients pass through all of them. Each but LPIPS
is a mean over the values of an image, so that numbers are comparable between sizes.

LPIPS comes from the `lpips` package, with the layer weights that it ships. The backbone's weights
are read from torchvision's files, and never downloaded.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

Distance = Callable[[Tensor, Tensor], Tensor]

DISTANCES = ("lpips_vgg", "lpips_alex", "lpips_squeeze", "lpips_random", "l1", "l2", "latent_l2")
LATENT_DISTANCES = ("latent_l2",)

RANDOM_BACKBONE = "alex"
"""Untrained, it ranks rare avatars above common ones better than squeeze and vgg do (ROC AUC .69,
.63, .61 at sigma 1.6; .63, .59, .58 at 3.2), whatever its seed, and costs 0.35 ms for a pair."""
RANDOM_SEED = 0
INSTALL_LPIPS = f'"{sys.executable}" -m pip install "lpips>=0.1.4"'


class DistanceError(ValueError):
    """A distance that does not exist, or cannot be had here."""


@dataclass(frozen=True)
class Backbone:
    """A file of torchvision's; smallest: the side in pixels below which a layer has no output."""

    file: str
    megabytes: float
    smallest: int

    @property
    def url(self) -> str:
        return f"https://download.pytorch.org/models/{self.file}"


BACKBONES = {
    "vgg": Backbone("vgg16-397923af.pth", 527.8, 16),
    "alex": Backbone("alexnet-owt-7be5be79.pth", 233.1, 31),
    "squeeze": Backbone("squeezenet1_1-b8a52dc0.pth", 4.7, 17),
}


def load_distance(name: str, folders: Sequence[Path | str] = (),
                  device: torch.device | str = "cpu") -> Distance:
    """One of DISTANCES, as a callable (original, restored) -> `[batch]`.

    folders: where the backbone's file may lie; torch's cache is searched after them. Raises
    DistanceError.
    """
    if name not in DISTANCES:
        raise DistanceError(f"There is no distance {name!r}. Choose one of {', '.join(DISTANCES)}.")
    if name in PLAIN:
        return PLAIN[name]
    net = name.removeprefix("lpips_")
    return Lpips.untrained(device) if net == "random" else Lpips.trained(net, folders, device)


def l1(original: Tensor, restored: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (original - restored).float().abs().flatten(1).mean(1)


def l2(original: Tensor, restored: Tensor) -> Tensor:
    """Root mean square difference."""
    return latent_l2(original, restored).sqrt()


def latent_l2(original: Tensor, restored: Tensor) -> Tensor:
    """Mean squared difference.

    For x0-hat = (x_t - s eps) / a of x_t = a x0 + s n it is (s^2 / a^2) mean (eps - n)^2, the
    closed form of the minority score with squared L2 (Um et al., 2024, corollary of eq. 6).
    """
    return (original - restored).float().square().flatten(1).mean(1)


PLAIN: dict[str, Distance] = {"l1": l1, "l2": l2, "latent_l2": latent_l2}


class Lpips:
    """LPIPS over one backbone. Smaller images than the backbone takes are upsampled."""

    def __init__(self, net: str, model: torch.nn.Module):
        self.smallest = BACKBONES[net].smallest
        self.model = model

    @classmethod
    def trained(cls, net: str, folders: Sequence[Path | str] = (),
                device: torch.device | str = "cpu") -> Lpips:
        """The published LPIPS. Raises DistanceError where the backbone's file is missing."""
        path = backbone_path(net, folders)
        with torch.inference_mode(False):
            model = _untrained_model(net, layer_weights=True)
            weights = _read_backbone(path)
            own = model.net.state_dict()
            # torchvision's features.<i>.weight is <slice>.<i>.weight in lpips
            found = {key: weights.get(f"features.{key.partition('.')[2]}") for key in own}
            wrong = [key for key, value in own.items()
                     if found[key] is None or found[key].shape != value.shape]
            if wrong:
                raise DistanceError(
                    f'"{path}" does not hold the weights of torchvision\'s {net} '
                    f"({len(wrong)} of {len(own)} are missing or have another shape). Download "
                    f"{BACKBONES[net].url} again and put it there.")
            model.net.load_state_dict(found)
            return cls(net, model.to(device))

    @classmethod
    def untrained(cls, device: torch.device | str = "cpu") -> Lpips:
        """A backbone as it is before training, always the same, all channels alike: the layer
        weights that lpips ships belong to trained channels, and make no difference here."""
        with torch.inference_mode(False):
            return cls(RANDOM_BACKBONE,
                       _untrained_model(RANDOM_BACKBONE, layer_weights=False).to(device))

    def __call__(self, original: Tensor, restored: Tensor) -> Tensor:
        pair = (self._large_enough(image.float()) for image in (original, restored))
        return self.model(*pair).flatten(1).mean(1)

    def _large_enough(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        scale = self.smallest / min(height, width)
        if scale <= 1:
            return image
        size = (math.ceil(height * scale), math.ceil(width * scale))
        return functional.interpolate(image, size, mode="bilinear", align_corners=False)


def backbone_path(net: str, folders: Sequence[Path | str] = ()) -> Path:
    """The backbone's file, in the folders or in torch's cache; DistanceError if it is in none."""
    backbone = BACKBONES[net]
    places = [*map(Path, folders), Path(torch.hub.get_dir()) / "checkpoints"]
    for place in places:
        if (place / backbone.file).is_file():
            return place / backbone.file
    raise DistanceError(
        f"The distance lpips_{net} needs the file {backbone.file} "
        f"({backbone.megabytes:.0f} MB), and it is not here. Download {backbone.url} and put it "
        f'into "{places[0]}". Searched: {", ".join(map(str, places))}. Without any file, '
        "lpips_random, l1, l2 and latent_l2 work.")


def _read_backbone(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DistanceError(f'"{path}" cannot be read ({type(error).__name__}). '
                            "Download it again.") from error
    if not isinstance(weights, dict):
        raise DistanceError(f'"{path}" holds no weights by name. Download it again.')
    return weights


def _untrained_model(net: str, layer_weights: bool) -> torch.nn.Module:
    """lpips' module with a backbone that is random, and always the same."""
    if importlib.util.find_spec("lpips") is None:
        raise DistanceError(
            "LPIPS needs the Python package lpips, which is not installed. Choose the distance l1, "
            "l2 or latent_l2; or stop ComfyUI, run this in a terminal, then start it again:\n"
            f"{INSTALL_LPIPS}")
    import lpips

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision in an older way
        torch.default_generator.manual_seed(RANDOM_SEED)
        model = lpips.LPIPS(net=net, pnet_rand=True, lpips=layer_weights, verbose=False)
    return model.eval().requires_grad_(False)
