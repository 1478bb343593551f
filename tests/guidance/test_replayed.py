"""One launch in place of many, and otherwise the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from guidance import replayed
from guidance.replayed import Replayed

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class Counted:
    """A function with a gradient in it, and how often Python ran it."""

    def __init__(self, device: str):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(),
                                 nn.Conv2d(16, 4, 3)).to(device).requires_grad_(False)
        self.calls = 0

    def __call__(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            score = self.net(leaf).flatten(1).logsumexp(dim=1) * factor.detach().clone()
            gradient, = torch.autograd.grad(score.sum(), leaf)
        return gradient, score.detach()


def inputs(seed: int, batch: int = 2, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, 4, 8, 8, generator=generator).to(device),
            torch.rand(batch, generator=generator).to(device))


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_without_a_gpu_it_is_the_function():
    function = Counted("cpu")
    run = Replayed(function)
    for seed in range(3):
        assert same(run(*inputs(seed)), function(*inputs(seed)))
    assert function.calls == 6


@cuda
@pytest.mark.parametrize("mode", [True, False])
def test_replays_what_the_function_does(mode):
    function, expected = Counted("cuda"), Counted("cuda")
    run = Replayed(function)
    with torch.inference_mode(mode):
        given = [inputs(seed, device="cuda") for seed in range(6)]
        found = [run(*one) for one in given]
        assert all(same(a, expected(*one)) for a, one in zip(found, given, strict=True))
    assert function.calls == 2  # as it is, and to be recorded


@cuda
def test_other_shapes_are_recorded_anew():
    function, expected = Counted("cuda"), Counted("cuda")
    run = Replayed(function)
    for batch in (1, 1, 1, 3, 3, 3, 1):
        one = inputs(batch, batch, "cuda")
        assert same(run(*one), expected(*one))
    assert function.calls == 5


@cuda
def test_where_little_memory_is_free_nothing_is_recorded(monkeypatch):
    monkeypatch.setattr(replayed, "ROOM", 2 ** 60)
    function = Counted("cuda")
    run = Replayed(function)
    for seed in range(4):
        run(*inputs(seed, device="cuda"))
    assert function.calls == 4


@cuda
def test_what_cannot_be_recorded_is_called(caplog):
    """A wait, for one."""
    calls = []

    def waits(x: Tensor) -> tuple[Tensor]:
        calls.append(1)
        return (x * float(x.sum()),)

    run = Replayed(waits)
    x = inputs(0, device="cuda")[0]
    for _ in range(4):
        assert same(run(x), (x * float(x.sum()),))
    assert len(calls) == 5 and "CUDA graph" in caplog.text
    assert same(Replayed(Counted("cuda"))(*inputs(1, device="cuda")),
                Counted("cuda")(*inputs(1, device="cuda")))
