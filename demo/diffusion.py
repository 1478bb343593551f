"""The training of the small diffusion models, for the recipes of `demo/train.py`."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import trange

from guidance.adm import AdmConfig, AdmUNet
from guidance.adm_checkpoint import ADM_HEADER, Schedule
from guidance.mixed_precision import mixed_precision

MODELS = Path(__file__).parent / "models"
UNFINISHED = Path(__file__).parent / "unfinished"
SAVED_EVERY = 500  # iterations

Draw = Callable[[int], tuple[Tensor, Tensor | None, Tensor | None]]


def train_diffusion(name: str, config: AdmConfig, schedule: Schedule, data: str, draw: Draw,
                    iterations: int, batch: int = 64, start: Path | None = None,
                    learning_rate: float = 1e-3, **figures) -> None:
    """An ADM U-Net that predicts noise, see `train`.

    draw: batch size -> clean images, their labels (None for an unconditional model), and their
    noise (None: new for each); start: the model whose weights it begins with; data, figures: what
    the file's header says of the data and of the training.
    """
    signal = schedule.alphas_cumprod().float().sqrt()
    noise_scale = (1 - schedule.alphas_cumprod()).float().sqrt()
    # An error of the noise is an error of x0 times sigma: above sigma 5, weigh x0's error evenly.
    weight = (schedule.sigmas().float() / 5).square().clamp(min=1)

    torch.manual_seed(0)
    model = AdmUNet(config).train()
    torch.nn.init.zeros_(model.out[-1].weight)
    torch.nn.init.zeros_(model.out[-1].bias)
    if start is not None:
        model.load_state_dict(load_file(start))

    def loss() -> Tensor:
        x0, label, noise = draw(batch)
        t = torch.randint(schedule.steps, (batch,))
        if noise is None:
            noise = torch.randn_like(x0)
        x_t = signal[t, None, None, None] * x0 + noise_scale[t, None, None, None] * noise
        with mixed_precision("cpu"):
            prediction = model(x_t, t, label)
        error = (prediction.float() - noise).square().mean(dim=(1, 2, 3))
        return (weight[t] * error).mean()

    train(name, model, loss, iterations, ADM_HEADER,
          {"config": asdict(config), "schedule": asdict(schedule), "data": data},
          {"batch": batch, **figures}, learning_rate)


def train(name: str, model: nn.Module, loss: Callable[[], Tensor], iterations: int, key: str,
          header: dict, figures: dict, learning_rate: float = 1e-3) -> None:
    """AdamW with an exponential average of the weights, written to models/<name>.safetensors.

    loss: that of one iteration; torch's global generator, which is seeded anew for each, is all
    that it may draw from. The file's header has under `key` what `header` says, and of the
    training its iterations, seconds, `figures` and loss. Deterministic for one machine and thread
    count; goes on where it stopped.
    """
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
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
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        anneal.step()
        decay = min(0.999, (i + 1) / (i + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(value.item())
        if i % 100 == 0:
            bar.set_postfix(loss=f"{mean(losses[-500:]):.4f}")
        if (i + 1) % SAVED_EVERY == 0 or i + 1 == iterations:
            spent = seconds + time.monotonic() - started
            torch.save({name: part.state_dict() for name, part in parts.items()}
                       | {"iteration": i + 1, "losses": losses, "seconds": spent}, checkpoint)
            training = {"iterations": i + 1, "seconds": round(spent), **figures,
                        "loss": round(mean(losses[-500:]), 5)}
            MODELS.mkdir(exist_ok=True)
            save_file({k: v.half().contiguous() for k, v in average.state_dict().items()},
                      MODELS / f"{name}.safetensors",
                      {key: json.dumps(header | {"training": training})})


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
