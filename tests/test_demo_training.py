"""The recipes of the small diffusion models: what was interrupted goes on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo import diffusion, digits_distilled, train
from demo.data import digits
from demo.digits_distilled import draw, load_model, normal_sigmas, pairs

TEACHER = diffusion.MODELS / "digits.safetensors"


@pytest.fixture
def few_steps(monkeypatch):
    """Of the teacher, where only what is kept of its images counts."""
    monkeypatch.setattr(digits_distilled, "STEPS", 2)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Points the recipes at folders of their own; calling it makes such folders anew."""
    def make(name: str) -> Path:
        for module in (diffusion, train):
            monkeypatch.setattr(module, "UNFINISHED", tmp_path / name / "unfinished")
        monkeypatch.setattr(diffusion, "MODELS", tmp_path / name)
        monkeypatch.setattr(diffusion, "SAVED_EVERY", 1)
        (tmp_path / name).mkdir()
        return tmp_path / name
    return make


def student() -> None:
    train.train_digits_distilled(count=10, iterations=2, batch=4)


def test_an_interrupted_training_ends_as_a_whole_one_does(folders, few_steps, monkeypatch):
    whole = folders("whole")
    student()
    parts = folders("parts")
    saved = []

    def save_then_stop(*args) -> None:
        save_file(*args)
        saved.append(args[1])
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(diffusion, "save_file", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        student()
    student()
    assert len(saved) == 2  # one iteration before it stopped, one after
    expected, made = (load_file(one / "digits_distilled.safetensors") for one in (whole, parts))
    begun = load_file(TEACHER)
    assert all(torch.equal(made[name], expected[name]) for name in expected)
    assert any(not torch.equal(made[name], begun[name]) for name in begun)


def test_the_teacher_s_images_are_drawn_once_and_resumed(few_steps, tmp_path):
    whole = pairs(TEACHER, 6, tmp_path / "whole.safetensors", batch=3)
    pairs(TEACHER, 3, tmp_path / "parts.safetensors", batch=3)
    parts = pairs(TEACHER, 6, tmp_path / "parts.safetensors", batch=3)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_noise_leads_straight_to_each_image(tmp_path):
    images, noise, labels = pairs(TEACHER, 10, tmp_path / "pairs.safetensors")
    model, _, schedule = load_model(TEACHER)
    sigmas, steps = normal_sigmas(schedule, 20)
    again = draw(model, images + sigmas[0] * noise, labels, sigmas, steps)
    assert labels.tolist() == [*range(10)]
    assert (again - images).abs().max() < 0.05  # bf16
    real, classes = digits()
    nearest = classes[torch.cdist(images.flatten(1), real.flatten(1)).argmin(dim=1)]
    assert (nearest == labels).float().mean() >= 0.8
