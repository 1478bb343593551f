"""Image files as pictures of 8 bits a colour."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def open_image(file: Path | bytes) -> Image.Image:
    """An image file, or what one holds, upright and in RGB. Raises what Pillow does, and
    ValueError."""
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    """Pillow's own conversion makes all but the darkest grey of 16 bits white, and numbers below 1
    black."""
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits (mode {image.mode}); expected 8 or 16 "
                         "bits a colour. Save it with these.")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image, np.float32) / 257
        image = Image.fromarray(grey.round().astype(np.uint8))
    return image.convert("RGB")
