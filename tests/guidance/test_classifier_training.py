"""Training of a minority classifier: it learns, the same each time, and goes on after a stop."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from guidance.adm import AdmConfig, AdmTrunk
from guidance.classifier_training import ClassifierTraining
from guidance.minority_classifier import FrozenExtractor
from guidance.time_conditioning import LogSnrTime
from guidance.training_set import Evaluation, TrainingSet, TrainingSettings

LOG_SNR = [-8 + 18 * i / 64 for i in range(65)]
SHORT = TrainingSettings(classes=3, iterations=6, batch_size=8, validation_share=0.2, seed=5)


def images_by_brightness(n: int = 60, side: int = 8, channels: int = 1) -> TrainingSet:
    """Even pictures with a little texture; the brighter, the higher their score."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(n, generator=generator)
    latents = 0.1 * torch.randn(n, channels, side, side, generator=generator)
    return TrainingSet(latents=latents + 4 * scores[:, None, None, None] - 2, scores=scores,
                       log_snr=LOG_SNR, space="Test/1", distance="l2", sigma=6.4)


def trained(data: TrainingSet, settings: TrainingSettings = SHORT, **more) -> ClassifierTraining:
    training = ClassifierTraining(data, settings, **more)
    for _ in training.run():
        pass
    return training


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture(scope="module")
def learnt() -> ClassifierTraining:
    """Long enough to learn what brightness is."""
    with torch.inference_mode():  # as nodes run
        return trained(images_by_brightness(300, side=4), replace(
            SHORT, iterations=60, batch_size=32, learning_rate=3e-3))


def test_it_learns(learnt):
    last = learnt.evaluations[-1]
    assert last.iteration == 60
    assert last.accuracy > 0.65  # a third by chance; a quarter of the levels is all noise
    assert last.rank_error < 0.15
    assert last.loss < 0.7 < math.log(3) - 0.2 < learnt.losses[0]


def test_the_less_noise_the_better(learnt):
    assert len(learnt.levels) == 10
    assert [one.log_snr for one in learnt.levels] == sorted(one.log_snr for one in learnt.levels)
    noisy, clean = learnt.levels[0], learnt.levels[-1]
    assert noisy.accuracy < 0.5 < 0.85 < clean.accuracy
    assert clean.rank_error < noisy.rank_error


def test_the_classifier_is_told_the_noise_as_in_training(learnt):
    """Asked as guidance asks, x / sqrt(a^2 + s^2) of a sample with sigma .5, it hits as often."""
    data, classifier = learnt.data, learnt.classifier()
    noise = torch.randn(data.latents.shape, generator=torch.Generator().manual_seed(9))
    sigma = torch.tensor(0.5)
    x_vp = (data.latents + sigma * noise) / (1 + sigma ** 2).sqrt()
    log_snr = (-2 * sigma.log()).expand(len(x_vp))
    guess = classifier.log_probs(x_vp, log_snr).argmax(1)
    assert (guess == learnt.labels).float().mean() > 0.8


def test_what_the_classifier_knows_of_itself(learnt):
    classifier = learnt.classifier()
    assert (classifier.space, classifier.channels, classifier.classes) == ("Test/1", 1, 3)
    assert (classifier.distance, classifier.sigma) == ("l2", 6.4)
    assert classifier.log_snr_range == (-8.0, 10.0)
    assert classifier.thresholds[-1] == learnt.data.scores.max()
    figures = classifier.training
    assert figures["images"] == 300
    assert figures["training_images"] + figures["validation_images"] == 300
    assert figures["validation_accuracy"] == pytest.approx(
        learnt.evaluations[-1].accuracy, abs=1e-4)
    assert not next(classifier.net.parameters()).is_inference()
    assert "images: 300" in classifier.describe()


def test_two_runs_are_equal_and_touch_no_global_chance():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = trained(images_by_brightness())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    other = trained(images_by_brightness())
    assert same_weights(one.net, other.net)
    assert one.losses == other.losses and one.evaluations == other.evaluations
    different = trained(images_by_brightness(), replace(SHORT, seed=6))
    assert not same_weights(one.net, different.net)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_resumed_equals_uninterrupted(tmp_path, stop):
    whole = trained(images_by_brightness())
    part = ClassifierTraining(images_by_brightness(), SHORT)
    run = part.run()
    for _ in range(stop):
        next(run)
    torch.save(part.state(), tmp_path / "state.pt")

    resumed = ClassifierTraining(images_by_brightness(), SHORT)
    with torch.inference_mode():  # as nodes run
        resumed.resume(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.iteration == stop
    for _ in resumed.run():
        pass
    assert same_weights(whole.net, resumed.net)
    assert whole.losses == resumed.losses
    assert whole.evaluations == resumed.evaluations and whole.levels == resumed.levels


def test_key_tells_trainings_apart():
    data = images_by_brightness()
    key = ClassifierTraining(data, SHORT).key
    assert ClassifierTraining(images_by_brightness(), SHORT).key == key
    retrained = extractor()
    with torch.no_grad():
        next(retrained.trunk.parameters()).add_(1e-3)
    others = [ClassifierTraining(data, replace(SHORT, iterations=7)),
              ClassifierTraining(replace(data, scores=data.scores * 2), SHORT),
              ClassifierTraining(replace(data, identity="other"), SHORT),
              ClassifierTraining(replace(data, log_snr=LOG_SNR[:-1]), SHORT),
              ClassifierTraining(data, SHORT, extractor=extractor()),
              ClassifierTraining(data, SHORT, extractor=retrained)]
    assert len({key, *(one.key for one in others)}) == 7
    with pytest.raises(ValueError, match="another training"):
        others[0].resume(ClassifierTraining(data, SHORT).state())


def test_latents_from_a_function_are_asked_for_in_batches():
    data = images_by_brightness()
    asked = []

    def latents(indices: torch.Tensor) -> torch.Tensor:
        asked.append(len(indices))
        return data.latents[indices]

    assert same_weights(trained(data).net, trained(replace(data, latents=latents)).net)
    assert max(asked) == SHORT.batch_size


def test_every_image_is_seen_once_an_epoch():
    training = ClassifierTraining(images_by_brightness(), SHORT)
    seen = []
    for training.iteration in range(18):
        seen += training._batch().tolist()
    images = len(training.training)
    assert sorted(seen[:images]) == training.training.tolist()
    assert sorted(seen[images:2 * images]) == training.training.tolist()
    assert seen[:images] != seen[images:2 * images]


def test_noise_levels_are_uniform_over_the_models_timesteps():
    table = [-30.0, -2.0, 0.0, 1.0, math.inf]
    data = replace(images_by_brightness(), log_snr=table)
    percent = torch.tensor([0.0, 0.125, 0.25, 0.5, 0.625, 1.0])
    assert data.log_snr_at(percent).tolist() == [-10, -6, -2, 0, 0.5, 10]


def test_the_learning_rate_falls_to_0_in_a_straight_line_and_weights_decay():
    training = ClassifierTraining(images_by_brightness(), SHORT)
    groups = training._optimizer.param_groups
    rates = [group["lr"] for _ in training.run() for group in groups]
    assert rates == pytest.approx([SHORT.learning_rate * (1 - i / 6) for i in range(6)])
    assert {group["weight_decay"] for group in groups} == {SHORT.weight_decay}


def given_to_the_net(training: ClassifierTraining, monkeypatch) -> list[tuple[Tensor, Tensor]]:
    """Will hold x0 and log SNR of each batch."""
    seen, logits = [], training._logits

    def watched(x0: Tensor, log_snr: Tensor, generator: torch.Generator) -> Tensor:
        seen.append((x0, log_snr))
        return logits(x0, log_snr, generator)

    monkeypatch.setattr(training, "_logits", watched)
    return seen


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_left_to_right_alone(flip, monkeypatch):
    picture = torch.arange(64.0).view(1, 8, 8)
    data = replace(images_by_brightness(), latents=picture.repeat(60, 1, 1, 1))
    training = ClassifierTraining(data, replace(SHORT, flip=flip, batch_size=32))
    seen = given_to_the_net(training, monkeypatch)
    next(training.run())
    mirrored = [torch.equal(x0, picture.flip(-1)) for x0 in seen[0][0]]
    assert sum(torch.equal(x0, picture) for x0 in seen[0][0]) == 32 - sum(mirrored)
    assert (0 < sum(mirrored) < 32) is flip


def test_what_is_validated_is_spread_over_all_noise_levels(monkeypatch):
    training = ClassifierTraining(images_by_brightness(), replace(SHORT, validation_share=0.5))
    seen = given_to_the_net(training, monkeypatch)
    training._evaluate()
    log_snr = torch.cat([one for _, one in seen])
    assert len(log_snr) == len(log_snr.unique()) == 30
    assert log_snr.min() < -7.5 and log_snr.max() > 9.5


def extractor() -> FrozenExtractor:
    torch.manual_seed(3)
    config = AdmConfig(in_channels=1, model_channels=16, channel_mult=(1, 1), num_res_blocks=1,
                       attention_levels=(), norm_groups=8)
    return FrozenExtractor(AdmTrunk(config), LogSnrTime())


def test_on_a_frozen_extractor():
    with torch.inference_mode():
        frozen = extractor()
        found = trained(images_by_brightness(), extractor=frozen)
    assert same_weights(found.extractor, frozen)
    assert found.net.config.in_channels == 16 and found.net.config.pool_size == (4, 4)
    classifier = found.classifier()
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    gradient, = torch.autograd.grad(classifier.log_probs(x, torch.zeros(2))[:, 0].sum(), x)
    assert gradient.any()
    moved = found.net.state_dict()["out.2.c_proj.weight"]
    start = ClassifierTraining(images_by_brightness(), SHORT, extractor=frozen).net
    assert not torch.equal(moved, start.state_dict()["out.2.c_proj.weight"])


def test_extractors_that_do_not_fit():
    with pytest.raises(ValueError, match="have 3 channels, but the extractor takes 1"):
        ClassifierTraining(images_by_brightness(channels=3), SHORT, extractor=extractor())
    deep = FrozenExtractor(AdmTrunk(AdmConfig(
        in_channels=1, model_channels=16, channel_mult=(1,) * 5, num_res_blocks=1,
        attention_levels=(), norm_groups=8)), LogSnrTime())
    with pytest.raises(ValueError, match="8 x 8, but the extractor needs at least 16 x 16"):
        ClassifierTraining(images_by_brightness(), SHORT, extractor=deep)


def test_sizes_that_differ():
    data = images_by_brightness()

    def latents(indices):
        return data.latents[indices] if len(indices) == 1 else torch.zeros(len(indices), 1, 8, 12)

    with pytest.raises(ValueError, match=r"different sizes: \[1, 8, 8\] and \[1, 8, 12\]"):
        trained(replace(data, latents=latents))
    with pytest.raises(ValueError, match="single images"):
        trained(replace(data, latents=torch.zeros(60, 1, 2, 8, 8)))


def test_one_frame_of_a_video_model():
    data = images_by_brightness()
    assert same_weights(trained(replace(data, latents=data.latents[:, :, None])).net,
                        trained(data).net)


@pytest.mark.parametrize(("change", "message"), [
    ({"iterations": 0}, "iterations is 0; expected 1 or more"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"learning_rate": float("nan")}, "learning rate is nan"),
    ({"size": "huge"}, "expected one of small, base, paper"),
    ({"validation_share": 0.8}, "validation share is 0.8"),
    ({"classes": 61}, "60 scored images for 61 classes")])
def test_settings_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        ClassifierTraining(images_by_brightness(), replace(SHORT, **change))


def test_one_image_and_unknown_noise_levels():
    data = images_by_brightness()
    with pytest.raises(ValueError, match="There are 1 scored images"):
        ClassifierTraining(replace(data, scores=data.scores[:1]), SHORT)
    with pytest.raises(ValueError, match="noise levels of the model are not known"):
        replace(data, log_snr=())


def test_damaged_latents_stop_it():
    data = images_by_brightness()
    data.latents[:] = math.nan
    training = ClassifierTraining(data, SHORT)
    with pytest.raises(ValueError, match="finite number in iteration 1. Lower the learning rate"):
        next(training.run())
    assert all(p.isfinite().all() for p in training.net.parameters())


def test_few_images_and_learning_by_heart_are_told():
    """Pictures that have nothing to do with their scores, hardly any noise."""
    generator = torch.Generator().manual_seed(8)
    data = replace(images_by_brightness(24), log_snr=[9.0, 10.0],
                   latents=torch.randn(24, 1, 4, 4, generator=generator))
    training = trained(data, replace(SHORT, iterations=40, learning_rate=5e-3, flip=False))
    assert training.warnings[0].startswith("Only ")
    assert "by heart" in training.warnings[1] and "lowest after" in training.warnings[1]
    assert len(training.warnings) == 2


@pytest.mark.parametrize(("last", "warned"), [(1.05, False), (1.2, True)])
def test_a_last_loss_hardly_above_the_lowest_is_no_warning(last, warned):
    training = ClassifierTraining(images_by_brightness(side=4), SHORT)
    training.warnings = []
    training.evaluations = [Evaluation(1, 1.0, 0.5, 0.2), Evaluation(2, last, 0.5, 0.2)]
    training._measure_levels()
    assert bool(training.warnings) is warned


def test_without_validation():
    training = trained(images_by_brightness(), replace(SHORT, validation_share=0.0))
    assert training.evaluations == [] and training.levels == []
    assert "validation_loss" not in training.classifier().training


def test_automatic_classes():
    assert ClassifierTraining(images_by_brightness(), replace(SHORT, classes=0)
                              ).settings.classes == 2
