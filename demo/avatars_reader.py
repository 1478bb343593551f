"""An independent reader of the avatars' attributes; its features measure, and never guide."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from demo.avatars import ATTRIBUTES, AVATARS_SIZE

READER_FILE = Path(__file__).parent / "models" / "avatars_reader.safetensors"


LAYOUT = 6


class AvatarsReader(nn.Module):
    """Convolutional reader of 24 x 24 avatars with 64 features.

    From the same features it also tells the picture at 6 x 6 pixels, so that they hold colours and
    composition too: distances between features then see a broken face, not the attributes alone.
    """

    def __init__(self, features: int = 64):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(64 * (AVATARS_SIZE // 4) ** 2, features), nn.ReLU())
        self.head = nn.Linear(features, len(ATTRIBUTES))
        self.layout = nn.Linear(features, 3 * LAYOUT ** 2)

    @classmethod
    def load(cls, path: Path = READER_FILE) -> AvatarsReader:
        reader = cls()
        reader.load_state_dict(load_file(path))
        return reader.eval()

    def features(self, images: Tensor) -> Tensor:
        """Images `[batch, 3, 24, 24]` in [-1, 1] -> features `[batch, 64]`."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        """Images as in `features` -> one logit an attribute, `[batch, 3]`, in ATTRIBUTES' order."""
        return self.head(self.features(images))

    @torch.inference_mode()
    def read(self, images: Tensor) -> Tensor:
        """Images as in `features` -> the attributes each has, `[batch, 3]`, bool."""
        return torch.cat([self(part) for part in images.split(512)]) > 0
