"""Peers that perturb what the model is told to draw."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from benchmarks.peers.hooks import Peer

POSITIVE = 0  # the host's number of the positive prompt in a call


class ConditionPeer(Peer, ABC):
    """Perturbs the embedding of the positive prompt; that of the negative one stays.

    A prompt is its token embeddings and its pooled embedding. A class-conditional ADM model is
    given a class number: there it is the class embedding inside the network, which is added to
    the embedding of the time.
    """

    @abstractmethod
    def perturbed(self, embedding: Tensor, name: str) -> Tensor:
        """The embedding `[batch, ...]` of the images at the present step; name: which it is."""

    def apply_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None,
                    transformer_options={}, **kwargs):  # noqa: B006
        parts = transformer_options["cond_or_uncond"]

        def on_positive(embedding: Tensor, name: str) -> Tensor:
            chunks = embedding.chunk(len(parts))
            return torch.cat([self.perturbed(chunk, name) if part == POSITIVE else chunk
                              for part, chunk in zip(parts, chunks, strict=True)])

        def call():
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        classes = getattr(executor.class_obj.diffusion_model, "label_emb", None)
        if classes is not None and not kwargs["y"].is_floating_point():
            hook = classes.register_forward_hook(
                lambda module, given, embedding: on_positive(embedding, "class"))
            try:
                return call()
            finally:
                hook.remove()
        if c_crossattn is not None:
            c_crossattn = on_positive(c_crossattn, "tokens")
        if kwargs.get("y") is not None:
            kwargs["y"] = on_positive(kwargs["y"], "pooled")
        return call()


def standard(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all elements of each sample, to be broadcast."""
    dims = tuple(range(1, embedding.ndim))
    return (embedding.mean(dim=dims, keepdim=True),
            embedding.std(dim=dims, keepdim=True, correction=0))
