"""No push is longer than allowed, and a broken one harms nobody."""

from __future__ import annotations

import pytest
import torch

from guidance.limiter import limit, per_sample_norm


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 16, 5, 8, 8), (4, 7)])
def test_never_longer_than_allowed(shape):
    shift = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    most = torch.tensor([0.0, 0.5, 5.0, 1e9])
    bounded, told, finite = limit(shift, most)
    assert bounded.shape == shift.shape
    assert finite.all()
    norm = per_sample_norm(bounded)
    assert torch.allclose(told, norm)
    assert (norm <= most * 1.0001).all()
    assert norm[1].item() == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(bounded[3], shift[3])


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e15])
def test_what_is_too_long_comes_out_the_same_at_every_scale(scale):
    shift = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = limit(shift, torch.tensor([1e-14])).shift
    bounded = limit(shift * scale, torch.tensor([1e-14])).shift
    assert torch.allclose(bounded, expected, rtol=1e-4)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_dropped_and_told(broken):
    shift = torch.ones(3, 2, 2)
    shift[1, 0, 1] = broken
    for most in (torch.full((3,), 10.0), None):
        bounded, _, finite = limit(shift, most)
        assert finite.tolist() == [True, False, True]
        assert torch.equal(bounded, torch.tensor([1.0, 0.0, 1.0])[:, None, None].expand(3, 2, 2))


def test_without_a_bound_the_shift_stays():
    shift = 1e9 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    bounded, norm, finite = limit(shift)
    assert torch.equal(bounded, shift) and finite.all()
    assert torch.equal(norm, per_sample_norm(shift))


def test_no_shift_stays_none():
    bounded, norm, finite = limit(torch.zeros(1, 3), torch.ones(1))
    assert not bounded.any() and not norm.any() and finite.all()
