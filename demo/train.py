"""Trains the models that the pack ships: `python dev.py train RECIPE`.

Every recipe is deterministic for one machine and thread count. Those of diffusion models and of
minority classifiers resume where they stopped.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import trange

from demo.avatars import ATTRIBUTES, AVATARS_SIZE, avatars, class_of
from demo.avatars_reader import LAYOUT, READER_FILE, AvatarsReader, broken
from demo.data import DIGITS_SIZE, digits, split
from demo.diffusion import (
    DEVICE, MODELS, UNFINISHED, Drawn, edm_levels, tail_levels, train, train_diffusion)
from demo.digits_distilled import CFG, STEPS, load_model, pairs
from demo.host import InProcessHost
from demo.judge import JUDGE_FILE, Judge, shifted
from demo.minority_classifier import ClassifierRecipe, train_classifier
from guidance.adm import NO_CLASS, AdmConfig
from guidance.adm_checkpoint import Schedule
from guidance.mixed_precision import mixed_precision

DIGITS = AdmConfig(image_size=DIGITS_SIZE, model_channels=32, channel_mult=(1, 2, 2),
                   num_res_blocks=1, attention_levels=(2,), num_classes=10, num_head_channels=32,
                   norm_groups=8, dropout=0.1)
AVATARS = AdmConfig(image_size=AVATARS_SIZE, model_channels=32, channel_mult=(1, 2, 3),
                    num_res_blocks=1, attention_levels=(2,), num_head_channels=32, norm_groups=8)
AVATARS_64 = AdmConfig(image_size=64, model_channels=32, channel_mult=(1, 2, 2, 3),
                       num_res_blocks=1, attention_levels=(3,), num_head_channels=32,
                       norm_groups=8)
AVATARS_COUNT = 20_000
# How much more often than in the data a small model must see what is rare, to draw it as often.
EMPHASIS = {"glasses": 1.5, "hat": 1.1, "side": 2.7}
EMPHASIS_64 = {"glasses": 0.8, "hat": 1.4, "side": 1.1}
EVEN = dict.fromkeys(ATTRIBUTES, 0.5)  # so that a reader sees each attribute equally often


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


def train_digits(label_dropout: float = 0.12) -> None:
    """Class-conditional ADM U-Net on all digits."""
    images, labels = digits()

    def draw(batch: int) -> Drawn:
        pick = torch.randint(len(images), (batch,))
        dropped = torch.rand(batch) < label_dropout
        return Drawn(images[pick], labels[pick].masked_fill(dropped, NO_CLASS))

    train_diffusion("digits", DIGITS,
                    Schedule(kind="scaled_linear", start=0.00085, end=0.012, steps=1000),
                    "scikit-learn digits, bicubic to 16 x 16, grey", draw, iterations=8000,
                    label_dropout=label_dropout)


def train_avatars(name: str = "avatars", config: AdmConfig = AVATARS, beta_end: float = 0.016,
                  emphasis: Mapping[str, float] = EMPHASIS, iterations: int = 5000,
                  further: int = 1000, last: int = 1000) -> None:
    """Unconditional ADM U-Net on drawn faces with a long tail.

    further: iterations by EDM's noise levels; last: by those that decide what is rare, and by
    `emphasis`. Without either, what is rare comes out too rarely.
    """
    images, attributes = avatars(AVATARS_COUNT, config.image_size)
    chance, weight = rare_more_often(attributes, emphasis)

    def draw(batch: int) -> Drawn:
        return Drawn(images[torch.randint(len(images), (batch,))])

    def draw_rare_more_often(batch: int) -> Drawn:
        pick = torch.multinomial(chance, batch, replacement=True)
        return Drawn(images[pick], weight=weight[pick])

    schedule = Schedule(kind="scaled_linear", start=0.00085, end=beta_end, steps=1000)
    learn = functools.partial(train_diffusion, config=config, schedule=schedule, muon=True,
                              data=f"{AVATARS_COUNT} faces of demo/avatars.py, seed 0")
    learn(f"{name}_first", draw=draw, iterations=iterations, folder=UNFINISHED)
    learn(f"{name}_further", draw=draw, iterations=further, folder=UNFINISHED, levels=edm_levels,
          start=UNFINISHED / f"{name}_first.safetensors", learning_rate=3e-4)
    learn(name, draw=draw_rare_more_often, iterations=last, levels=tail_levels,
          start=UNFINISHED / f"{name}_further.safetensors", learning_rate=3e-4,
          iterations_before=iterations + further)


def rare_more_often(attributes: Tensor, emphasis: Mapping[str, float], share: float = 0.4
                    ) -> tuple[Tensor, Tensor]:
    """Each face's chance to be drawn and its weight in the loss, both `[n]`, by its attributes
    `[n, 3]`. A share of all draws is of faces with a rare attribute, as many for each attribute,
    and the rest is even; the weights make up for it, but for `emphasis`."""
    of_each = attributes / attributes.sum(dim=0) / attributes.shape[1]
    chance = (1 - share) / len(attributes) + share * of_each.sum(dim=1)
    most = (attributes * torch.tensor([*emphasis.values()])).amax(dim=1)  # of several
    weight = torch.where(attributes.any(dim=1), most, 1.0)
    return chance, weight / (len(attributes) * chance)


def train_avatars_64() -> None:
    """The same at 64 pixels, for a GPU."""
    train_avatars("avatars_64", AVATARS_64, beta_end=0.02, emphasis=EMPHASIS_64)


def train_digits_distilled(count: int = 4000, iterations: int = 2000, batch: int = 64) -> None:
    """A student of `digits` that draws at CFG 1, and in a few steps, what its teacher does at CFG
    4: noise prediction on the straight lines from the teacher's noise to the teacher's images
    (reflow, 2209.03003; with a guided teacher as in 2309.06380)."""
    teacher = MODELS / "digits.safetensors"
    _, config, schedule = load_model(teacher)
    images, noise, labels = pairs(teacher, count, UNFINISHED / "digits_distilled_pairs.safetensors")

    def draw(batch: int) -> Drawn:
        pick = torch.randint(count, (batch,))
        return Drawn(images[pick], labels[pick], noise[pick])

    train_diffusion("digits_distilled", replace(config, dropout=0.0), schedule,
                    f"{count} images of digits.safetensors, euler {STEPS}, CFG {CFG:g}", draw,
                    iterations, batch, start=teacher, learning_rate=5e-4)


def train_avatars_reader(count: int = 20_000, held_out: int = 4000, iterations: int = 4000,
                         batch: int = 128) -> None:
    """The independent reader, on faces that the model never saw; half of them are broken."""
    torch.manual_seed(0)
    images, attributes = avatars(count, seed=1, rates=EVEN)
    reader = AvatarsReader().train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.05)
    anneal = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for i in trange(iterations, desc="avatars_reader"):
        generator = torch.Generator().manual_seed(i)
        pick, other = torch.randint(count, (2, batch), generator=generator)
        intact = torch.arange(batch) % 2 == 0
        x0 = torch.where(intact[:, None, None, None], images[pick],
                         broken(images[pick], images[other], generator))
        x0 = x0 + 0.03 * torch.randn(x0.shape, generator=generator)
        features = reader.features(x0)
        # What a broken face has of a rare attribute is known only where neither source has it.
        known = intact[:, None] | ~(attributes[pick] | attributes[other])
        loss = F.binary_cross_entropy_with_logits(
            reader.head(features), attributes[pick].float(), weight=known.float())
        loss = loss + F.binary_cross_entropy_with_logits(
            reader.intact(features)[:, 0], intact.float())
        layout = F.adaptive_avg_pool2d(x0, LAYOUT).flatten(1)
        loss = loss + F.mse_loss(reader.layout(features), layout)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        anneal.step()
    unseen, truth = avatars(held_out, seed=2, rates=EVEN)
    accuracy = (reader.eval().read(unseen) == truth).float().mean(0).tolist()
    spoilt = broken(unseen, unseen.roll(1, 0), torch.Generator().manual_seed(iterations))
    accuracy += [(reader.is_intact(unseen).float().mean().item()),
                 (~reader.is_intact(spoilt)).float().mean().item()]
    named = {name: f"{value:.4f}" for name, value in
             zip([*ATTRIBUTES, "intact", "broken"], accuracy, strict=True)}
    print(f"avatars_reader: accuracy on {held_out} held-out faces {named}")
    MODELS.mkdir(exist_ok=True)
    save_file(reader.state_dict(), READER_FILE, {f"held_out_{k}": v for k, v in named.items()})


def train_avatars_dit() -> None:
    """Class-conditional DiT on drawn faces, built on the Flux class of a real ComfyUI."""
    InProcessHost(UNFINISHED / "avatars_dit", cpu=DEVICE.type == "cpu")
    train_dit()


def train_dit(count: int = AVATARS_COUNT, iterations: int = 6000, batch: int = 32,
              label_dropout: float = 0.1) -> None:
    """Rectified flow (2209.03003) on faces whose attributes are their class, with the noise levels
    of 2403.03206, section 3.1: the logit of t is normal. Needs a host in this process."""
    from demo import avatars_dit as dit

    images, attributes = avatars(count, seed=4, rates=EVEN)
    classes = class_of(attributes)
    torch.manual_seed(0)
    model = dit.ClassDit().train()

    def loss() -> Tensor:
        pick = torch.randint(count, (batch,))
        label = classes[pick].masked_fill(torch.rand(batch) < label_dropout, dit.NO_CLASS)
        x0, noise = images[pick], torch.randn(batch, *images.shape[1:])
        t = torch.randn(batch).sigmoid()
        x_t = torch.lerp(x0, noise, t[:, None, None, None])
        with mixed_precision(DEVICE):
            velocity = model(x_t.to(DEVICE), t.to(DEVICE), label.to(DEVICE))
        return (velocity.float() - (noise - x0).to(DEVICE)).square().mean()

    with dit.training():
        train("avatars_dit", model, loss, iterations, dit.DIT_HEADER,
              {"config": dit.FLUX, "schedule": {"shift": 0.0}, "size": AVATARS_SIZE,
               "classes": dit.CLASSES,
               "data": f"{count} faces of demo/avatars.py, seed 4, each attribute in half"},
              {"batch": batch, "label_dropout": label_dropout})


def train_avatars_minority() -> None:
    """The shipped minority classifier of the avatars, in a real ComfyUI."""
    host = InProcessHost(UNFINISHED / "avatars_minority", cpu=DEVICE.type == "cpu")
    train_classifier(host, ClassifierRecipe(), MODELS / "avatars_minority.safetensors")


RECIPES = {"judge": train_judge, "digits": train_digits,
           "digits_distilled": train_digits_distilled, "avatars": train_avatars,
           "avatars_64": train_avatars_64, "avatars_reader": train_avatars_reader,
           "avatars_minority": train_avatars_minority, "avatars_dit": train_avatars_dit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    RECIPES[parser.parse_args().recipe]()


if __name__ == "__main__":
    main()
