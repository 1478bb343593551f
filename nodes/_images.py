"""Images in files and in memory, as the host's IMAGE."""

from __future__ import annotations

import hashlib
import io as bytes_io
import os
from collections.abc import Sequence
from pathlib import Path

import folder_paths
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ..guidance.image_files import open_image

PREVIEW = (64, 64)


def image_files(folder: str) -> list[Path]:
    """The images in a folder, by name; a relative path starts from ComfyUI's input folder.

    Raises ValueError if the folder is not there, or holds no image.
    """
    path = Path(folder_paths.get_input_directory(), Path(folder).expanduser())
    if not path.is_dir():
        raise ValueError(f'"{path}" is no folder on the computer that runs ComfyUI. Give the path '
                         "of a folder there, or its name inside ComfyUI's input folder.")
    names = folder_paths.filter_files_content_types(
        sorted(file.name for file in path.iterdir() if file.is_file()), ["image"])
    if not names:
        raise ValueError(f'"{path}" holds no images. Folders inside it are not searched; give the '
                         "path of the one that holds the images.")
    return [path / name for name in names]


def stamp(folder: str | None) -> str | float:
    """Changes with the images in a folder. Of a folder that comes by a link the host does not tell
    the name beforehand (None): then it changes each time."""
    if folder is None:
        return float("nan")
    listed = hashlib.sha256()
    for file in image_files(folder) if folder else ():
        stat = file.stat()
        listed.update(os.fsencode(f"{file.name}/{stat.st_size}/{stat.st_mtime_ns}/"))
    return listed.hexdigest()


def load_image(content: bytes, size: tuple[int, int]) -> Tensor:
    """An image file as IMAGE `[1, height, width, 3]`, scaled to cover `size` (width, height) and
    cut off around the centre."""
    return _as_image(ImageOps.fit(open_image(content), size, Image.Resampling.LANCZOS))


def centre_cropped(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture as IMAGE `[1, height, width, 3]` of a size (width, height), scaled as
    guided-diffusion does for training: halved while it is twice too large, then bicubic, then cut
    around the centre."""
    width, height = size
    while min(image.width // width, image.height // height) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = image.resize((max(width, round(image.width * scale)),
                          max(height, round(image.height * scale))), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return _as_image(image.crop((left, top, left + width, top + height)))


def image_size(file: Path) -> tuple[int, int] | None:
    """(width, height) of an image file, upright; None if it cannot be read. Decodes nothing."""
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except Exception:  # Pillow's plugins raise many kinds
        return None


def as_picture(image: Tensor) -> Image.Image:
    """One IMAGE `[height, width, 3]` as a picture, in 8 bits."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def previews_as_image(previews: Sequence[bytes]) -> Tensor:
    """Stored previews as one IMAGE `[n, 64, 64, 3]`; a single black one where there is none."""
    images = [_as_image(ImageOps.pad(Image.open(bytes_io.BytesIO(preview)).convert("RGB"), PREVIEW))
              for preview in previews]
    return torch.cat(images) if images else torch.zeros(1, *PREVIEW, 3)


def _as_image(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, np.float32) / 255)[None]
