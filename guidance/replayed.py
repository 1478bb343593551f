"""A function of tensors as a single launch, on a CUDA device.

A small network is some hundred kernels of some microseconds each: to start them takes the processor
ten times as long as the device takes to run them. A CUDA graph starts them all at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

ROOM = 4 * 2 ** 30  # bytes that must be free, since a recording keeps its memory for itself
log = logging.getLogger("uncommon")


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class Replayed:
    """`function` maps tensors to tensors, always by the same operations, and never waits for the
    device. What it computes is recorded when it is called for the second time with inputs of the
    same shapes, and replayed from then on. Without a CUDA device, where little memory is free, and
    where recording fails, it is simply called."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]):
        self._function = function
        self._seen: list[tuple] | None = None  # of the inputs of the call before
        self._recording: tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]] | None = None
        self._usable = True

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if not (self._usable and inputs[0].is_cuda and torch.version.cuda):
            return self._function(*inputs)
        seen = [(one.shape, one.dtype, one.device) for one in inputs]
        if seen != self._seen:
            self._seen, self._recording = seen, None
            return self._function(*inputs)
        if self._recording is None:
            try:
                self._recording = self._record(inputs)
            except Exception:  # the image matters more
                log.warning("Not recorded as a CUDA graph, so this takes longer:", exc_info=True)
            if self._recording is None:
                self._usable = False
                return self._function(*inputs)
        graph, given, found = self._recording
        for kept, new in zip(given, inputs, strict=True):
            kept.copy_(new)
        graph.replay()
        return tuple(one.clone() for one in found)

    def _record(self, inputs: tuple[Tensor, ...]
                ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]] | None:
        """None where too little memory is free."""
        device = inputs[0].device
        if torch.cuda.mem_get_info(device)[0] < ROOM:
            return None
        with torch.inference_mode(False):
            given = [one.detach().clone() for one in inputs]
        graph, stream = torch.cuda.CUDAGraph(), recording_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                found = self._function(*given)
            finally:
                graph.capture_end()
        torch._C._cuda_clearCublasWorkspaces()  # else that of this stream outlives the graph
        torch.cuda.current_stream(device).wait_stream(stream)
        return graph, given, found
