"""What the guidance-distilled digits model learns from: where its teacher's ODE ends at CFG 4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import trange

from guidance.adm import NO_CLASS, AdmConfig, AdmUNet
from guidance.adm_checkpoint import Schedule, read_adm
from guidance.mixed_precision import mixed_precision

CFG, STEPS = 4.0, 20


def load_model(path: Path) -> tuple[AdmUNet, AdmConfig, Schedule]:
    """The model in a file of the recipes, ready to be asked."""
    state = load_file(path)
    with safe_open(path, "pt") as file:
        config, schedule = read_adm(state, file.metadata())
    model = AdmUNet(config)
    model.load_state_dict(state)
    return model.eval(), config, schedule


def pairs(teacher: Path, count: int, file: Path, batch: int = 250) -> tuple[Tensor, ...]:
    """Images that the teacher draws with guidance, and the noise that leads straight to each.

    Returns images and noise, both `[count, 3, 16, 16]`, and labels `[count]`, evenly of all
    classes: image + sigma * noise is, at the largest sigma, where the teacher began. Each batch is
    kept in `file`, so that they are drawn once.
    """
    model, config, schedule = load_model(teacher)
    sigmas, steps = normal_sigmas(schedule, STEPS)
    labels = torch.arange(count) % config.num_classes
    shape = (config.in_channels, config.image_size, config.image_size)
    kept = load_file(file) if file.is_file() else dict.fromkeys(
        ("images", "noise"), torch.empty(0, *shape))
    for first in trange(len(kept["images"]), count, batch, desc="teacher's images"):
        some = labels[first:first + batch]
        start = torch.randn(len(some), *shape, generator=torch.Generator().manual_seed(first))
        start *= (1 + sigmas[0] ** 2).sqrt()
        end = draw(model, start, some, sigmas, steps)
        kept = {"images": torch.cat([kept["images"], end]),
                "noise": torch.cat([kept["noise"], (start - end) / sigmas[0]])}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)
    return kept["images"][:count], kept["noise"][:count], labels


def normal_sigmas(schedule: Schedule, steps: int) -> tuple[Tensor, Tensor]:
    """The host's scheduler `normal`: sigmas `[steps + 1]`, the last 0, and the model's timestep at
    each but the last, `[steps]`."""
    at = np.linspace(schedule.steps - 1, 0, steps)
    logs = np.interp(at, np.arange(schedule.steps), schedule.sigmas().log().numpy())
    sigmas = torch.from_numpy(np.append(np.exp(logs), 0.0)).float()
    return sigmas, torch.from_numpy(at).float()


@torch.inference_mode()
def draw(model: AdmUNet, x: Tensor, labels: Tensor, sigmas: Tensor, steps: Tensor) -> Tensor:
    """The host's sampler `euler` with guidance CFG, from x `[batch, 3, height, width]` on."""
    both = torch.cat([labels, torch.full_like(labels, NO_CLASS)])
    for sigma, following, step in zip(sigmas, sigmas[1:], steps, strict=False):
        scaled = (x / (1 + sigma ** 2).sqrt()).repeat(2, 1, 1, 1)
        with mixed_precision("cpu"):
            predicted = model(scaled, step.expand(len(both)), both)
        asked, free = predicted.float().chunk(2)
        x = x + (following - sigma) * (free + CFG * (asked - free))
    return x
