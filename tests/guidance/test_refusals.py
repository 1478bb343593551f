"""Errors that no other test provokes: each says what was given and what to do."""

from __future__ import annotations

import argparse
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from guidance import adm_encoder_checkpoint, curation, distances, diversity_command
from guidance.adm_encoder import encoder_config, head_config
from guidance.distances import DistanceError
from guidance.memory.entry import Sample, encode_sample
from guidance.memory.errors import MemoryLogError, SampleError
from guidance.minority_checkpoint import load_classifier
from guidance.scored_set import ScoredSet, ScoredSetError, ScoreSettings
from guidance.training_set import TrainingSettings

SAMPLE = Sample(content_hash="0" * 64, embedding=torch.zeros(3), settings={})
MEMORY = SimpleNamespace(name="mine", check_learns=lambda: None, log=SimpleNamespace(
    stats=lambda: SimpleNamespace(live_samples=0)))
SIZES = "The size is 'huge'; expected one of small, base, paper."


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: encoder_config("huge", 3, 8, 8, 2), ValueError, SIZES),
    (lambda: head_config("huge", 3, 8, 8, 2), ValueError, SIZES),
    (lambda: TrainingSettings(size="huge").check(), ValueError, SIZES),
    (lambda: adm_encoder_checkpoint.fill(nn.Linear(2, 3), {
        "weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, "cats.pt"), ValueError,
     "cats.pt: tensor 'weight' is (3, 4) where (3, 2) fits."),
    (lambda: curation.forget(MEMORY, "half", 1, 1), MemoryLogError,
     'Cannot forget "half"; expected one of'),
    (lambda: distances.load_distance("cosine"), DistanceError,
     "There is no distance 'cosine'. Choose one of "),
    (lambda: encode_sample(SAMPLE, 4), SampleError, "embedding has shape [3]; expected [4]."),
    (lambda: diversity_command._positive("0"), argparse.ArgumentTypeError, "0 is below 1"),
])
def test_says_what_was_given_and_expected(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize(("content", "message"), [
    (None, r"cannot be read \(UnpicklingError\)\. Download it again"),
    (torch.zeros(2), "holds no weights by name. Download it again")])
def test_a_backbone_that_is_none(tmp_path, content, message):
    file = tmp_path / "alexnet.pth"
    if content is None:
        file.write_bytes(b"<html>")
    else:
        torch.save(content, file)
    with pytest.raises(DistanceError, match=message):
        distances._read_backbone(file)


def test_a_classifier_that_is_cut_off(tmp_path):
    (tmp_path / "cats.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="cannot be read .* It may be cut off: copy or download"):
        load_classifier(tmp_path / "cats.safetensors")


def test_scores_that_another_file_keeps(tmp_path):
    settings = ScoreSettings(space="PixelSpace/3", channels=3, distance="latent_l2", sigma=6.4,
                             draws=1, seed=0, size=(8, 8), log_snr=(10.0,) * 65)
    kept = ScoredSet.open(tmp_path, settings, (0.5,) * 101)
    with pytest.raises(ScoredSetError, match="lacks 2 of the images that were scored"):
        kept.latents(["one", "two"])
