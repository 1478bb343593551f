"""An independent reader of the avatars' attributes; its features measure, and never guide."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from demo.avatars import ATTRIBUTES, AVATARS_SIZE

READER_FILE = Path(__file__).parent / "models" / "avatars_reader.safetensors"


LAYOUT = 6


class AvatarsReader(nn.Module):
    """Convolutional reader of 24 x 24 avatars with 64 features.

    From the same features it also tells whether a face is intact, and the picture at 6 x 6 pixels,
    so that distances between features see a broken face and other colours, not attributes alone.
    """

    def __init__(self, features: int = 64):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(64 * (AVATARS_SIZE // 4) ** 2, features), nn.ReLU())
        self.head = nn.Linear(features, len(ATTRIBUTES))
        self.intact = nn.Linear(features, 1)
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

    @torch.inference_mode()
    def is_intact(self, images: Tensor) -> Tensor:
        """Images as in `features` -> whether each is a whole face, `[batch]`, bool."""
        return torch.cat([self.intact(self.features(part)) for part in images.split(512)])[:, 0] > 0


def broken(images: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Each face `[batch, 3, size, size]` spoilt in one of three ways: a rectangle of it comes from
    another face, it is blurred, or it is noisy."""
    count, size = len(images), images.shape[-1]

    def span() -> Tensor:
        """A random stretch of the side for each image, a third of it at least: `[batch, size]`."""
        low = torch.rand(count, 1, generator=generator) * 0.67
        high = low + 0.33 + torch.rand(count, 1, generator=generator) * (0.67 - low)
        place = (torch.arange(size) + 0.5) / size
        return (place >= low) & (place <= high)

    rectangle = (span()[:, :, None] & span()[:, None, :])[:, None]
    noise = torch.randn(images.shape, generator=generator)
    amount = torch.rand(count, 1, 1, 1, generator=generator) * 0.3 + 0.1
    ways = torch.stack([torch.where(rectangle, others, images),
                        F.avg_pool2d(images, 3, 1, 1, count_include_pad=False),
                        images + amount * noise])
    way = torch.randint(len(ways), (count,), generator=generator)
    return ways[way, torch.arange(count)]
