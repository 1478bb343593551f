"""The training of the small diffusion models, for the recipes of `demo/train.py`."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import trange

from demo.muon import Muon
from guidance.adm import AdmConfig, AdmUNet
from guidance.adm_checkpoint import ADM_HEADER, Schedule
from guidance.mixed_precision import mixed_precision

MODELS = Path(__file__).parent / "models"
UNFINISHED = Path(__file__).parent / "unfinished"
SAVED_EVERY = 500  # iterations
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Drawn(NamedTuple):
    """A batch to learn from: clean images `[batch, channels, height, width]`; their labels
    `[batch]`, None for an unconditional model; their noise, None: new for each; and how much each
    counts, `[batch]`, None: all alike."""

    x0: Tensor
    label: Tensor | None = None
    noise: Tensor | None = None
    weight: Tensor | None = None


Draw = Callable[[int], Drawn]


@dataclass(frozen=True)
class NoiseLevels:
    """Which steps of a schedule are trained, and how much they count.

    draw: batch size -> steps; weight: that of the noise's squared error at each step, `[steps]`.
    """

    draw: Callable[[int], Tensor]
    weight: Tensor


def even_levels(schedule: Schedule) -> NoiseLevels:
    """All alike; above sigma 5, where an error of the noise is a large one of x0, by the latter."""
    return NoiseLevels(lambda batch: torch.randint(schedule.steps, (batch,)),
                       (schedule.sigmas().float() / 5).square().clamp(min=1))


def edm_levels(schedule: Schedule, mean: float = -0.4, spread: float = 1.4,
               sigma_data: float = 0.5) -> NoiseLevels:
    """Those of EDM (2206.00364, table 1), which care more for the high ones, where it is decided
    what is in an image. mean, spread: of log sigma, normal; sigma_data: spread of the images."""
    sigmas = schedule.sigmas().float()

    def draw(batch: int) -> Tensor:
        share = (torch.arange(batch) + torch.rand(batch)) / batch
        drawn = (mean + spread * torch.special.ndtri(share)).exp()
        return torch.searchsorted(sigmas, drawn).clamp(max=schedule.steps - 1)

    # Its weight is of x0's error, which is the noise's times sigma.
    return NoiseLevels(draw, 1 + (sigmas / sigma_data).square())


def tail_levels(schedule: Schedule) -> NoiseLevels:
    """EDM's for half of a batch, for the other half those about sigma 4: there it is decided
    whether there is something rare in an image, and small errors make it rarer still."""
    all_of_them, decisive = edm_levels(schedule), edm_levels(schedule, mean=1.4, spread=0.8)
    return NoiseLevels(
        lambda batch: torch.cat([all_of_them.draw(batch - batch // 2), decisive.draw(batch // 2)]),
        all_of_them.weight)


def train_diffusion(name: str, config: AdmConfig, schedule: Schedule, data: str, draw: Draw,
                    iterations: int, batch: int = 64, start: Path | None = None,
                    learning_rate: float = 1e-3, muon: bool = False,
                    levels: Callable[[Schedule], NoiseLevels] = even_levels,
                    folder: Path | None = None, **figures) -> None:
    """An ADM U-Net that predicts noise, see `train`.

    draw: batch size -> a batch; start: the model whose weights it begins with; muon: whether the
    hidden layers are trained by Muon; folder: see `train`; data, figures: what the file's
    header says of the data and of the training.
    """
    signal = schedule.alphas_cumprod().float().sqrt()
    noise_scale = (1 - schedule.alphas_cumprod()).float().sqrt()
    trained = levels(schedule)

    torch.manual_seed(0)
    model = AdmUNet(config).train()
    torch.nn.init.zeros_(model.out[-1].weight)
    torch.nn.init.zeros_(model.out[-1].bias)
    if start is not None:
        model.load_state_dict(load_file(start))

    def loss() -> Tensor:
        x0, label, noise, weight = draw(batch)
        t = trained.draw(batch)
        if noise is None:
            noise = torch.randn_like(x0)
        x_t = signal[t, None, None, None] * x0 + noise_scale[t, None, None, None] * noise
        label = None if label is None else label.to(DEVICE)
        with mixed_precision(DEVICE):
            prediction = model(x_t.to(DEVICE), t.to(DEVICE), label)
        error = (prediction.float() - noise.to(DEVICE)).square().mean(dim=(1, 2, 3))
        weight = trained.weight[t] if weight is None else trained.weight[t] * weight
        return (weight.to(DEVICE) * error).mean()

    train(name, model, loss, iterations, ADM_HEADER,
          {"config": asdict(config), "schedule": asdict(schedule), "data": data},
          {"batch": batch, **figures}, learning_rate, hidden_weights(model) if muon else (), folder)


def hidden_weights(model: AdmUNet) -> list[nn.Parameter]:
    blocks = (model.input_blocks[1:], model.middle_block, model.output_blocks)
    return [weight for block in blocks for weight in block.parameters() if weight.ndim > 1]


def train(name: str, model: nn.Module, loss: Callable[[], Tensor], iterations: int, key: str,
          header: dict, figures: dict, learning_rate: float = 1e-3,
          by_muon: Sequence[nn.Parameter] = (), folder: Path | None = None) -> None:
    """AdamW, and Muon for some weights, with an exponential average of all, which is written to
    <name>.safetensors in `folder` (None: with the shipped models); on a GPU where there is one.

    loss: that of one iteration, on DEVICE; torch's global generators, which are seeded anew for
    each, are all that it may draw from. The file's header has under `key` what `header` says, and
    of the training its iterations, seconds, device, `figures` and loss. Deterministic for one
    machine and thread count; goes on where it stopped.
    """
    model.to(DEVICE)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    others = [weight for weight in model.parameters() if all(weight is not one for one in by_muon)]
    optimizers = {"optimizer": torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.01)}
    if by_muon:
        optimizers["muon"] = Muon(by_muon, lr=20 * learning_rate)
    anneals = {f"{name} anneal": torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 200) * max(0.0, 1 - i / iterations))
        for name, optimizer in optimizers.items()}

    folder = folder or MODELS
    for one in (folder, UNFINISHED):
        one.mkdir(exist_ok=True)
    checkpoint = UNFINISHED / f"{name}.pt"
    parts = {"model": model, "average": average, **optimizers, **anneals}
    first, losses, seconds = 0, torch.zeros(iterations, device=DEVICE), 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, DEVICE, weights_only=True)
        first, losses, seconds = state["iteration"], state["losses"], state["seconds"]
        for part_name, part in parts.items():
            part.load_state_dict(state[part_name])

    started = time.monotonic()
    bar = trange(first, iterations, initial=first, total=iterations, desc=name)
    for i in bar:
        torch.manual_seed(i + 1)
        value = loss()
        model.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in (*optimizers.values(), *anneals.values()):
            part.step()
        decay = min(0.999, (i + 1) / (i + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses[i] = value.detach()
        recent = losses[max(0, i - 499):i + 1]
        if i % 100 == 0:
            bar.set_postfix(loss=f"{recent.mean():.4f}")
        if (i + 1) % SAVED_EVERY == 0 or i + 1 == iterations:
            spent = seconds + time.monotonic() - started
            torch.save({name: part.state_dict() for name, part in parts.items()}
                       | {"iteration": i + 1, "losses": losses, "seconds": spent}, checkpoint)
            training = {"iterations": i + 1, "seconds": round(spent), "device": device_name(),
                        **figures, "loss": round(recent.mean().item(), 5)}
            save_file({k: v.half().cpu().contiguous() for k, v in average.state_dict().items()},
                      folder / f"{name}.safetensors",
                      {key: json.dumps(header | {"training": training})})


def device_name() -> str:
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"
