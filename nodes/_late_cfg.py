"""CFG that begins within the denoising: at high noise the model follows the prompt alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class LateCFG:
    """CFG only at noise levels of `sigma` and below, in one sampling run (Kynkäänniemi et al.,
    "Applying Guidance in a Limited Interval", 2404.07724).

    At high noise CFG draws all samples of a prompt to one composition. sigma: in the host's
    numbers. Where CFG is off, the model does not run for the negative prompt, and the noise level
    is read from the device; once CFG is on, it stays on and nothing is read any more.
    """

    def __init__(self, sigma: float):
        self._sigma = sigma
        self._on = False
        self.skipped = 0
        """Evaluations without the CFG that they would have had."""

    @contextmanager
    def evaluation(self, guider, timestep: Tensor) -> Iterator[None]:
        """One evaluation of the model by a guider of the host, at timestep `[batch]`.

        Guiders with more than one CFG are left as they are.
        """
        cfg = getattr(guider, "cfg", 1.0)
        if not self._on and cfg != 1.0:
            self._on = float(timestep[0]) <= self._sigma
        if self._on or cfg == 1.0:
            yield
            return
        self.skipped += 1
        with cfg_off(guider):
            yield


@contextmanager
def cfg_off(guider) -> Iterator[None]:
    """Within, a guider of the host follows the prompt alone; one with more than one CFG, or with
    none, is left as it is."""
    cfg = getattr(guider, "cfg", None)
    if cfg is None:
        yield
        return
    guider.cfg = 1.0
    try:
        yield
    finally:
        guider.cfg = cfg


def without_cfg(guider) -> bool:
    """Whether a guider of the host takes the positive prompt alone."""
    return getattr(guider, "cfg", None) == 1 and not hasattr(guider, "cfg1")
