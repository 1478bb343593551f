"""Grids of images side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE, GAP, MARGIN, TITLE = 72, 6, 28, 84  # pixels
BACKGROUND, TEXT, CAPTION, FRAME = "#16181d", "#f2f2f2", "#9aa4b2", "#3fb56f"


@dataclass(frozen=True)
class Panel:
    """images: `[n, 3, height, width]` in [-1, 1]; framed: `[n]` bool."""

    images: Tensor
    framed: Tensor


def contact_sheet(panels: Mapping[tuple[str, str], Panel]) -> Image.Image:
    """One grid per (title, caption), the images in rows, those that count in a frame."""
    columns = math.ceil(math.sqrt(max(len(panel.images) for panel in panels.values())))
    rows = max(math.ceil(len(panel.images) / columns) for panel in panels.values())
    width, height = (MARGIN + count * (TILE + GAP) - GAP for count in (columns, rows))
    sheet = Image.new("RGB", (len(panels) * width + MARGIN, TITLE + height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, ((title, caption), panel) in enumerate(panels.items()):
        left = MARGIN + number * width
        pen.text((left, 16), title, TEXT, ImageFont.load_default(26))
        pen.text((left, 50), caption, CAPTION, ImageFont.load_default(19))
        for i, (image, framed) in enumerate(zip(panel.images, panel.framed.tolist(), strict=True)):
            x, y = left + i % columns * (TILE + GAP), TITLE + i // columns * (TILE + GAP)
            sheet.paste(_tile(image), (x, y))
            if framed:
                pen.rectangle((x - 2, y - 2, x + TILE + 1, y + TILE + 1), outline=FRAME, width=2)
    return sheet


def _tile(image: Tensor) -> Image.Image:
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(0, -1).numpy()
    return Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.LANCZOS)
