"""What a peer keeps from one queue item to the next."""

from __future__ import annotations

import functools
from collections import defaultdict

import torch
from torch import Tensor


class Bank:
    """The finished samples of a chain, and the noisy ones on their way.

    It lives in the benchmark's process and is not lost half-way, where a chain reopens its memory,
    although none of the peers says how it would be kept when ComfyUI is closed.
    """

    def __init__(self):
        self._finished: list[Tensor] = []
        self._noisy: dict[int, list[Tensor]] = defaultdict(list)

    def __len__(self) -> int:
        return sum(len(batch) for batch in self._finished)

    def add(self, finished: Tensor, noisy: dict[int, Tensor]) -> None:
        """finished: `[batch, ...]` as the sampler sees latents; noisy: x_t `[batch, ...]` by
        step."""
        self._finished.append(finished)
        for step, x in noisy.items():
            self._noisy[step].append(x)

    def finished(self, like: Tensor) -> Tensor:
        """All finished samples `[samples, elements]`, perhaps none."""
        return _flat(self._finished, like)

    def noisy(self, step: int, like: Tensor) -> Tensor:
        """The earlier samples as they were at one step, `[samples, elements]`."""
        return _flat(self._noisy.get(step, []), like)


def _flat(batches: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat([like.new_empty(0, *like.shape[1:]), *batches]).flatten(1)


@functools.cache
def bank(name: str) -> Bank:
    """The bank of a chain; `bank.cache_clear()` forgets all."""
    return Bank()


def with_mates(earlier: Tensor, batch: Tensor, i: int) -> Tensor:
    """What sample i of a batch `[batch, elements]` is compared with: `[others, elements]`, earlier
    samples and the others of its batch."""
    return torch.cat([earlier, batch[:i], batch[i + 1:]])
