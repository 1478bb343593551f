"""Charts with what the host has at hand: PIL."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SHARP = 2  # drawn so many times larger, then scaled down
PAPER, INK, FAINT, GRID = "#ffffff", "#22262e", "#6b7280", "#e5e7eb"
BLUE, PALE_BLUE, ORANGE = "#4a70b5", "#c3d0e8", "#e0662e"


class Pen:
    """Draws in the pixels of the finished picture."""

    def __init__(self, width: int, height: int):
        self.size = width, height
        self.picture = Image.new("RGB", (width * SHARP, height * SHARP), PAPER)
        self.draw = ImageDraw.Draw(self.picture)

    def finished(self) -> Image.Image:
        return self.picture.resize(self.size, Image.Resampling.LANCZOS)

    def path(self, points: Sequence[tuple[float, float]], colour, width: float = 1) -> None:
        """A line through the points, with dots where it is a single one."""
        scaled = [(x * SHARP, y * SHARP) for x, y in points]
        if len(scaled) > 1:
            self.draw.line(scaled, colour, round(width * SHARP), "curve")

    def dot(self, x: float, y: float, radius: float, colour) -> None:
        self.draw.ellipse([(x - radius) * SHARP, (y - radius) * SHARP,
                           (x + radius) * SHARP, (y + radius) * SHARP], colour)

    def dashed(self, x0: float, x1: float, y: float, colour) -> None:
        """A level line."""
        for x in np.arange(x0, x1, 8):
            self.path([(x, y), (min(x + 4, x1), y)], colour)

    def dashed_upright(self, x: float, y0: float, y1: float, colour) -> None:
        for y in np.arange(y0, y1, 8):
            self.path([(x, y), (x, min(y + 4, y1))], colour)

    def bar(self, x0: float, y0: float, x1: float, y1: float, colour) -> None:
        """A filled box, a pixel wide at least."""
        self.draw.rectangle([x0 * SHARP, y0 * SHARP, max(x0 + 1, x1) * SHARP, y1 * SHARP], colour)

    def text(self, x: float, y: float, text: str, size: int, colour, anchor: str,
             behind: str | None = None) -> None:
        """anchor: as PIL's, such as "lt" or "mm"; behind: the colour of a box under the text."""
        font, place = ImageFont.load_default(size * SHARP), (x * SHARP, y * SHARP)
        if behind is not None:
            self.draw.rectangle(self.draw.textbbox(place, text, font, anchor), behind)
        self.draw.text(place, text, colour, font, anchor)

    def upright(self, x: float, y: float, text: str, size: int, colour) -> None:
        """Text that runs upwards, its middle at y."""
        strip = Pen(math.ceil(self.width(text, size)), round(size * 1.4))
        strip.text(strip.size[0] / 2, strip.size[1] / 2, text, size, colour, "mm")
        turned = strip.picture.rotate(90, expand=True)
        self.picture.paste(turned, (round(x * SHARP), round(y * SHARP - turned.height / 2)))

    def width(self, text: str, size: int) -> float:
        return ImageFont.load_default(size * SHARP).getlength(text) / SHARP


def as_image(picture: Image.Image) -> Tensor:
    """IMAGE `[1, height, width, 3]`."""
    return torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from low to high."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
