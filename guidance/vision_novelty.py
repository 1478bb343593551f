"""Novelty guidance by what a vision model sees.

After Gwern, "Novelty Nets: Classifier Anti-Guidance" (2024): -grad log(1 - P) is taken at the
embedding of the decoded x0-hat, in closed form, and pulled back through vision model and decoder to
x0-hat. Nothing is backpropagated through the diffusion model: from there on the push is that of
novelty.py, in which the model itself leaves out what is no picture of its own (a gradient of a
vision model alone gives noise that only the vision model sees).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .evaluation import Evaluation
from .noise_level import NoiseLevel
from .novelty import NoveltyRun, NoveltySettings, PushFigures
from .repulsion import Repulsion
from .step_window import StepWindow
from .vision_space import VisionSpace


class VisionRun(NoveltyRun):
    """The state of one sampling run. At every n-th step of the window the gradient is taken anew;
    the steps in between go on with the last one, each within its own limit."""

    space: VisionSpace

    def __init__(self, space: VisionSpace, repulsion: Repulsion | None, settings: NoveltySettings,
                 window: StepWindow):
        super().__init__(space, repulsion, settings)
        self._window = window
        self._first: int | None = None  # step of the window
        self._last: tuple[Tensor, Tensor] | None = None  # displacement of x0, probability
        self._gradients = 0
        self._seconds = 0.0  # of the gradients
        self._began: float | None = None
        self._ended = 0.0

    def _denoise(self, model: Callable[[Tensor], Tensor], x: Tensor, sigma: Tensor,
                 level: NoiseLevel, at: Evaluation) -> Tensor:
        if self._began is None:
            self._began = time.perf_counter()
        try:
            return super()._denoise(model, x, sigma, level, at)
        finally:
            self._ended = time.perf_counter()

    def _wanted(self, x: Tensor, denoised: Tensor, sigma: Tensor, level: NoiseLevel
                ) -> tuple[Tensor, Tensor]:
        displacement, probability = self._displacement(denoised, sigma)
        return level.like(level.signal, x) * displacement, probability

    def _displacement(self, denoised: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The wanted displacement of x0, of its shape, and P(already generated) `[batch]`."""
        # Waits for the device: what is spared outside the window costs far more.
        now = float(sigma.amax())
        if now not in self._window:
            return torch.zeros_like(denoised), denoised.new_zeros(len(denoised))
        if self._first is None:
            self._first = self._window.step(now)
        if (self._last is None or self._last[0].shape != denoised.shape
                or self._window.due(now, self._first)):
            started = time.perf_counter()
            self._last = self.space.pulled_back(denoised, self._push)
            float(self._last[1].sum())  # has ended
            self._gradients += 1
            self._seconds += time.perf_counter() - started
        return self._last

    def figures(self) -> PushFigures:
        whole = max(self._ended - (self._began or 0.0), 1e-9)
        return replace(super().figures(), gradients=self._gradients,
                       gradient_share=self._seconds / whole)
