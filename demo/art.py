"""Draws the icon and the banner of the registry page: many alike, and one that is not.

    python -m demo.art        writes docs/art/icon.png and docs/art/banner.png
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from demo.avatars import draw_avatar
from dev import ROOT

FOLDER = ROOT / "docs" / "art"
ICON = 400  # pixels; the registry asks for a square of at most this side
BANNER = (1260, 540)  # 21 to 9
COMMON_FACE, RARE_FACE = 7, 24  # seeds
BACKGROUND, TEXT, CAPTION = "#16181d", "#f2f2f2", "#9aa4b2"
SHADOW, LIGHT = "#2a2f3a", "#8b94a3"  # of the faces that are alike


def face(side: int, rare: bool) -> Image.Image:
    """A tile with round corners, `RGBA`."""
    if rare:
        tile = draw_avatar(np.random.default_rng(RARE_FACE), side, glasses=True, hat=True)
    else:
        tile = draw_avatar(np.random.default_rng(COMMON_FACE), side)
        tile = ImageOps.colorize(tile.convert("L"), SHADOW, LIGHT)
    corners = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), 0.7 * side, 255)
    tile.putalpha(corners.resize((side, side), Image.Resampling.LANCZOS))
    return tile


def grid(picture: Image.Image, left: int, columns: int, rows: int, margin: int, gap: int,
         odd_one: tuple[int, int]) -> None:
    """Fills the picture from `left` on; odd_one: column and row of the rare face."""
    side = (picture.height - 2 * margin - (rows - 1) * gap) // rows
    common, rare = face(side, rare=False), face(side, rare=True)
    for column in range(columns):
        for row in range(rows):
            tile = rare if (column, row) == odd_one else common
            place = (left + column * (side + gap), margin + row * (side + gap))
            picture.paste(tile, place, tile)


def icon() -> Image.Image:
    picture = Image.new("RGB", (ICON, ICON), BACKGROUND)
    grid(picture, left=24, columns=3, rows=3, margin=24, gap=14, odd_one=(1, 1))
    return picture


def banner() -> Image.Image:
    picture = Image.new("RGB", BANNER, BACKGROUND)
    grid(picture, left=704, columns=5, rows=4, margin=36, gap=16, odd_one=(2, 1))
    pen = ImageDraw.Draw(picture)
    pen.text((64, 178), "Uncommon", TEXT, ImageFont.load_default(96))
    pen.text((68, 300), "Never the same picture twice.", CAPTION, ImageFont.load_default(36))
    pen.text((68, 346), "And the rare ones on demand.", CAPTION, ImageFont.load_default(36))
    return picture


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, picture in {"icon": icon(), "banner": banner()}.items():
        picture.save(FOLDER / f"{name}.png", optimize=True)
        print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
