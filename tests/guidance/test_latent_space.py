"""The pooled latent: made for any size, and in the same units for all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.latent_space import GRID, LatentSpace, pooling_matrix, spreading_matrix

SHAPES = [(16, 16), (8, 8), (5, 9), (64, 64), (128, 96), (17, 64)]


def smooth(height: int, width: int, phase: float = 0.0, channels: int = 3) -> Tensor:
    """`[1, channels, height, width]`: the same picture at any size."""
    rows, columns = ((torch.arange(size) + 0.5) / size for size in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.sin(3 * x + 2 * y + phase + c) for c in range(channels)])[None]


def distance(space: LatentSpace, a: Tensor, b: Tensor) -> float:
    return (space.embed(a) - space.embed(b)).norm().item()


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("frames", [None, 1, 5])
def test_any_size_and_number_of_frames(size, frames):
    space = LatentSpace("Test", 3)
    x0 = torch.randn(2, 3, *([] if frames is None else [frames]), *size,
                     generator=torch.Generator().manual_seed(0))
    embedding = space.embed(x0)
    assert embedding.shape == (2, space.dim) == (2, 3 * GRID * GRID)
    assert space.lift(embedding, x0).shape == x0.shape


@pytest.mark.parametrize("bins", [8])
@pytest.mark.parametrize("size", [3, 8, 16, 17, 100])
def test_averages_of_a_constant_are_that_constant(size, bins):
    assert torch.allclose(pooling_matrix(size, bins).sum(1), torch.ones(bins))
    assert torch.allclose(spreading_matrix(bins, size).sum(1), torch.ones(size))


def test_distance_is_the_root_mean_square_difference():
    space = LatentSpace("Test", 4)
    x0 = torch.randn(1, 4, 32, 32)
    assert distance(space, x0, x0 + 0.3) == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize("size", SHAPES)
def test_same_units_at_every_resolution(size):
    space = LatentSpace("Test", 3)
    here = distance(space, smooth(*size), smooth(*size, phase=0.4))
    fine = distance(space, smooth(256, 256), smooth(256, 256, phase=0.4))
    assert here == pytest.approx(fine, rel=0.03)


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (128, 96)])
def test_lifting_moves_the_embedding_by_the_push(size):
    space = LatentSpace("Test", 3)
    push = space.embed(smooth(64, 64))
    x0 = torch.zeros(1, 3, *size)
    assert (space.embed(space.lift(push, x0)) - push).norm() < 0.1 * push.norm()


def test_video_frames_move_together():
    space = LatentSpace("Test", 2)
    video = torch.zeros(1, 2, 3, 8, 8)
    lifted = space.lift(torch.randn(1, space.dim), video)
    assert torch.equal(lifted[:, :, 0], lifted[:, :, 2])


def test_half_precision_is_embedded_in_full():
    assert LatentSpace("Test", 3).embed(smooth(16, 16).half()).dtype == torch.float32


def test_spaces_of_different_models_have_different_names():
    names = {LatentSpace(*one).id for one in (("SD15", 4), ("SDXL", 4), ("Flux", 16), ("SD15", 3))}
    assert len(names) == 4
