"""Reading ADM checkpoints, and the same numbers out of them as the original repositories give.

FORWARD and the figures of the schedules were computed with openai/guided-diffusion and
openai/improved-diffusion themselves, on the weights and inputs that `wave` makes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from guidance.adm import NO_CLASS, AdmConfig, AdmUNet, class_embedding
from guidance.adm_checkpoint import (
    ADM_HEADER,
    PUBLISHED,
    AdmChoices,
    Schedule,
    read_adm,
    without_prefix,
)

SMALL = AdmConfig(model_channels=32, channel_mult=(1, 2, 3), num_res_blocks=1,
                  attention_levels=(1, 2))
ALL_CHOICES = AdmChoices(num_heads=1, new_attention_order=False, schedule="linear")
COSINE_4000 = Schedule(kind="cosine", steps=4000)
RESCALED = Schedule(kind="cosine", steps=4000, embedding_steps=1000)

# name: what its README says (dropout aside); tensors and parameters where they were counted
CHECKPOINTS = {
    "cifar10_uncond": (dict(
        image_size=32, out_channels=6, model_channels=128, channel_mult=(1, 2, 2, 2),
        num_res_blocks=3, attention_levels=(1, 2), num_heads=4, resblock_updown=False),
        RESCALED, (446, 52_546_438)),
    "imagenet64_uncond": (dict(
        image_size=64, out_channels=6, model_channels=128, channel_mult=(1, 2, 3, 4),
        num_res_blocks=3, attention_levels=(2, 3), num_heads=4, resblock_updown=False),
        RESCALED, None),
    "imagenet64_cond": (dict(
        image_size=64, out_channels=6, model_channels=192, channel_mult=(1, 2, 3, 4),
        num_res_blocks=3, attention_levels=(2, 3), num_heads=4, resblock_updown=False,
        num_classes=1000), COSINE_4000, None),
    "improved LSUN": (dict(
        image_size=256, out_channels=6, model_channels=128, channel_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2, attention_levels=(4,), scale_shift_norm=False, resblock_updown=False),
        Schedule(), None),
    "CelebA 64": (dict(
        image_size=64, out_channels=6, model_channels=192, channel_mult=(1, 2, 3, 4),
        num_res_blocks=3, attention_levels=(1, 2, 3), num_head_channels=64,
        new_attention_order=True), Schedule(kind="cosine"), (540, 295_136_454)),
    "64x64_diffusion": (dict(
        image_size=64, out_channels=6, model_channels=192, channel_mult=(1, 2, 3, 4),
        num_res_blocks=3, attention_levels=(1, 2, 3), num_head_channels=64,
        new_attention_order=True, num_classes=1000), Schedule(kind="cosine"), None),
    "128x128_diffusion": (dict(
        image_size=128, out_channels=6, model_channels=256, channel_mult=(1, 1, 2, 3, 4),
        num_res_blocks=2, attention_levels=(2, 3, 4), num_heads=4, num_classes=1000),
        Schedule(), None),
    "guided LSUN, 256x256_diffusion_uncond": (dict(
        image_size=256, out_channels=6, model_channels=256, channel_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2, attention_levels=(3, 4, 5), num_head_channels=64),
        Schedule(), (566, 552_814_086)),
    "512x512_diffusion": (dict(
        image_size=512, out_channels=6, model_channels=256, channel_mult=(0.5, 1, 1, 2, 2, 4, 4),
        num_res_blocks=2, attention_levels=(4, 5, 6), num_head_channels=64, num_classes=1000),
        Schedule(), None),
    "ffhq_10m": (dict(
        image_size=256, out_channels=6, model_channels=128, channel_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=1, attention_levels=(4,), num_head_channels=64), Schedule(), None),
}

# configuration: standard deviation of the output, then six of its values
FORWARD = {
    "guided, legacy order": (
        replace(SMALL, out_channels=6, num_head_channels=16),
        (0.26111, 0.00484, 0.02291, 0.27641, -0.05458, 0.45496, 0.22258)),
    "guided, new order, classes": (
        replace(SMALL, num_heads=4, new_attention_order=True, num_classes=5),
        (0.14992, -0.13162, -0.05906, -0.03039, -0.0158, 0.15776, 0.16845)),
    "guided, convolutions": (
        replace(SMALL, out_channels=6, num_heads=2, num_classes=5, scale_shift_norm=False,
                resblock_updown=False),
        (0.22199, 0.13205, 0.17374, 0.07156, -0.41695, 0.09464, 0.01459)),
    "improved, scale and shift": (
        replace(SMALL, out_channels=6, num_heads=4, resblock_updown=False),
        (0.28738, 0.04548, 0.16661, 0.2177, 0.02068, -0.34409, -0.02842)),
    "improved, plain": (
        replace(SMALL, scale_shift_norm=False, resblock_updown=False),
        (0.32012, 0.2274, -0.34624, 0.40859, -0.17371, 0.37727, -0.26257)),
}


def tensors(config: AdmConfig, device: str = "meta") -> dict[str, Tensor]:
    with torch.device(device):
        return AdmUNet(config).state_dict()


def wave(shape: torch.Size, phase: float) -> Tensor:
    """Numbers that look random and are the same in every version of torch."""
    count = torch.arange(shape.numel(), dtype=torch.float64)
    return torch.cos(1.7 * count + phase).float().view(shape)


def waves(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for phase, (name, old) in enumerate(sorted(state_dict.items())):
        scale = 1.4 / old[0].numel() ** 0.5 if old.ndim > 1 else 0.1
        offset = 1.0 if old.ndim == 1 and name.endswith("weight") else 0.0  # of a norm
        weights[name] = wave(old.shape, phase) * scale + offset
    return weights


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_checkpoints_are_recognised(name):
    values, schedule, counts = CHECKPOINTS[name]
    state_dict = tensors(AdmConfig(**values))
    assert read_adm(state_dict) == (AdmConfig(**values), schedule)
    if counts:
        assert (len(state_dict), sum(t.numel() for t in state_dict.values())) == counts


def test_every_published_entry_is_tested():
    shapes = {replace(AdmConfig(**values), out_channels=3, num_classes=None)
              for values, _, _ in CHECKPOINTS.values()}
    assert shapes == {config for config, _ in PUBLISHED}


@pytest.mark.parametrize("config", [
    SMALL,
    replace(SMALL, out_channels=6, num_classes=7),
    replace(SMALL, scale_shift_norm=False, resblock_updown=False),
    replace(SMALL, channel_mult=(2, 2, 3, 4), num_res_blocks=3, attention_levels=()),
    replace(SMALL, channel_mult=(1, 1.5), num_res_blocks=2, attention_levels=(0, 1),
            model_channels=64),
    replace(SMALL, channel_mult=(1,), attention_levels=(0,)),
], ids=["small", "classes", "improved", "deep", "fractions", "one level"])
def test_detection_of_unpublished_shapes(config):
    assert read_adm(tensors(config), choices=ALL_CHOICES)[0] == config


@pytest.mark.parametrize("name", FORWARD)
def test_outputs_equal_the_originals(name):
    config, expected = FORWARD[name]
    model = AdmUNet(config).eval()
    model.load_state_dict(waves(model.state_dict()))
    x = 1.4 * wave(torch.Size((2, 3, 16, 16)), 0.3)
    with torch.inference_mode():
        out = model(x, torch.tensor([3.0, 871.5]), torch.tensor([1, 4]))
    picked = [out.std(), *out.flatten()[::out.numel() // 5 + 1], out[1, -1, 7, 3]]
    assert torch.stack(picked).tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("kind", "steps", "first", "middle", "last"), [
    ("linear", 1000, 0.9999, 0.07779665836502389, 4.035829765375676e-05),
    ("linear", 4000, 0.999975, 0.07874647522425243, 4.246652275802249e-05),
    ("cosine", 1000, 0.999958715775178, 0.49228517244880304, 2.4287669070348567e-09),
    ("cosine", 4000, 0.9999901341811863, 0.49345397967426397, 1.5179804688514517e-10),
])
def test_schedules_equal_the_originals(kind, steps, first, middle, last):
    found = Schedule(kind=kind, steps=steps).alphas_cumprod()[[0, steps // 2, -1]]
    assert found.tolist() == pytest.approx([first, middle, last], rel=1e-9)


def test_sigmas_and_timestep_scale():
    schedule = RESCALED
    sigmas, alphas_cumprod = schedule.sigmas(), schedule.alphas_cumprod()
    assert torch.allclose(1 / (1 + sigmas ** 2), alphas_cumprod, rtol=1e-12)
    assert schedule.timestep_scale == 0.25
    assert COSINE_4000.timestep_scale == 1
    with pytest.raises(ValueError, match="linear, scaled_linear and cosine"):
        Schedule(kind="quadratic").betas()


def test_label_no_class_adds_nothing():
    config = replace(SMALL, num_classes=5)
    model = AdmUNet(config).eval()
    model.load_state_dict(waves(model.state_dict()))
    x, t = wave(torch.Size((2, 3, 16, 16)), 0.0), torch.tensor([10.0, 500.0])
    with torch.inference_mode():
        without = model(x, t)
        mixed = model(x, t, torch.tensor([NO_CLASS, 2]))
    assert torch.equal(mixed[0], without[0])
    assert not torch.allclose(mixed[1], without[1])


def test_class_embeddings_tell_classes_apart():
    embeddings = torch.stack([class_embedding(label) for label in range(20)])
    assert torch.equal(embeddings[3], class_embedding(3))
    similarity = embeddings @ embeddings.T
    assert torch.allclose(similarity.diagonal(), torch.ones(20))
    assert (similarity - torch.eye(20)).abs().max() < 0.5
    assert not class_embedding(NO_CLASS).any()


def test_header_wins_over_tensors_and_choices_over_header():
    config = replace(SMALL, image_size=16, num_head_channels=32, new_attention_order=True)
    schedule = Schedule(kind="scaled_linear", start=0.00085, end=0.012)
    header = {ADM_HEADER: json.dumps({"config": asdict(config), "schedule": asdict(schedule)})}
    assert read_adm(tensors(config), header) == (config, schedule)
    chosen = AdmChoices(num_heads=2, new_attention_order=False, schedule="cosine", steps=500,
                        rescaled_timesteps=True)
    assert read_adm(tensors(config), header, chosen) == (
        replace(config, num_heads=2, num_head_channels=None, new_attention_order=False),
        replace(schedule, kind="cosine", steps=500, embedding_steps=1000))


def test_names_of_distributed_training():
    state_dict = tensors(replace(SMALL, num_classes=5))
    wrapped = {f"module.{name}": value for name, value in state_dict.items()}
    assert without_prefix(wrapped).keys() == state_dict.keys()


def test_unknown_shape_says_which_choices_it_needs():
    state_dict = tensors(SMALL)
    with pytest.raises(ValueError, match="attention heads, attention order, noise schedule"):
        read_adm(state_dict)
    with pytest.raises(ValueError, match=": noise schedule"):
        read_adm(state_dict, choices=replace(ALL_CHOICES, schedule=None))
    assert read_adm(state_dict, choices=ALL_CHOICES)[1] == Schedule()
    improved = tensors(replace(SMALL, resblock_updown=False))
    schedule = read_adm(improved, choices=replace(ALL_CHOICES, steps=4000))[1]
    assert (schedule.steps, schedule.embedding_steps) == (4000, 1000)


def without(state_dict: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name: value for name, value in state_dict.items() if not name.startswith(start)}


@pytest.mark.parametrize(("state_dict", "message"), [
    (tensors(replace(SMALL, in_channels=6, out_channels=6)), "super-resolution"),
    (without(tensors(SMALL), "output_blocks"), "classifier"),
    (tensors(replace(SMALL, in_channels=4, out_channels=4)), "maps 4 channels to 4"),
    (tensors(replace(SMALL, out_channels=5)), "maps 3 channels to 5"),
    (without(tensors(SMALL), "middle_block.1"), "no tensor 'middle_block.1.qkv.weight'"),
    (without(tensors(SMALL), "output_blocks.0.0.in_layers.2.bias"), "no tensor 'output_blocks.0"),
    (tensors(SMALL) | {"extra.weight": torch.zeros(1)}, "additional tensor 'extra.weight'"),
    (tensors(SMALL) | {"out.0.bias": torch.zeros(7)}, r"'out.0.bias' is \(7,\) where \(32,\)"),
    ({"model": {}, "optimizer": {}, "step": 3}, "3 entries, such as 'model', 'optimizer', 'step'"),
    ({}, "no tensor 'time_embed.0.weight'"),
], ids=["super-resolution", "classifier", "latents", "odd output", "transformer U-Net",
        "lost tensor", "additional tensor", "wrong shape", "training state", "empty"])
def test_other_models_are_refused(state_dict, message):
    with pytest.raises(ValueError, match=message) as error:
        read_adm(state_dict, choices=ALL_CHOICES)
    assert "Choose " in str(error.value)


@pytest.mark.parametrize("header", ["{", "{}", '{"config": {"colour": 1}, "schedule": {}}'])
def test_unreadable_header_is_refused(header):
    with pytest.raises(ValueError, match="update the pack"):
        read_adm(tensors(SMALL), {ADM_HEADER: header})


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="64 channels cannot be shared out to 3 attention heads"):
        read_adm(tensors(SMALL), choices=replace(ALL_CHOICES, num_heads=3))
