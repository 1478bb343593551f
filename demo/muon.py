"""Muon: an optimizer whose steps are orthogonal matrices.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024. torch has one,
which calculates in bfloat16: on a processor without units for that it takes ten times as long.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For the weights of hidden layers; those of convolutions count as `[out, in * area]`."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.02, momentum: float = 0.95,
                 weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                by_shape[weight.flatten(1).shape].append(weight)
            for (rows, columns), weights in by_shape.items():
                steps = orthogonal(torch.stack([self._momentum(weight, group["momentum"])
                                                for weight in weights]))
                length = group["lr"] * max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, [step.view_as(weight) for step, weight
                                              in zip(steps, weights, strict=True)], alpha=-length)

    def _momentum(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's, as a matrix."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["momentum"], momentum).flatten(1)


def orthogonal(matrices: Tensor) -> Tensor:
    """Near the closest matrices `[n, rows, columns]` whose singular values are all 1."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT.contiguous()
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
