"""Image files as pictures of 8 bits a colour."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from guidance.image_files import open_image

RAMP = np.arange(256, dtype=np.uint8)[None].repeat(4, 0)


def file_of(image: Image.Image, kind: str, **more) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_greys_of_16_bits_are_those_of_8(kind):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert np.array_equal(open_image(file_of(deep, kind)), RAMP[..., None].repeat(3, -1))
    assert open_image(file_of(deep, kind, exif=turned)).size == (4, 256)


def test_the_order_of_their_bytes_does_not_count():
    big = Image.frombytes("I;16B", (256, 4), (RAMP.astype(">u2") * 257).tobytes())
    assert np.array_equal(np.asarray(open_image(file_of(big, "TIFF")))[..., 0], RAMP)


@pytest.mark.parametrize("numbers", [np.float32, np.int32])
def test_numbers_without_a_black_and_a_white_are_refused(numbers):
    with pytest.raises(ValueError, match="numbers of 32 bits .* expected 8 or 16"):
        open_image(file_of(Image.fromarray(RAMP.astype(numbers)), "TIFF"))
