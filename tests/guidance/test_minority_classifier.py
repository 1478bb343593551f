"""The minority classifier: what it answers, and what of it is on disk."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from guidance.adm import AdmConfig, AdmTrunk
from guidance.adm_checkpoint import Schedule
from guidance.adm_encoder import AdmEncoder, EncoderConfig, head_config
from guidance.minority_checkpoint import MINORITY_HEADER, load_classifier, save_classifier
from guidance.minority_classifier import FrozenExtractor, MinorityClassifier
from guidance.time_conditioning import LogSnrTime, ScheduleTime

CONFIG = EncoderConfig(
    in_channels=4, out_channels=5, model_channels=16, channel_mult=(1, 2), num_res_blocks=1,
    attention_levels=(), num_head_channels=16, norm_groups=8, pool_size=(4, 4))
TRUNK = AdmConfig(in_channels=4, model_channels=16, channel_mult=(1, 2), num_res_blocks=1,
                  attention_levels=(1,), num_head_channels=16, norm_groups=8)
# As openai/guided-diffusion's classifiers are, small: heads of 64 channels, 32 groups.
PIXEL = EncoderConfig(
    out_channels=7, model_channels=64, channel_mult=(1, 2), num_res_blocks=1,
    attention_levels=(1,), num_head_channels=64, pool_size=(8, 8))
HEAD = replace(head_config("paper", 128, 8, 8, 6), model_channels=64)


def classifier(extractor: bool = False) -> MinorityClassifier:
    torch.manual_seed(0)
    config = head_config("small", 32, 4, 4, 5) if extractor else CONFIG
    frozen = FrozenExtractor(AdmTrunk(TRUNK), ScheduleTime(Schedule())) if extractor else None
    return MinorityClassifier(
        net=AdmEncoder(config).eval(), time=LogSnrTime(), space="SD15/4", channels=4,
        log_snr_range=(-5.5, 7.0), extractor=frozen and frozen.eval(),
        thresholds=torch.rand(5).cumsum(0), distance="lpips_vgg", sigma=6.4,
        training={"iterations": 12, "loss": 1.5})


def inputs(channels: int = 4, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(3, channels, side, side, generator=generator),
            torch.tensor([-30.0, 0.3, 8.0]))


def pixel_state(config: EncoderConfig = PIXEL) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return AdmEncoder(config).state_dict()


@pytest.mark.parametrize("extractor", [False, True])
def test_log_probs_and_their_gradient(extractor):
    found = classifier(extractor).on("cpu")
    x, log_snr = inputs()
    x.requires_grad_()
    log_probs = found.log_probs(x, log_snr)
    assert log_probs.shape == (3, 5)
    assert torch.allclose(log_probs.exp().sum(1), torch.ones(3), atol=1e-6)
    gradient, = torch.autograd.grad(log_probs[:, 4].sum(), x)
    assert gradient.isfinite().all()
    assert all(one.any() for one in gradient)


def test_timesteps_of_the_log_snr():
    steps = LogSnrTime()(torch.tensor([-200.0, -10.0, 0.0, 9.0, 11.0]))
    assert steps.tolist() == [1000, 1000, 500, 50, 0]


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(kind="cosine"),
                                      Schedule(kind="cosine", steps=4000, embedding_steps=1000)])
def test_timesteps_of_a_schedule(schedule):
    time = ScheduleTime(schedule)
    chosen = torch.tensor([0, 1, schedule.steps // 3, schedule.steps - 1])
    log_snr = -2 * schedule.sigmas()[chosen].log().float()
    expected = chosen * schedule.timestep_scale
    assert torch.equal(time(log_snr), expected.to(time(log_snr).dtype))
    low, high = time.log_snr_range
    assert torch.equal(time(torch.tensor([high + 5, low - 5])), time(log_snr[[0, -1]]))


def test_weights_of_inference_mode_become_ordinary():
    with torch.inference_mode():
        found = classifier(extractor=True)
        assert next(found.net.parameters()).is_inference()
        copy = found.on("cpu")
    x, log_snr = inputs()
    gradient, = torch.autograd.grad(copy.log_probs(x.requires_grad_(), log_snr).sum(), x)
    assert gradient.any()
    for module in (copy.net, copy.extractor, copy.time):
        assert not any(t.is_inference() or t.requires_grad for t in module.state_dict().values())
    assert not copy.thresholds.is_inference()


def test_half_weights_answer_in_float32():
    found = classifier()
    found.net.half()
    assert found.on("cpu").log_probs(*inputs()).dtype == torch.float32
    assert next(found.net.parameters()).dtype == torch.float16


def test_wrong_channels_and_spaces():
    found = replace(classifier(), name="cats")
    with pytest.raises(ValueError, match=r"cats takes latents of 4 channels.*\[3, 8, 8\]"):
        found.log_probs(*inputs(channels=3))
    with pytest.raises(ValueError, match=r"cats was trained .* SD15/4, .* space Flux/16"):
        found.check_space("Flux/16")
    found.check_space("SD15/4")


@pytest.mark.parametrize("extractor", [False, True])
def test_saved_and_loaded(tmp_path, extractor):
    before = classifier(extractor)
    before.save(tmp_path / "deep" / "cats.safetensors")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["cats.safetensors"]
    with torch.inference_mode():  # as nodes run
        after = load_classifier(tmp_path / "deep" / "cats.safetensors")
    assert torch.equal(before.log_probs(*inputs()), after.log_probs(*inputs()))
    assert torch.equal(before.thresholds, after.thresholds)
    for name in ("space", "channels", "classes", "distance", "sigma", "training", "log_snr_range"):
        assert getattr(before, name) == getattr(after, name)
    assert after.name == "cats"
    assert not next(after.net.parameters()).is_inference()
    assert "cats: 5 classes for latents of SD15/4" in after.describe()
    assert "lpips_vgg at sigma 6.4" in after.describe()


def test_saved_in_half(tmp_path):
    classifier().save(tmp_path / "full.safetensors")
    classifier().save(tmp_path / "half.safetensors", torch.float16)
    full, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full
    after = load_classifier(tmp_path / "half.safetensors").log_probs(*inputs())
    assert torch.allclose(after, classifier().log_probs(*inputs()), atol=5e-3)


def test_failed_save_leaves_what_was_there(tmp_path):
    file = tmp_path / "cats.safetensors"
    classifier().save(file)
    before = file.read_bytes()
    with pytest.raises(TypeError):
        save_classifier(replace(classifier(), training={"bad": object()}), file)
    broken = classifier()
    broken.net.register_buffer("out_of_reach", torch.zeros(2, device="meta"))
    with pytest.raises(NotImplementedError):
        save_classifier(broken, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_classifier_of_guided_diffusion(tmp_path, suffix):
    state_dict = pixel_state()
    file = tmp_path / f"pixel{suffix}"
    save_file(state_dict, file) if suffix == ".safetensors" else torch.save(
        {f"module.{k}": v for k, v in state_dict.items()}, file)
    found = load_classifier(file)
    assert (found.space, found.channels, found.classes) == ("PixelSpace/3", 3, 7)
    assert found.thresholds is None
    net = AdmEncoder(PIXEL).eval()
    net.load_state_dict(state_dict)
    x, _ = inputs(3, 16)
    steps = torch.tensor([3, 500, 999])
    log_snr = -2 * Schedule().sigmas()[steps].log().float()
    assert torch.equal(found.log_probs(x, log_snr), net(x, steps).log_softmax(1))
    cosine = load_classifier(file, schedule=Schedule(kind="cosine"))
    assert not torch.allclose(cosine.log_probs(x, log_snr), found.log_probs(x, log_snr))


def test_the_authors_pair(tmp_path):
    """A head and the classifier whose middle block it reads, both on the linear schedule."""
    torch.save(pixel_state(), tmp_path / "256x256_classifier.pt")
    torch.save(pixel_state(HEAD), tmp_path / "mc_lsun.pt")
    found = load_classifier(tmp_path / "mc_lsun.pt", tmp_path / "256x256_classifier.pt")
    trunk, head = AdmEncoder(PIXEL).eval(), AdmEncoder(HEAD).eval()
    trunk.load_state_dict(pixel_state())
    head.load_state_dict(pixel_state(HEAD))
    x, _ = inputs(3, 16)
    steps = torch.tensor([3, 500, 999])
    log_snr = -2 * Schedule().sigmas()[steps].log().float()
    assert torch.equal(found.log_probs(x, log_snr),
                       head(trunk.features(x, steps), steps).log_softmax(1))
    assert (found.space, found.channels, found.classes) == ("PixelSpace/3", 3, 6)

    found.save(tmp_path / "pair.safetensors")
    again = load_classifier(tmp_path / "pair.safetensors")
    assert torch.equal(again.log_probs(x, log_snr), found.log_probs(x, log_snr))


@pytest.mark.parametrize("extractor", [False, True])
def test_latents_that_are_too_small(extractor):
    found = classifier(extractor)
    with pytest.raises(ValueError, match="needs latents of .* or more; it was given 5 x 1. Draw"):
        found.log_probs(torch.zeros(1, found.channels, 1, 5), torch.zeros(1))


def test_pairs_that_do_not_fit(tmp_path):
    torch.save(pixel_state(), tmp_path / "pixel.pt")
    torch.save(pixel_state(HEAD), tmp_path / "head.pt")
    torch.save(pixel_state(replace(HEAD, in_channels=512)), tmp_path / "other.pt")
    for files, message in ((("head.pt",), "takes 128 channels.*256x256_classifier.pt"),
                           (("pixel.pt", "pixel.pt"), "needs no extractor"),
                           (("head.pt", "other.pt"), "extractor takes 512 channels"),
                           (("other.pt", "pixel.pt"), "reads 512 channels, .* gives 128")):
        with pytest.raises(ValueError, match=message):
            load_classifier(*(tmp_path / name for name in files))


def test_a_wrong_extractor_is_named_and_not_the_classifier(tmp_path):
    torch.save(pixel_state(HEAD), tmp_path / "head.pt")
    torch.save({"output_blocks.0.0.weight": torch.zeros(1)}, tmp_path / "diffusion.pt")
    classifier().save(tmp_path / "ours.safetensors")
    for name, message in (("diffusion.pt", "This is a diffusion model"),
                          ("ours.safetensors", "This file is no classifier of ADM's kind")):
        with pytest.raises(ValueError, match=f"^{tmp_path / name}: {message}"):
            load_classifier(tmp_path / "head.pt", tmp_path / name)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("plain", [False, True])
def test_code_in_a_file_is_never_executed(tmp_path, plain):
    content = {"time_embed.0.weight": torch.zeros(2), "bomb": Bomb(tmp_path / "boom")}
    file = tmp_path / "trap.pt"
    if plain:
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match="trap.pt.*not executed"):
        load_classifier(file)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(("name", "keep"), [("cut.safetensors", 0.5), ("cut.pt", 0.5),
                                            ("empty.safetensors", 0), ("empty.pt", 0),
                                            ("short.safetensors", 0.001)])
def test_truncated_files(tmp_path, name, keep):
    file = tmp_path / name
    if file.suffix == ".pt":
        torch.save(pixel_state(), file)
    else:
        classifier().save(file)
    content = file.read_bytes()
    file.write_bytes(content[:int(keep * len(content))])
    with pytest.raises(ValueError, match=f"{name} .*(cut off|damaged)"):
        load_classifier(file)


@pytest.mark.parametrize(("content", "message"), [
    ({}, "no table of tensors"), ([torch.zeros(1)], "no table of tensors"),
    ({"a": {"b": torch.zeros(1)}}, "no table of tensors"),
    ({"conv.weight": torch.zeros(1)}, "no classifier of ADM's kind")])
def test_other_files(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=message):
        load_classifier(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="gone.pt is not there"):
        load_classifier(tmp_path / "gone.pt")


def test_headers_that_do_not_fit(tmp_path):
    good = tmp_path / "good.safetensors"
    classifier().save(good)
    with safe_open(good, framework="pt") as file:
        header = json.loads(file.metadata()[MINORITY_HEADER])
    tensors = load_file(good)
    bad = tmp_path / "bad.safetensors"

    def refused(change: dict, message: str, names=tensors) -> None:
        save_file(names, bad, {MINORITY_HEADER: json.dumps(header | change)})
        with pytest.raises(ValueError, match=message):
            load_classifier(bad)

    refused({"version": 2}, "version 2 of the file.*update the pack")
    refused({"time": {"kind": "moon"}}, "unknown kind of time conditioning 'moon'")
    refused({"net": {"width": 3}}, "cannot be read")
    refused({"thresholds": [1.0, 2.0]}, "2 thresholds for 5 classes")
    refused({"sigma": float("nan")}, "cannot be read")
    refused({}, "lacks the tensor 'out.0.weight'",
            {k: v for k, v in tensors.items() if k != "net.out.0.weight"})
    refused({}, r"'out.0.weight' is \(3,\) where \(32,\) fits",
            tensors | {"net.out.0.weight": torch.zeros(3)})
