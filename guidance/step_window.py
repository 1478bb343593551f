"""Which evaluations of a sampling run are guided, told by their noise level alone.

Samplers evaluate the model once or more a step, and between the steps of the schedule; so the
number of calls says nothing, and the noise level says all.
"""

from __future__ import annotations

from dataclasses import dataclass

LOG_SNR_RANGE = (-10.0, 10.0)  # beyond it x_t is all noise, or all image
TOLERANCE = 1e-4  # relative; samplers compute with log sigma and back


@dataclass(frozen=True, kw_only=True)
class StepWindow:
    """schedule: the noise levels of the run's steps, falling, in the host's numbers; sigma_start,
    sigma_end: the guided range, both included; every: guide, or compute anew, at every n-th step.
    """

    schedule: tuple[float, ...]
    sigma_start: float
    sigma_end: float
    every: int = 1

    def __contains__(self, sigma: float) -> bool:
        return self.sigma_end <= sigma <= self.sigma_start

    def step(self, sigma: float) -> int:
        """The step that an evaluation at this noise level belongs to, counted from 0."""
        return max(sum(level >= sigma * (1 - TOLERANCE) for level in self.schedule) - 1, 0)

    def after(self, sigma: float) -> float:
        """The noise level that the step goes to."""
        return self.schedule[min(self.step(sigma) + 1, len(self.schedule) - 1)]

    def due(self, sigma: float, first: int) -> bool:
        """Whether the step is an n-th one, counted from step `first`."""
        return (self.step(sigma) - first) % self.every == 0


@dataclass
class Passed:
    """How many evaluations a run had: in all, outside the window, and inside the window but at
    noise levels outside the usable range of log SNR."""

    evaluations: int = 0
    outside: int = 0
    out_of_range: int = 0

    def open(self, window: StepWindow, sigma: float, log_snr: float,
             usable: tuple[float, float] = LOG_SNR_RANGE) -> bool:
        """Counts one evaluation; whether it may be guided."""
        self.evaluations += 1
        if sigma not in window:
            self.outside += 1
            return False
        low, high = usable
        if not low - TOLERANCE <= log_snr <= high + TOLERANCE:
            self.out_of_range += 1
            return False
        return True
