"""What a noise-conditioned classifier is told about the noise: a timestep, made of the log SNR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor, nn

from .adm_checkpoint import Schedule

LOG_SNR_LIMIT = 10.0  # beyond it an image is noise, or clean, to any classifier
STEPS_PER_LOG_SNR = 50.0  # so that log SNR 10 ... -10 is timestep 0 ... 1000, as ADM's


class LogSnrTime(nn.Module):
    """Timestep 50 * (10 - log SNR): the same for every sampler and schedule."""

    def forward(self, log_snr: Tensor) -> Tensor:
        """`[batch]` -> timesteps `[batch]`, 0 to 1000."""
        return STEPS_PER_LOG_SNR * (LOG_SNR_LIMIT - log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT))

    @property
    def log_snr_range(self) -> tuple[float, float]:
        return -LOG_SNR_LIMIT, LOG_SNR_LIMIT

    def as_json(self) -> dict:
        return {"kind": "log_snr"}


class ScheduleTime(nn.Module):
    """The step of a discrete schedule whose log SNR is nearest, as in the training of ADM."""

    log_snr: Tensor

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.schedule = schedule
        self.register_buffer("log_snr", -2 * schedule.sigmas().log().float(), persistent=False)

    def forward(self, log_snr: Tensor) -> Tensor:
        """`[batch]` -> timesteps `[batch]` as the network's embedding expects them."""
        nearest = (log_snr[:, None] - self.log_snr).abs().argmin(dim=1)
        return nearest * self.schedule.timestep_scale

    @property
    def log_snr_range(self) -> tuple[float, float]:
        sigmas = self.schedule.sigmas()
        return -2 * sigmas[-1].log().item(), -2 * sigmas[0].log().item()

    def as_json(self) -> dict:
        return {"kind": "schedule", "schedule": asdict(self.schedule)}


TimeConditioning = LogSnrTime | ScheduleTime


def time_from_json(parts: Mapping) -> TimeConditioning:
    """Inverse of `as_json`; ValueError, KeyError or TypeError if it is none."""
    if parts["kind"] == "log_snr":
        return LogSnrTime()
    if parts["kind"] == "schedule":
        return ScheduleTime(Schedule(**parts["schedule"]))
    raise ValueError(f"unknown kind of time conditioning '{parts['kind']}'")
