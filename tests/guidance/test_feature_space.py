"""The space of activations: fixed size, scale-free, and pushes that move what they should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.feature_space import CHANNELS, GRID, LENGTH, FeatureSpace

KNOWN = [1, -1, -1, -1, 1, 1, -1, 1, -1, -1, 1, 1]
WIDTHS = pytest.mark.parametrize("width", [16, CHANNELS, 320])
SHAPES = pytest.mark.parametrize("shape", [(1, 1), (4, 4), (8, 6), (16, 16), (3, 8, 8)])


def activation(width: int, shape: tuple[int, ...] = (4, 4), batch: int = 2,
               seed: int = 0) -> Tensor:
    return torch.randn(batch, width, *shape, generator=torch.Generator().manual_seed(seed))


def space(width: int) -> FeatureSpace:
    return FeatureSpace("Net/Format", "middle", width)


def push(made: FeatureSpace, one: Tensor, wanted: Tensor) -> Tensor:
    return made.push(one, made.pooled(one), wanted)


@WIDTHS
@SHAPES
def test_one_size_and_length_for_every_shape(width, shape):
    embedding = space(width).embed(activation(width, shape))
    assert embedding.shape == (2, min(width, CHANNELS) * GRID * GRID)
    assert torch.allclose(embedding.norm(dim=1), torch.full((2,), LENGTH))


@WIDTHS
def test_the_scale_of_the_activation_does_not_count(width):
    one = activation(width)
    assert torch.allclose(space(width).embed(one), space(width).embed(20 * one), atol=1e-6)
    assert space(width).embed(one.half()).dtype == torch.float32


@WIDTHS
@SHAPES
def test_a_push_moves_the_embedding_its_way(width, shape):
    one = activation(width, shape)
    embed = space(width).embed
    direction = embed(activation(width, shape, seed=1)) - embed(one)
    for size in (0.01, 0.1):
        wanted = size * direction
        moved = embed(one + push(space(width), one, wanted)) - embed(one)
        assert torch.nn.functional.cosine_similarity(moved, wanted).min() > 0.5
        assert (moved.norm(dim=1) < 3 * wanted.norm(dim=1)).all()


def test_where_nothing_is_averaged_away_a_push_is_exact():
    one, width = activation(CHANNELS), CHANNELS
    made = space(width)
    wanted = 0.1 * made.embed(activation(width, seed=1))
    pooled = one.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / LENGTH
    assert torch.allclose(push(made, one, wanted), pooled * wanted.view_as(one), atol=1e-5)


def test_no_push_is_no_push():
    one = activation(320, (8, 8))
    assert not push(space(320), one, torch.zeros(2, space(320).dim)).any()


def test_mixed_channels_keep_distances():
    """That many random signs keep distances between activations that differ anywhere."""
    many = activation(1280, batch=12)
    mixed = torch.pdist(space(1280).embed(many)) / LENGTH
    flat = torch.nn.functional.normalize(many.flatten(1), dim=1)
    assert torch.allclose(mixed, torch.pdist(flat), rtol=0.15)


def test_the_same_mixture_always():
    """Known numbers: a memory must mean the same on every machine."""
    signs = space(320)._mixing(torch.device("cpu")) * CHANNELS ** 0.5
    assert signs.abs().eq(1).all()
    assert signs[0, :12].int().tolist() == KNOWN


def test_spaces_of_other_models_blocks_and_widths_have_other_ids():
    ids = {FeatureSpace(*of).id for of in (
        ("A/F", "middle", 64), ("B/F", "middle", 64), ("A/G", "middle", 64),
        ("A/F", "block3", 64), ("A/F", "middle", 128))}
    assert len(ids) == 5
    assert all(one.startswith("features-") for one in ids)
