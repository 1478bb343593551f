"""Drawn faces have the rare attributes that they are said to have, and the reader reads them."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from demo.avatars import ATTRIBUTES, AVATARS_SIZE, RATES, avatars
from demo.avatars_reader import AvatarsReader, broken

EVEN = dict.fromkeys(ATTRIBUTES, 0.5)


def test_each_face_depends_on_its_number_alone():
    images, attributes = avatars(6, seed=1)
    again, same = avatars(2, seed=1, first=3)
    assert torch.equal(images[3:5], again) and torch.equal(attributes[3:5], same)
    other, _ = avatars(6, seed=2)
    assert (images != other).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("size", [16, 24, 64])
def test_sizes(size):
    images, attributes = avatars(3, size)
    assert images.shape == (3, 3, size, size)
    assert attributes.shape == (3, len(ATTRIBUTES))
    assert images.min() >= -1 and images.max() <= 1


def test_rates_are_those_that_were_set():
    _, attributes = avatars(4000, 8)
    for name, share in zip(ATTRIBUTES, attributes.float().mean(dim=0).tolist(), strict=True):
        spread = (RATES[name] * (1 - RATES[name]) / 4000) ** 0.5
        assert abs(share - RATES[name]) < 4 * spread, name


def test_an_attribute_changes_the_picture():
    bare, _ = avatars(4, rates=dict.fromkeys(ATTRIBUTES, 0.0))
    for name in ATTRIBUTES:
        rare, has = avatars(4, rates=dict.fromkeys(ATTRIBUTES, 0.0) | {name: 1.0})
        assert has[:, ATTRIBUTES.index(name)].all() and has.sum() == 4
        assert ((rare - bare).abs().amax(dim=1) > 0.2).flatten(1).sum(dim=1).min() > 5, name


def test_neither_brightness_nor_saturation_tells_who_is_rare():
    images, attributes = avatars(3000, 16, rates=EVEN)
    brightness = images.mean(dim=(1, 2, 3))
    saturation = (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2))
    for i, name in enumerate(ATTRIBUTES):
        for values in (brightness, saturation):
            assert abs(roc_auc_score(attributes[:, i], values) - 0.5) < 0.1, name


def test_reader_reads_faces_that_it_never_saw():
    images, attributes = avatars(1000, AVATARS_SIZE, seed=6, rates=EVEN)
    reader = AvatarsReader.load()
    assert (reader.read(images) == attributes).float().mean(dim=0).min() >= 0.99
    assert reader.is_intact(images).float().mean() > 0.9
    spoilt = broken(images, images.roll(1, 0), torch.Generator().manual_seed(6))
    assert reader.is_intact(spoilt).float().mean() < 0.2
