"""Features of pictures for measures of diversity: raw pooled pixels, or an LPIPS backbone's.

Pictures are `[batch, 3, height, width]` in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .distances import BACKBONES, DistanceError, Lpips, backbone_path
from .latent_space import pooling_matrix

GRID = 16
PIXELS = "pixels"
BEST_FIRST = ("vgg", "alex", "squeeze")


def pixel_features(pictures: Tensor) -> Tensor:
    """`[batch, 768]`: the whole picture averaged over a grid of 16 x 16, whatever its shape.
    Distances are root mean square differences of these."""
    rows, columns = (pooling_matrix(side, GRID).to(pictures.device)
                     for side in pictures.shape[-2:])
    return (rows @ pictures.float() @ columns.T).flatten(1) / (3 * GRID * GRID) ** 0.5


def present_backbone(folders: Sequence[Path | str] = ()) -> str | None:
    """The best LPIPS backbone whose file is here; None where there is none."""
    for net in BEST_FIRST:
        try:
            backbone_path(net, folders)
        except DistanceError:
            continue
        return net
    return None


class LpipsFeatures:
    """An LPIPS backbone's features, and the mean LPIPS of all pairs of the pictures it saw.

    LPIPS is the squared distance between weighted, normalised activations, averaged over places
    (Zhang et al., 2018, eq. 1). So its mean over all pairs of n pictures is 2 n / (n - 1) times
    their variance, and no pair needs to be run. The features are the same activations, averaged
    over places: their squared distance is at most LPIPS.
    """

    def __init__(self, lpips: Lpips, size: int):
        """size: side in pixels that pictures are cut to."""
        self.lpips = lpips
        self.size = size
        self._count = 0
        self._sums: list[Tensor] = []  # of each layer [channels, height, width]
        self._squares = 0.0

    def __call__(self, pictures: Tensor, counted: bool = True) -> Tensor:
        """`[batch, dim]`; counted: whether the pictures count for the mean LPIPS."""
        pooled = []
        for number, layer in enumerate(self._layers(square(pictures, self.size))):
            pooled.append(layer.mean((2, 3)))
            if counted:
                if layer.device.type != "cuda":  # others may have no float64
                    layer = layer.cpu()
                scaled = layer.double() / (layer.shape[2] * layer.shape[3]) ** 0.5
                if self._count == 0 and len(self._sums) == number:
                    self._sums.append(torch.zeros_like(scaled[0]))
                self._sums[number] += scaled.sum(0)
                self._squares += float(scaled.square().sum())
        self._count += len(pictures) * counted
        return torch.cat(pooled, dim=1).float().cpu()

    def mean_of_pairs(self) -> float | None:
        """Mean LPIPS of two of the counted pictures; None where there are fewer than two."""
        if self._count < 2:
            return None
        mean = sum(float(total.square().sum()) for total in self._sums) / self._count
        return max(0.0, 2 * (self._squares - mean) / (self._count - 1))

    def _layers(self, pictures: Tensor) -> list[Tensor]:
        """Activations whose squared differences, summed over channels, are LPIPS."""
        model: Any = self.lpips.model
        device = model.scaling_layer.shift.device
        with torch.no_grad():
            layers = model.net(model.scaling_layer(pictures.float().to(device)))
            unit = [layer / (layer.norm(dim=1, keepdim=True) + 1e-10) for layer in layers]
            if not model.lpips:
                return unit
            return [layer * linear.model[-1].weight.clamp(min=0).sqrt()
                    for layer, linear in zip(unit, model.lins, strict=True)]


def load_lpips_features(net: str, folders: Sequence[Path | str] = (), size: int = 128,
                        device: torch.device | str = "cpu") -> LpipsFeatures:
    """net: vgg, alex, squeeze or random. Raises DistanceError where a file or lpips is missing."""
    lpips = Lpips.untrained(device) if net == "random" else Lpips.trained(net, folders, device)
    return LpipsFeatures(lpips, max(size, lpips.smallest))


def missing_backbone(folders: Sequence[Path | str] = ()) -> str:
    """What to do for LPIPS where no backbone's file is here."""
    net = BACKBONES["squeeze"]
    place = f'"{folders[0]}"' if folders else "torch's cache"
    return (f"needs the weights of a network: put {net.url} ({net.megabytes:.0f} MB) into {place}, "
            "or choose lpips_random")


def square(pictures: Tensor, size: int) -> Tensor:
    """The middle square, scaled to `[batch, 3, size, size]`."""
    height, width = pictures.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = pictures[..., top:top + side, left:left + side].float()
    if side == size:
        return cut
    return functional.interpolate(cut, (size, size), mode="bilinear", antialias=True,
                                  align_corners=False)
