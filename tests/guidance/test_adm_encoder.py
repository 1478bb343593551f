"""ADM's classifier: names and shapes of the published ones, and what it answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from guidance.adm import AdmConfig, AdmTrunk, AdmUNet
from guidance.adm_encoder import SIZES, AdmEncoder, EncoderConfig, encoder_config, head_config
from guidance.adm_encoder_checkpoint import detect_encoder, published_schedule

# The flags of openai/guided-diffusion's classifiers, and of Um et al. for LSUN.
LSUN_HEAD = EncoderConfig(
    in_channels=512, out_channels=100, model_channels=128, channel_mult=(1,), num_res_blocks=2,
    attention_levels=(0,), num_head_channels=64, resblock_updown=False, pool_size=(8, 8))
CLASSIFIER_64 = EncoderConfig(
    out_channels=1000, model_channels=128, channel_mult=(1, 2, 3, 4), num_res_blocks=4,
    attention_levels=(1, 2, 3), num_head_channels=64, pool_size=(8, 8))
CLASSIFIER_256 = EncoderConfig(
    out_channels=1000, model_channels=128, channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2,
    attention_levels=(3, 4, 5), num_head_channels=64, pool_size=(8, 8))
TINY = EncoderConfig(
    out_channels=5, model_channels=16, channel_mult=(1, 2), num_res_blocks=1,
    attention_levels=(1,), num_head_channels=16, norm_groups=8, pool_size=(4, 4))


def meta(config: EncoderConfig) -> AdmEncoder:
    with torch.device("meta"):
        return AdmEncoder(config)


def shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in meta(config).state_dict().items()}


def random_encoder(config: EncoderConfig = TINY, seed: int = 0) -> AdmEncoder:
    torch.manual_seed(seed)
    return AdmEncoder(config).eval()


@pytest.mark.parametrize(("config", "parameters", "tensors"), [
    (LSUN_HEAD, 2_896_612, 71), (CLASSIFIER_256, 54_096_360, 249),
    (replace(CLASSIFIER_64, out_channels=100), 64_976_868, 307)])
def test_size_of_the_published(config, parameters, tensors):
    state_dict = meta(config).state_dict()
    assert len(state_dict) == tensors
    assert sum(tensor.numel() for tensor in state_dict.values()) == parameters


def test_tensors_of_the_lsun_head():
    found = shapes(LSUN_HEAD)
    expected = {
        "time_embed.0.weight": (512, 128), "time_embed.2.bias": (512,),
        "input_blocks.0.0.weight": (128, 512, 3, 3),
        "input_blocks.1.0.emb_layers.1.weight": (256, 512),
        "input_blocks.2.0.out_layers.3.weight": (128, 128, 3, 3),
        "input_blocks.2.1.qkv.weight": (384, 128, 1),
        "middle_block.1.proj_out.weight": (128, 128, 1),
        "middle_block.2.in_layers.0.weight": (128,), "out.0.weight": (128,),
        "out.2.positional_embedding": (128, 65), "out.2.qkv_proj.weight": (384, 128, 1),
        "out.2.c_proj.weight": (100, 128, 1)}
    assert {name: found[name] for name in expected} == expected
    assert head_config("paper", 512, 8, 8, 100) == LSUN_HEAD


def test_blocks_of_the_256_classifier():
    found = shapes(CLASSIFIER_256)
    widths = [found[f"input_blocks.{i}.0.out_layers.3.weight"][0] for i in range(1, 18)]
    assert widths == [128] * 6 + [256] * 6 + [512] * 5
    assert [i for i in range(18) if f"input_blocks.{i}.1.qkv.weight" in found] == [10, 11, 13, 14,
                                                                                  16, 17]


@pytest.mark.parametrize(("config", "schedule"), [
    (LSUN_HEAD, "linear"), (CLASSIFIER_64, "cosine"), (CLASSIFIER_256, "linear"),
    (replace(CLASSIFIER_256, resblock_updown=False, scale_shift_norm=False), "linear"),
    (replace(CLASSIFIER_64, num_res_blocks=2), "cosine")])
def test_detected_from_its_tensors(config, schedule):
    found = detect_encoder(meta(config).state_dict())
    assert found == config
    assert published_schedule(found).kind == schedule


def test_published_names_and_shapes_of_the_paper_size():
    assert shapes(encoder_config("paper", 3, 64, 64, 1000)) == shapes(CLASSIFIER_64)
    assert shapes(encoder_config("paper", 3, 256, 256, 1000)) == shapes(CLASSIFIER_256)


@pytest.mark.parametrize("wanted", SIZES)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (16, 16), (24, 24), (64, 96), (128, 128),
                                               (9, 31), (512, 512)])
def test_every_size_fits(wanted, height, width):
    config = encoder_config(wanted, 4, height, width, 10)
    net = meta(config)
    features = net.features(torch.zeros(1, 4, height, width, device="meta"),
                            torch.zeros(1, device="meta"))
    assert tuple(features.shape[2:]) == config.pool_size
    assert net(torch.zeros(2, 4, height, width, device="meta"),
               torch.zeros(2, device="meta")).shape == (2, 10)


def test_small_is_small():
    for side in (16, 24, 64):
        count = sum(t.numel() for t in meta(encoder_config("small", 3, side, side, 100))
                    .state_dict().values())
        assert 300_000 < count < 800_000


def test_too_small_latents_are_refused():
    with pytest.raises(ValueError, match="3 x 2; a classifier needs at least 4 x 4"):
        encoder_config("small", 3, 2, 3, 10)
    with pytest.raises(ValueError, match="expected one of small, base, paper"):
        encoder_config("huge", 3, 16, 16, 10)


def test_pooling_is_clips():
    """Against the published formula: attention over the mean and all positions, read at the
    mean, on a table of positions."""
    pool = random_encoder().out[2]
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([x.flatten(2).mean(-1, keepdim=True), x.flatten(2)], dim=-1)
    tokens = tokens + pool.positional_embedding
    q, k, v = F.conv1d(tokens, pool.qkv_proj.weight, pool.qkv_proj.bias).chunk(3, dim=1)
    heads = []
    for i in range(2):  # of 16 channels each
        part = slice(16 * i, 16 * i + 16)
        weight = torch.einsum("bct,bcs->bts", q[:, part], k[:, part]) / 16 ** 0.5
        heads.append(torch.einsum("bts,bcs->bct", weight.softmax(-1), v[:, part]))
    expected = F.conv1d(torch.cat(heads, 1), pool.c_proj.weight, pool.c_proj.bias)[..., 0]
    assert torch.allclose(pool(x), expected, atol=1e-6)


def test_inputs_of_another_size():
    net = random_encoder()
    smooth = F.interpolate(torch.randn(1, 3, 2, 2), (8, 8), mode="bilinear")
    larger = F.interpolate(smooth, (16, 16), mode="bilinear")
    t = torch.tensor([500.0])
    at_size, other = net(smooth, t), net(larger, t)
    assert other.shape == at_size.shape
    assert other.isfinite().all()
    table = net.out[2].positional_embedding
    assert net.out[2]._positions(torch.Size((4, 4))) is table
    assert net.out[2]._positions(torch.Size((8, 6))).shape == (32, 49)


def test_features_are_those_of_the_unet():
    """A U-Net's own middle block, fed to an extractor of the same weights."""
    config = AdmConfig(model_channels=16, channel_mult=(1, 2), num_res_blocks=1,
                       attention_levels=(1,), num_head_channels=16, norm_groups=8)
    torch.manual_seed(0)
    unet = AdmUNet(config).eval()
    trunk = AdmTrunk(config).eval()
    trunk.load_state_dict({name: unet.state_dict()[name] for name in trunk.state_dict()})
    seen = []
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    unet(x, t, after_middle=lambda h, embedding: seen.append(h) or h)
    assert torch.equal(trunk.features(x, t), seen[0])


def test_starts_as_published():
    net = AdmEncoder(TINY)
    net.start_as_published()
    zero = [name for name, p in net.named_parameters() if not p.any() and name.endswith("weight")]
    assert all(name.endswith(("out_layers.3.weight", "proj_out.weight")) for name in zero)
    assert len(zero) == 5 + 2  # residual blocks; attention blocks


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("out.2.positional_embedding"), "does not pool by attention"),
    (lambda s: s.pop("time_embed.0.weight"), "no tensor 'time_embed.0.weight'"),
    (lambda s: s.pop("middle_block.1.qkv.weight"), "form no encoder"),
    (lambda s: s.update({"output_blocks.0.0.weight": torch.zeros(1)}), "is a diffusion model")])
def test_other_files_are_refused(change, message):
    state_dict = meta(LSUN_HEAD).state_dict()
    change(state_dict)
    with pytest.raises(ValueError, match=message):
        detect_encoder(state_dict)
