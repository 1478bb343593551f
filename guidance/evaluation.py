"""One evaluation of the model, as all guidance of a run shares it.

Several nodes may guide one model, each inside or around the others. Every one of them takes its
push at the same place, told here, and adds it to what comes from inside; so the pushes add up to
the same sum in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


class Evaluation:
    """All `[batch, ...]`, None where there is none yet.

    x: where the sampler asks; plain: x0-hat that the model answered, before any push of x0-hat;
    previous: x0-hat that the sampler got at the evaluation before, with all pushes; looking:
    whether the model is only looked at, and nobody pushes; antithetic: whether the batch begins
    with antithetic noises, which two nodes must not both make.
    """

    def __init__(self) -> None:
        self.x: Tensor | None = None
        self.plain: Tensor | None = None
        self.previous: Tensor | None = None
        self.looking = False
        self.antithetic = False
        self._seen: Tensor | None = None

    def run(self, x: Tensor, guided: Callable[[], Tensor]) -> Tensor:
        """What `guided` gives at x; the outermost of those that guide tells where that is."""
        if self.x is not None:
            return guided()
        self.x, self.plain = x, None
        if self.previous is not None and self.previous.shape != x.shape:
            self.previous = None  # a sampler went on with other frames
        try:
            self.previous = guided()
            return self.previous
        finally:
            self.x = self.plain = self._seen = None

    def looked(self, model: Callable[[Tensor], Tensor]) -> Tensor:
        """x0-hat without any push, asked before the evaluation proper, once for all."""
        if self._seen is None:
            self.looking = True
            try:
                self._seen = model(self.x)
            finally:
                self.looking, self.plain = False, None
        return self._seen

    def before(self, look: Callable[[], T]) -> T:
        """What `look` finds by evaluations before the run, at which nobody pushes."""
        self.looking = True
        try:
            return look()
        finally:
            self.looking, self.previous = False, None

    def answered(self, denoised: Tensor) -> Tensor:
        """The same; the innermost of those that guide tells what the model itself answered."""
        if self.plain is None:
            self.plain = denoised
        return denoised
