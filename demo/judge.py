"""An independent classifier of the digits; its features measure, and never guide."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

JUDGE_FILE = Path(__file__).parent / "models" / "digits_judge.safetensors"


class Judge(nn.Module):
    """Convolutional classifier of 16 x 16 digits with 64 features."""

    def __init__(self, classes: int = 10, features: int = 64):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.3), nn.Linear(64 * 16, features), nn.ReLU())
        self.head = nn.Linear(features, classes)

    @classmethod
    def load(cls, path: Path = JUDGE_FILE) -> Judge:
        judge = cls()
        judge.load_state_dict(load_file(path))
        return judge.eval()

    def features(self, images: Tensor) -> Tensor:
        """Images `[batch, 3, 16, 16]` in [-1, 1] -> features `[batch, 64]`."""
        return self.trunk(images.mean(dim=1, keepdim=True))

    def forward(self, images: Tensor) -> Tensor:
        """Images as in `features` -> class logits `[batch, 10]`."""
        return self.head(self.features(images))


def shifted(images: Tensor, generator: torch.Generator, most: int = 1) -> Tensor:
    """Each image moved by up to `most` pixels in both directions."""
    padded = F.pad(images, (most,) * 4, value=-1.0)
    height, width = images.shape[-2:]
    dx, dy = torch.randint(0, 2 * most + 1, (2, len(images)), generator=generator).tolist()
    return torch.stack([image[:, y:y + height, x:x + width]
                        for image, x, y in zip(padded, dx, dy, strict=True)])
