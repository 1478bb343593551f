"""Trains the models that the pack ships: `python -m demo.train judge | digits`.

Every recipe is deterministic for one machine and thread count, and resumes where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm import trange

from demo.data import DIGITS_SIZE, digits, split
from demo.judge import JUDGE_FILE, Judge, shifted
from guidance.adm import NO_CLASS, AdmConfig, AdmUNet
from guidance.adm_checkpoint import ADM_HEADER, Schedule

MODELS = Path(__file__).parent / "models"
UNFINISHED = Path(__file__).parent / "unfinished"

DIGITS = AdmConfig(image_size=DIGITS_SIZE, model_channels=32, channel_mult=(1, 2, 2),
                   num_res_blocks=1, attention_levels=(2,), num_classes=10, num_head_channels=32,
                   norm_groups=8, dropout=0.1)


def train_judge(iterations: int = 1200, batch: int = 128) -> None:
    """The independent classifier, on four fifths of the digits."""
    torch.manual_seed(0)
    images, labels = digits()
    train, held_out = split(len(images))
    judge = Judge().train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for i in trange(iterations, desc="judge"):
        generator = torch.Generator().manual_seed(i)
        pick = train[torch.randint(len(train), (batch,), generator=generator)]
        logits = judge(shifted(images[pick], generator))
        loss = F.cross_entropy(logits, labels[pick], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        anneal.step()
    judge.eval()
    with torch.inference_mode():
        hits = (judge(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()
    print(f"judge: accuracy on {len(held_out)} held-out digits {hits:.4f}")
    MODELS.mkdir(exist_ok=True)
    save_file(judge.state_dict(), JUDGE_FILE, {"held_out_accuracy": f"{hits:.4f}"})


def train_digits(iterations: int = 8000, batch: int = 64, label_dropout: float = 0.12) -> None:
    """Class-conditional ADM U-Net on all digits, noise prediction, exponential average."""
    torch.manual_seed(0)
    images, labels = digits()
    schedule = Schedule(kind="scaled_linear", start=0.00085, end=0.012, steps=1000)
    signal = schedule.alphas_cumprod().float().sqrt()
    noise_scale = (1 - schedule.alphas_cumprod()).float().sqrt()
    # An error of the noise is an error of x0 times sigma: above sigma 5, weigh x0's error evenly.
    weight = (schedule.sigmas().float() / 5).square().clamp(min=1)

    model = AdmUNet(DIGITS).train()
    torch.nn.init.zeros_(model.out[-1].weight)
    torch.nn.init.zeros_(model.out[-1].bias)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    anneal = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 200) * max(0.0, 1 - i / iterations))

    UNFINISHED.mkdir(exist_ok=True)
    checkpoint = UNFINISHED / "digits.pt"
    parts = {"model": model, "average": average, "optimizer": optimizer, "anneal": anneal}
    first, losses, seconds = 0, [], 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first, losses, seconds = state["iteration"], state["losses"], state["seconds"]
        for name, part in parts.items():
            part.load_state_dict(state[name])

    started = time.monotonic()
    bar = trange(first, iterations, initial=first, total=iterations, desc="digits")
    for i in bar:
        torch.manual_seed(i + 1)
        pick = torch.randint(len(images), (batch,))
        x0, label = images[pick], labels[pick]
        label = label.masked_fill(torch.rand(batch) < label_dropout, NO_CLASS)
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
            bar.set_postfix(loss=f"{sum(losses[-500:]) / len(losses[-500:]):.4f}")
        if (i + 1) % 500 == 0 or i + 1 == iterations:
            spent = seconds + time.monotonic() - started
            torch.save({name: part.state_dict() for name, part in parts.items()}
                       | {"iteration": i + 1, "losses": losses, "seconds": spent}, checkpoint)
            last = sum(losses[-500:]) / len(losses[-500:])
            header = {"config": asdict(DIGITS), "schedule": asdict(schedule),
                      "data": "scikit-learn digits, bicubic to 16 x 16, grey",
                      "training": {"iterations": i + 1, "batch": batch, "seconds": round(spent),
                                   "label_dropout": label_dropout, "loss": round(last, 5)}}
            MODELS.mkdir(exist_ok=True)
            save_file({k: v.half().contiguous() for k, v in average.state_dict().items()},
                      MODELS / "digits.safetensors", {ADM_HEADER: json.dumps(header)})


RECIPES = {"judge": train_judge, "digits": train_digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    RECIPES[parser.parse_args().recipe]()


if __name__ == "__main__":
    main()
