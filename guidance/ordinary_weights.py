"""Lets gradients pass through a module whose weights were made in inference mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def ordinary(tensor: Tensor) -> Tensor:
    """An ordinary tensor on the very same memory, also where `tensor` is one of inference mode,
    which autograd cannot keep for the way back."""
    with torch.inference_mode(False):
        return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
            tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


@contextmanager
def ordinary_weights(module: nn.Module) -> Iterator[None]:
    """Within, the module's plain weights and buffers are ordinary tensors that need no gradient.

    Nothing is copied: a model that just fits keeps fitting. Tensors of a kind of their own
    (quantised ones) stay as they are.
    """
    kept: list[tuple[dict, str, Tensor]] = []
    with torch.inference_mode(False):
        try:
            for part in module.modules():
                tables: tuple[dict, dict] = (part._parameters, part._buffers)
                for table in tables:
                    for name, tensor in list(table.items()):
                        if type(tensor) not in (Tensor, nn.Parameter):
                            continue
                        same = ordinary(tensor)
                        kept.append((table, name, tensor))
                        table[name] = (nn.Parameter(same, requires_grad=False)
                                       if table is part._parameters else same)
            yield
        finally:
            for table, name, tensor in kept:
                table[name] = tensor


def ordinary_state(module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """The module's plain weights and buffers as ordinary tensors on a device, by name, for
    torch.func.functional_call: the very same memory where they lie there, else copies."""
    state: dict[str, Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if type(tensor) in (Tensor, nn.Parameter):
                state[name] = (ordinary(tensor) if tensor.device == device
                               else tensor.detach().to(device))
    return state


def check_whole(module: nn.Module, device: torch.device) -> None:
    """ValueError unless all weights lie on the device: weights that are brought there for one
    layer at a time are gone again when the gradient comes back."""
    for name, weight in module.named_parameters():
        if weight.device != device:
            raise ValueError(f"the weight {name} lies on {weight.device} and is brought to "
                             f"{device} only while its layer runs: the model does not fit there "
                             "as a whole")
