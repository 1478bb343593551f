"""Training in bfloat16 where that is faster."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def mixed_precision(device: torch.device | str) -> AbstractContextManager:
    """bfloat16 where the device has units for it, else float32: without them it is many times
    slower."""
    kind = torch.device(device).type
    if kind == "cuda":
        has_units = torch.cuda.is_bf16_supported()
    else:
        has_units = kind == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return torch.autocast(kind, torch.bfloat16) if has_units else nullcontext()
