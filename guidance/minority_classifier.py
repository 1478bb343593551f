"""The classifier of minority guidance: which ordinal class of rarity does a noisy image belong to?

Um, Lee and Ye, "Don't Play Favorites: Minority Guidance for Diffusion Models" (2301.12334), 4.1.
Class 0 holds the most typical images, the last class the rarest.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adm import AdmTrunk
from .adm_encoder import AdmEncoder
from .time_conditioning import TimeConditioning

PIXEL_SPACE = "PixelSpace/3"  # RGB images in [-1, 1]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class FrozenExtractor(nn.Module):
    """A noise-aware network up to its middle block, read by a small classifier and not trained
    with it (the authors' recipe for LSUN)."""

    def __init__(self, trunk: AdmTrunk, time: TimeConditioning):
        super().__init__()
        self.trunk = trunk
        self.time = time

    def forward(self, x_vp: Tensor, log_snr: Tensor) -> Tensor:
        """`[batch, channels, height, width]`, `[batch]` -> features `[batch, ...]`."""
        return self.trunk.features(x_vp, self.time(log_snr))


def ordinary_copy(module: AnyModule, device: torch.device | str) -> AnyModule:
    """A frozen copy in float32 that gradients can pass through, whatever mode the module was made
    in."""
    with torch.inference_mode(False), torch.no_grad():
        copied = copy.deepcopy(module).to(device, torch.float32)
        return copied.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False, kw_only=True)
class MinorityClassifier:
    """p(class | x_t), and what its classes mean. Unknown figures are None."""

    net: AdmEncoder
    time: TimeConditioning
    space: str
    """Which latents it knows: the host's latent format and its channels, such as "SD15/4"."""
    channels: int
    log_snr_range: tuple[float, float]
    """The lowest and the highest log SNR of its training."""
    extractor: FrozenExtractor | None = None
    thresholds: Tensor | None = None
    """`[classes]`, rising: class i holds the scores above thresholds[i - 1] and up to
    thresholds[i]."""
    distance: str | None = None
    sigma: float | None = None
    training: dict = field(default_factory=dict)
    """Figures of the training, for people: plain values that JSON can hold."""
    name: str = ""

    @property
    def classes(self) -> int:
        return self.net.config.classes

    def logits(self, x_vp: Tensor, log_snr: Tensor) -> Tensor:
        """As `log_probs`, before the softmax."""
        if x_vp.ndim == 5 and x_vp.shape[2] == 1:  # one frame of a video model
            x_vp = x_vp.squeeze(2)
        if x_vp.ndim != 4 or x_vp.shape[1] != self.channels:
            raise ValueError(f"{self._called()} takes latents of {self.channels} channels, height "
                             f"and width; it was given {list(x_vp.shape[1:])}. Use a classifier "
                             "that was trained for this model.")
        reads = self.net if self.extractor is None else self.extractor.trunk
        smallest = 2 ** (len(reads.config.widths) - 1)
        if min(x_vp.shape[2:]) < smallest:
            raise ValueError(f"{self._called()} needs latents of {smallest} x {smallest} or more; "
                             f"it was given {x_vp.shape[3]} x {x_vp.shape[2]}. Draw larger images, "
                             "or use a classifier that was trained for small ones.")
        h = x_vp if self.extractor is None else self.extractor(x_vp, log_snr)
        return self.net(h, self.time(log_snr))

    def log_probs(self, x_vp: Tensor, log_snr: Tensor) -> Tensor:
        """log p(class | x_t) `[batch, classes]`, float32, differentiable in x_vp.

        x_vp: x_t / sqrt(a^2 + s^2), `[batch, channels, (1,) height, width]`; log_snr:
        2 log(a / s), `[batch]`.
        """
        return F.log_softmax(self.logits(x_vp, log_snr).float(), dim=1)

    def on(self, device: torch.device | str) -> MinorityClassifier:
        """A copy for one run: float32 weights on the device, through which gradients can pass."""
        with torch.inference_mode(False), torch.no_grad():
            def tensor(values: Tensor | None) -> Tensor | None:
                return None if values is None else values.clone().to(device, torch.float32)

            return replace(
                self, net=ordinary_copy(self.net, device), time=ordinary_copy(self.time, device),
                extractor=(None if self.extractor is None
                           else ordinary_copy(self.extractor, device)),
                thresholds=tensor(self.thresholds))

    def check_space(self, space: str) -> None:
        """ValueError unless it was trained on latents of this space."""
        if space != self.space:
            raise ValueError(
                f"{self._called()} was trained on latents of the space {self.space}, but this "
                f"model's are of the space {space}. Use a classifier that was trained for this "
                "model, or train one: Minority Score, then Train Minority Classifier.")

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes one self-contained safetensors file, or leaves what was there."""
        from .minority_checkpoint import save_classifier

        save_classifier(self, path, dtype)

    def describe(self) -> str:
        """A few lines for people."""
        lines = [f"{self._called()}: {self.classes} classes for latents of {self.space}"]
        if self.distance is not None:
            lines.append(f"scored by {self.distance}" + (
                f" at sigma {self.sigma:g}" if self.sigma is not None else ""))
        if self.thresholds is not None:
            low, high = self.thresholds[0].item(), self.thresholds[-1].item()
            lines.append(f"typical: score up to {low:.4g}; the rarest reaches {high:.4g}")
        parameters = sum(p.numel() for p in self.net.parameters())
        lines.append(f"{parameters:,} parameters" + (
            " on a frozen extractor" if self.extractor is not None else ""))
        lines += [f"{key}: {value}" for key, value in self.training.items()
                  if isinstance(value, (int, float, str))]
        return "\n".join(lines)

    def _called(self) -> str:
        return f"The classifier {self.name}" if self.name else "The classifier"
