"""Trains a small ADM U-Net to predict noise, for the recipes of `demo/train.py`."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import trange

from guidance.adm import AdmConfig, AdmUNet
from guidance.adm_checkpoint import ADM_HEADER, Schedule

MODELS = Path(__file__).parent / "models"
UNFINISHED = Path(__file__).parent / "unfinished"


def train_diffusion(name: str, config: AdmConfig, schedule: Schedule, data: str,
                    draw: Callable[[int], tuple[Tensor, Tensor | None]], iterations: int,
                    batch: int = 64, **figures) -> None:
    """Noise prediction with an exponential average, written to models/<name>.safetensors.

    draw: batch size -> clean images and their labels (None for an unconditional model), from
    torch's global generator, which is seeded anew for each iteration; data, figures: what the
    file's header says of the data and of the training. Deterministic for one machine and thread
    count; goes on where it stopped.
    """
    signal = schedule.alphas_cumprod().float().sqrt()
    noise_scale = (1 - schedule.alphas_cumprod()).float().sqrt()
    # An error of the noise is an error of x0 times sigma: above sigma 5, weigh x0's error evenly.
    weight = (schedule.sigmas().float() / 5).square().clamp(min=1)

    torch.manual_seed(0)
    model = AdmUNet(config).train()
    torch.nn.init.zeros_(model.out[-1].weight)
    torch.nn.init.zeros_(model.out[-1].bias)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    anneal = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 200) * max(0.0, 1 - i / iterations))

    UNFINISHED.mkdir(exist_ok=True)
    checkpoint = UNFINISHED / f"{name}.pt"
    parts = {"model": model, "average": average, "optimizer": optimizer, "anneal": anneal}
    first, losses, seconds = 0, [], 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first, losses, seconds = state["iteration"], state["losses"], state["seconds"]
        for part_name, part in parts.items():
            part.load_state_dict(state[part_name])

    started = time.monotonic()
    bar = trange(first, iterations, initial=first, total=iterations, desc=name)
    for i in bar:
        torch.manual_seed(i + 1)
        x0, label = draw(batch)
        t = torch.randint(schedule.steps, (batch,))
        noise = torch.randn_like(x0)
        x_t = signal[t, None, None, None] * x0 + noise_scale[t, None, None, None] * noise
        with torch.autocast("cpu", torch.bfloat16):
            prediction = model(x_t, t, label)
        error = (prediction.float() - noise).square().mean(dim=(1, 2, 3))
        loss = (weight[t] * error).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        anneal.step()
        decay = min(0.999, (i + 1) / (i + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        if i % 100 == 0:
            bar.set_postfix(loss=f"{mean(losses[-500:]):.4f}")
        if (i + 1) % 500 == 0 or i + 1 == iterations:
            spent = seconds + time.monotonic() - started
            torch.save({name: part.state_dict() for name, part in parts.items()}
                       | {"iteration": i + 1, "losses": losses, "seconds": spent}, checkpoint)
            training = {"iterations": i + 1, "batch": batch, "seconds": round(spent), **figures,
                        "loss": round(mean(losses[-500:]), 5)}
            header = {"config": asdict(config), "schedule": asdict(schedule), "data": data,
                      "training": training}
            MODELS.mkdir(exist_ok=True)
            save_file({k: v.half().contiguous() for k, v in average.state_dict().items()},
                      MODELS / f"{name}.safetensors", {ADM_HEADER: json.dumps(header)})


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
