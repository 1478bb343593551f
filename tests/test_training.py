"""The training of the demo models goes on where it stopped, and Muon's steps are orthogonal."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from demo import diffusion, train
from demo.muon import Muon, orthogonal
from demo.train import EMPHASIS, EMPHASIS_64, rare_more_often
from guidance.adm import AdmConfig
from guidance.adm_checkpoint import ADM_HEADER, Schedule

TINY = AdmConfig(image_size=8, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
                 attention_levels=(1,), num_head_channels=8, norm_groups=4)


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
def test_steps_are_orthogonal_and_point_along_the_gradient(shape):
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(shape, generator=generator)
    step = orthogonal(gradient)
    assert step.shape == shape
    values = torch.linalg.svdvals(step)
    assert values.min() > 0.6 and values.max() < 1.2  # the iteration's, not exactly 1
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.cosine_similarity(step.flatten(1), (u @ v).flatten(1)).min() > 0.97


def test_muon_learns_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    x, wanted = (torch.randn(64, 16, generator=generator) for _ in range(2))
    layer = torch.nn.Linear(16, 16, bias=False)
    torch.nn.init.zeros_(layer.weight)
    optimizer = Muon(layer.parameters())
    best = (x @ torch.linalg.lstsq(x, wanted).solution - wanted).square().mean()
    for i in range(150):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - i / 150)
        loss = (layer(x) - wanted).square().mean()
        layer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.05 * best


def test_edm_draws_its_levels_from_every_stratum():
    schedule = Schedule()
    levels = diffusion.edm_levels(schedule, mean=0.0, spread=1.0)
    torch.manual_seed(0)
    logs = schedule.sigmas()[torch.stack([levels.draw(64) for _ in range(50)])].log()
    assert logs.mean().abs() < 0.05 and (logs.std() - 1).abs() < 0.05
    assert logs.mean(dim=1).std() < 0.05  # of free draws 1 / 8
    at_1 = (schedule.sigmas() - 1).abs().argmin()
    assert levels.weight[at_1] == pytest.approx(5, abs=0.05)


@pytest.mark.parametrize("emphasis", [EMPHASIS, EMPHASIS_64], ids=["24", "64"])
def test_rare_faces_are_drawn_more_often_and_count_less_but_for_their_emphasis(emphasis):
    attributes = torch.zeros(1000, 3, dtype=torch.bool)
    attributes[:30, 0] = attributes[20:40, 1] = attributes[995:, 2] = True
    chance, weight = rare_more_often(attributes, emphasis)
    assert chance.sum() == pytest.approx(1)
    for column in attributes.T:  # a third of .4, and more for those that have another
        assert chance[column].sum() > 0.4 / 3
    counts = 1000 * chance * weight  # how often a face is seen, all in all
    glasses, hat, side = emphasis.values()
    expected = torch.ones(1000)
    expected[:20], expected[20:30], expected[30:40] = glasses, max(glasses, hat), hat
    expected[995:] = side
    torch.testing.assert_close(counts, expected)


def test_the_parts_of_the_avatars_training_follow_one_another(tmp_path, monkeypatch):
    for module in (diffusion, train):
        monkeypatch.setattr(module, "UNFINISHED", tmp_path / "unfinished")
    monkeypatch.setattr(diffusion, "MODELS", tmp_path)
    monkeypatch.setattr(train, "AVATARS_COUNT", 1000)  # some of them with each attribute
    train.train_avatars("tiny", TINY, iterations=1, further=2, last=3)
    with safe_open(tmp_path / "tiny.safetensors", "pt") as file:
        training = json.loads(file.metadata()[ADM_HEADER])["training"]
    assert (training["iterations"], training["iterations_before"]) == (3, 3)
    assert {file.name for file in (tmp_path / "unfinished").glob("*.safetensors")} == {
        "tiny_first.safetensors", "tiny_further.safetensors"}


def test_a_weight_counts_in_the_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, "UNFINISHED", tmp_path / "unfinished")
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def loss(weight: float) -> float:
        def draw(batch):
            return diffusion.Drawn(images, weight=torch.full((batch,), weight))

        name = f"weight {weight}"
        diffusion.train_diffusion(name, TINY, Schedule(), "noise", draw, iterations=1, batch=4,
                                  levels=diffusion.tail_levels, folder=tmp_path)
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            return json.loads(file.metadata()[ADM_HEADER])["training"]["loss"]

    assert loss(0.25) == pytest.approx(loss(1.0) / 4, rel=1e-3)


def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, "SAVED_EVERY", 2)
    images = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    class Stopped(Exception):
        pass

    def train(name: str, stop: int | None = None) -> None:
        drawn = 0

        def draw(batch):
            nonlocal drawn
            drawn += 1
            if drawn == stop:
                raise Stopped
            return diffusion.Drawn(images[torch.randint(len(images), (batch,))])

        diffusion.train_diffusion(name, TINY, Schedule(), "noise", draw, iterations=4, batch=4,
                                  muon=True, levels=diffusion.edm_levels,
                                  folder=tmp_path / "models")

    def trained(name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / "models" / f"{name}.safetensors")

    monkeypatch.setattr(diffusion, "UNFINISHED", tmp_path / "unfinished")
    train("whole")
    with pytest.raises(Stopped):
        train("halves", stop=4)
    half = trained("halves")
    train("halves")
    whole, halves = trained("whole"), trained("halves")
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert any(not torch.equal(whole[name], half[name]) for name in whole)
    with safe_open(tmp_path / "models" / "halves.safetensors", "pt") as file:
        training = json.loads(file.metadata()[ADM_HEADER])["training"]
    assert training["iterations"] == 4 and training["batch"] == 4
