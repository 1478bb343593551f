"""What passes between a sampler and a MODEL."""

from __future__ import annotations

from typing import NamedTuple

from comfy.patcher_extension import WrappersMP
from torch import Tensor


class Probe:
    """A PREDICT_NOISE wrapper that notes what passes it."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def attach(self, model, key: str):
        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, self)
        return model

    def __call__(self, executor, x, timestep, model_options={}, seed=None):  # noqa: B006
        kept, sigma = x.clone(), timestep.clone()
        schedule = model_options["transformer_options"]["sample_sigmas"].clone()
        out = executor(x, timestep, model_options, seed)
        self.seen.append(Seen(x, kept, sigma, schedule, out.clone()))
        return out


class Seen(NamedTuple):
    """asked: the very tensor; x, out: what it held and what came back; sigma `[batch]`."""

    asked: Tensor
    x: Tensor
    sigma: Tensor
    schedule: Tensor
    out: Tensor
