"""Draws faces with a long tail whose frequencies are known: the data of the `avatars` model.

Colours, pose, proportions, hair and expression vary in every face and are nobody's rarity: the
colours of a rare attribute come from the same ranges as those of clothes and hair, so neither
brightness nor saturation tells who is rare (Remark 3.2 of Um and Ye, 2301.12334).
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

AVATARS_SIZE = 24
RATES: Mapping[str, float] = MappingProxyType({"glasses": 0.03, "hat": 0.02, "side": 0.01})
ATTRIBUTES = tuple(RATES)
OVERSAMPLING = 8

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Face:
    """Where a face lies in the unit square; y points down."""

    x: float
    y: float
    rx: float
    ry: float


def class_of(attributes: Tensor) -> Tensor:
    """Attributes `[batch, 3]`, bool, in ATTRIBUTES' order -> classes `[batch]`: bit i of a class
    is attribute i, so 1 is glasses alone, 2 a hat alone, 4 a profile alone."""
    return (attributes * 2 ** torch.arange(len(ATTRIBUTES))).sum(dim=1)


def attributes_of(classes: Tensor) -> Tensor:
    """Classes `[batch]`, 0 to 7 -> attributes as `class_of` takes them."""
    return classes[:, None].bitwise_and(2 ** torch.arange(len(ATTRIBUTES))) > 0


def avatars(count: int, size: int = AVATARS_SIZE, seed: int = 0,
            rates: Mapping[str, float] = RATES, first: int = 0) -> tuple[Tensor, Tensor]:
    """Faces `first` to `first + count - 1` of the endless series of a seed.

    Returns images `[count, 3, size, size]` in [-1, 1] and the rare attributes `[count, 3]`, bool,
    in the order of ATTRIBUTES. Each face depends on its number, the seed and the rates alone.
    """
    images, attributes = [], []
    for number in range(first, first + count):
        rng = np.random.default_rng((seed, number))
        rare = {name: bool(rng.random() < rates[name]) for name in ATTRIBUTES}
        images.append(np.asarray(draw_avatar(rng, size, **rare)))
        attributes.append([rare[name] for name in ATTRIBUTES])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1, torch.tensor(attributes)


def draw_avatar(rng: np.random.Generator, size: int, *, glasses: bool = False, hat: bool = False,
                side: bool = False) -> Image.Image:
    """One face; all that the attributes leave open comes from `rng`."""
    canvas = _Canvas(size)
    canvas.gradient(_colour(rng, value=(0.25, 1.0)), _colour(rng, value=(0.25, 1.0)))
    rx = rng.uniform(0.205, 0.245)
    face = Face(x=0.5 + rng.uniform(-0.05, 0.05), y=0.52 + rng.uniform(-0.03, 0.03),
                rx=rx, ry=rx * rng.uniform(1.15, 1.3))
    skin = _skin(rng)
    hair = _unlike(skin, lambda: _hair(rng))
    clothes = _colour(rng, value=(0.15, 1.0))
    long_hair = rng.random() < 0.5
    fringe = rng.uniform(0.35, 0.6)
    smile = rng.uniform(-0.5, 1.0)
    gaze = rng.uniform(-0.25, 0.25)

    if side:
        canvas.mirrored = rng.random() < 0.5
        _draw_side(canvas, face, skin, hair, clothes, long_hair, smile)
    else:
        _draw_front(canvas, face, skin, hair, clothes, long_hair, fringe, smile, gaze)
    if glasses:
        frame = _unlike(skin, lambda: _colour(rng, value=(0.15, 1.0)), by=120)
        _draw_glasses(canvas, face, frame, side)
    if hat:
        cloth = _unlike(hair, lambda: _colour(rng, value=(0.15, 1.0)), by=120)
        _draw_hat(canvas, face, cloth, side)
    return canvas.image()


def _colour(rng: np.random.Generator, value: tuple[float, float]) -> Colour:
    return _rgb(rng.random(), rng.uniform(0.1, 0.9), rng.uniform(*value))


def _skin(rng: np.random.Generator) -> Colour:
    depth = rng.random()
    return _rgb(rng.uniform(0.05, 0.09), 0.3 + 0.3 * depth, 0.98 - 0.5 * depth)


def _hair(rng: np.random.Generator) -> Colour:
    """From black over brown to blond, and now and then anything."""
    if rng.random() < 0.15:
        return _colour(rng, value=(0.3, 0.9))
    return _rgb(rng.uniform(0.04, 0.12), rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.85))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))


def _unlike(other: Colour, draw: Callable[[], Colour], by: int = 60) -> Colour:
    """The first colour drawn that differs from another one by more than `by` in a channel; by 60
    the eye can tell them apart, by 120 at a glance."""
    while True:
        colour = draw()
        if max(abs(a - b) for a, b in zip(colour, other, strict=True)) > by:
            return colour


def _darker(colour: Colour, factor: float = 0.72) -> Colour:
    return tuple(round(c * factor) for c in colour)


class _Canvas:
    """Draws in the unit square, larger than asked for, and then averages."""

    def __init__(self, size: int):
        self.size = size
        self.scale = size * OVERSAMPLING
        self.mirrored = False
        self.picture = Image.new("RGB", (self.scale, self.scale))
        self.pen = ImageDraw.Draw(self.picture)

    def _x(self, x: float) -> float:
        return self.scale * (1 - x if self.mirrored else x)

    def _box(self, x0: float, y0: float, x1: float, y1: float) -> list[float]:
        left, right = sorted((self._x(x0), self._x(x1)))
        return [left, self.scale * y0, right, self.scale * y1]

    def gradient(self, top: Colour, bottom: Colour) -> None:
        weight = np.linspace(0, 1, self.scale)[:, None]
        rows = (1 - weight) * np.array(top) + weight * np.array(bottom)
        pixels = np.repeat(rows[:, None], self.scale, axis=1).round().astype(np.uint8)
        self.picture.paste(Image.fromarray(pixels))

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour | None,
                outline: Colour | None = None, width: float = 0) -> None:
        self.pen.ellipse(self._box(x - rx, y - ry, x + rx, y + ry), fill, outline,
                         round(width * self.scale))

    def half(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """The upper half of an ellipse."""
        self.pen.pieslice(self._box(x - rx, y - ry, x + rx, y + ry), 180, 360, fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour,
            radius: float = 0) -> None:
        self.pen.rounded_rectangle(self._box(x0, y0, x1, y1), radius * self.scale, fill)

    def polygon(self, points: list[tuple[float, float]], fill: Colour) -> None:
        self.pen.polygon([(self._x(x), self.scale * y) for x, y in points], fill)

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float) -> None:
        self.pen.line([(self._x(x), self.scale * y) for x, y in points], fill,
                      round(width * self.scale), joint="curve")

    def image(self) -> Image.Image:
        return self.picture.resize((self.size, self.size), Image.Resampling.BOX)


def _draw_shoulders(canvas: _Canvas, face: Face, skin: Colour, clothes: Colour) -> None:
    neck = 0.4 * face.rx
    canvas.ellipse(face.x, 1.05, 0.36, 0.22, clothes)
    canvas.box(face.x - neck, face.y, face.x + neck, face.y + face.ry + 0.1, _darker(skin))


def _draw_front(canvas: _Canvas, face: Face, skin: Colour, hair: Colour, clothes: Colour,
                long_hair: bool, fringe: float, smile: float, gaze: float) -> None:
    x, y, rx, ry = face.x, face.y, face.rx, face.ry
    if long_hair:
        canvas.box(x - 1.2 * rx, y - 0.3 * ry, x + 1.2 * rx, y + 1.25 * ry, hair, 0.05)
    _draw_shoulders(canvas, face, skin, clothes)
    canvas.half(x, y, 1.2 * rx, 1.25 * ry, hair)
    canvas.ellipse(x, y, rx, ry, skin)
    canvas.half(x, y - fringe * ry, 0.85 * rx, 0.55 * ry, hair)
    for sign in (-1, 1):
        eye = x + sign * 0.45 * rx
        canvas.ellipse(eye, y, 0.055, 0.04, (250, 250, 250))
        canvas.ellipse(eye + 0.1 * gaze, y, 0.028, 0.034, (25, 25, 35))
    canvas.ellipse(x, y + 0.28 * ry, 0.025, 0.04, _darker(skin))
    _draw_mouth(canvas, x, y + 0.58 * ry, 0.38 * rx, smile)


def _draw_mouth(canvas: _Canvas, x: float, y: float, half_width: float, smile: float) -> None:
    steps = np.linspace(-1, 1, 9)
    points = [(x + t * half_width, y + 0.045 * smile * (0.5 - t * t)) for t in steps]
    canvas.line(points, (165, 45, 55), 0.04)


def _draw_side(canvas: _Canvas, face: Face, skin: Colour, hair: Colour, clothes: Colour,
               long_hair: bool, smile: float) -> None:
    """A profile that looks to the left, or to the right on a mirrored canvas."""
    x, y, rx, ry = face.x, face.y, face.rx, face.ry
    canvas.ellipse(x + 0.35 * rx, y - 0.1 * ry, 1.1 * rx, 1.15 * ry, hair)
    if long_hair:
        canvas.box(x + 0.2 * rx, y - 0.2 * ry, x + 1.45 * rx, y + 1.25 * ry, hair, 0.05)
    _draw_shoulders(canvas, face, skin, clothes)
    canvas.ellipse(x - 0.1 * rx, y, 0.95 * rx, ry, skin)
    canvas.polygon([(x - 0.95 * rx, y - 0.1 * ry), (x - 1.5 * rx, y + 0.35 * ry),
                    (x - 0.85 * rx, y + 0.42 * ry)], skin)
    canvas.polygon([(x - 0.1 * rx, y - 1.1 * ry), (x + 1.35 * rx, y - 0.7 * ry),
                    (x + 1.35 * rx, y + 0.6 * ry), (x + 0.25 * rx, y + 0.3 * ry)], hair)
    canvas.half(x + 0.1 * rx, y - 0.45 * ry, 0.95 * rx, 0.68 * ry, hair)
    canvas.ellipse(x - 0.6 * rx, y, 0.045, 0.04, (250, 250, 250))
    canvas.ellipse(x - 0.7 * rx, y, 0.026, 0.034, (25, 25, 35))
    _draw_mouth(canvas, x - 0.72 * rx, y + 0.62 * ry, 0.2 * rx, smile)


def _draw_glasses(canvas: _Canvas, face: Face, frame: Colour, side: bool) -> None:
    """Sunglasses."""
    x, y, rx = face.x, face.y, face.rx
    if side:
        canvas.line([(x - 0.6 * rx, y), (x + 0.6 * rx, y)], frame, 0.05)
        canvas.ellipse(x - 0.62 * rx, y + 0.01, 0.1, 0.09, frame)
        return
    canvas.line([(x - 0.95 * rx, y), (x + 0.95 * rx, y)], frame, 0.05)
    for sign in (-1, 1):
        canvas.ellipse(x + sign * 0.47 * rx, y + 0.01, 0.1, 0.09, frame)


def _draw_hat(canvas: _Canvas, face: Face, colour: Colour, side: bool) -> None:
    x, y, rx, ry = face.x + (0.15 * face.rx if side else 0), face.y, face.rx, face.ry
    brim = y - 0.55 * ry
    canvas.box(x - 0.95 * rx, brim - 0.26, x + 0.95 * rx, brim, colour, 0.06)
    canvas.box(x - 1.6 * rx, brim - 0.06, x + 1.6 * rx, brim + 0.02, _darker(colour), 0.03)
