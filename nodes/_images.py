"""Images in files and in memory, as the host's IMAGE."""

from __future__ import annotations

import io as bytes_io
from collections.abc import Sequence
from pathlib import Path

import folder_paths
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

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


def load_image(content: bytes, size: tuple[int, int]) -> Tensor:
    """An image file as IMAGE `[1, height, width, 3]`, scaled to cover `size` (width, height) and
    cut off around the centre."""
    with Image.open(bytes_io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return _as_image(ImageOps.fit(upright, size, Image.Resampling.LANCZOS))


def previews_as_image(previews: Sequence[bytes]) -> Tensor:
    """Stored previews as one IMAGE `[n, 64, 64, 3]`; a single black one where there is none."""
    images = [_as_image(ImageOps.pad(Image.open(bytes_io.BytesIO(preview)).convert("RGB"), PREVIEW))
              for preview in previews]
    return torch.cat(images) if images else torch.zeros(1, *PREVIEW, 3)


def _as_image(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, np.float32) / 255)[None]
