"""The picture of a training: its losses, and its accuracy by noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..guidance.classifier_training import ClassifierTraining
from ._pen import BLUE, FAINT, GRID, INK, ORANGE, PALE_BLUE, Pen, ticks

WIDTH, HEIGHT = 1200, 500
TOP, BOTTOM = 106, 74
MOST_POINTS = 600  # of a curve; more would be one blot


@dataclass(frozen=True)
class Panel:
    """A pair of axes between `left` and `right`, its values from low to high."""

    pen: Pen
    left: float
    right: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def axes(self, title: str, x_label: str, y_text: Callable[[float], str]) -> None:
        bottom = HEIGHT - BOTTOM
        for value in ticks(*self.y_range, 6):
            self.pen.path([(self.left, self.y(value)), (self.right, self.y(value))], GRID)
            self.pen.text(self.left - 9, self.y(value), y_text(value), 14, FAINT, "rm")
        for value in ticks(*self.x_range, 6):
            self.pen.path([(self.x(value), bottom), (self.x(value), bottom + 5)], INK)
            self.pen.text(self.x(value), bottom + 9, f"{value:,.10g}", 14, FAINT, "mt")
        self.pen.path([(self.left, bottom), (self.right, bottom)], INK)
        self.pen.text(self.left, 24, title, 19, INK, "lt")
        self.pen.text((self.left + self.right) / 2, HEIGHT - 14, x_label, 15, INK, "mb")

    def curve(self, xs: Sequence[float], ys: Sequence[float], colour, width: float,
              dots: bool = False) -> None:
        places = [(self.x(x), self.y(y)) for x, y in zip(xs, ys, strict=True)]
        self.pen.path(places, colour, width)
        if dots:
            for place in places:
                self.pen.dot(*place, 4, colour)

    def legend(self, entries: Sequence[tuple[str, str | None]]) -> None:
        """(text, colour of its line; None for a dashed one), in a row below the title."""
        x, y = self.left, 70
        for text, colour in entries:
            if colour is None:
                self.pen.dashed(x, x + 22, y, FAINT)
            else:
                self.pen.path([(x, y), (x + 22, y)], colour, 3)
            self.pen.text(x + 29, y, text, 14, INK, "lm")
            x += 29 + self.pen.width(text, 14) + 24


def draw_training(training: ClassifierTraining) -> Image.Image:
    """1200 x 500; also of a training that has not ended, or not even begun."""
    pen = Pen(WIDTH, HEIGHT)
    _losses(pen, training)
    _accuracies(pen, training)
    return pen.finished()


def _losses(pen: Pen, training: ClassifierTraining) -> None:
    chance = math.log(training.settings.classes)
    losses = np.asarray(training.losses, np.float64)
    validation = training.evaluations
    smooth = _smooth(losses)
    shown = [chance, *smooth, *(one.loss for one in validation)]
    if len(losses):
        shown += np.quantile(losses, [0.01, 0.99]).tolist()
    low, high = min(shown), min(max(shown), 2.5 * chance)
    margin = 0.06 * (high - low) or 0.5
    panel = Panel(pen, 70, 620, (0, training.settings.iterations),
                  (max(0.0, low - margin), high + margin))
    panel.axes("Loss (cross-entropy)", "iteration", lambda value: f"{value:.4g}")
    pen.dashed(panel.left, panel.right, panel.y(chance), FAINT)
    step = max(1, len(losses) // MOST_POINTS)
    xs = np.arange(1, len(losses) + 1)[::step]
    panel.curve(xs, losses[::step].clip(*panel.y_range), PALE_BLUE, 1)
    panel.curve(xs, smooth[::step].clip(*panel.y_range), BLUE, 2.5)
    panel.curve([one.iteration for one in validation],
                np.clip([one.loss for one in validation], *panel.y_range), ORANGE, 2, dots=True)
    panel.legend([("training", BLUE), ("validation", ORANGE), ("by chance", None)])


def _accuracies(pen: Pen, training: ClassifierTraining) -> None:
    """By noise level when it has ended; until then over the iterations."""
    classes = training.settings.classes
    if training.levels:
        xs = [one.log_snr for one in training.levels]
        ys = [one.accuracy for one in training.levels]
        title, x_label = "Accuracy by noise level", "log SNR (left: noise, right: image)"
        span = (min(xs) - 0.3, max(xs) + 0.3)
    else:
        xs = [one.iteration for one in training.evaluations]
        ys = [one.accuracy for one in training.evaluations]
        title, x_label = "Accuracy so far, all noise levels", "iteration"
        span = (0, training.settings.iterations)
    panel = Panel(pen, 720, WIDTH - 34, span, (0, min(1.04, 1.25 * max([1.6 / classes, *ys]))))
    panel.axes(title, x_label, lambda value: f"{100 * value:.3g} %")
    pen.dashed(panel.left, panel.right, panel.y(1 / classes), FAINT)
    panel.curve(xs, ys, ORANGE, 2.5, dots=True)
    if not xs:
        pen.text((panel.left + panel.right) / 2, HEIGHT / 2, "not measured (no validation images)"
                 if not len(training.validation) else "not measured yet", 15, FAINT, "mm")
    panel.legend([("validation", ORANGE), (f"by chance, {classes} classes", None)])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean of the last 5 % of all values up to each one."""
    window = max(1, len(values) // 20)
    total = np.cumsum(np.concatenate([[0.0], values]))
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - window)
    return (total[last] - total[first]) / (last - first)
