"""Feature space `vision`: what a vision model sees in the picture that x0-hat decodes to.

An embedding is a direction: the vision model's pooled embedding of the decoded picture, divided by
its length. So one radius means the same for every vision model, and images of all models and sizes
can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.overrides import TorchFunctionMode

# Of every embedding. With it the radius that suits `latent` suits here: .15 is a cosine of .875. A
# small encoder, trained on the digits without labels, has the nearest of 48 images of a class .10
# away (docs/novelty.md).
LENGTH = 0.3

STEPPED = frozenset({torch.round, Tensor.round, torch.clip, torch.clamp, Tensor.clip, Tensor.clamp})


class VisionError(ValueError):
    """Gradients do not pass through a vision model or a VAE."""


class StraightThrough(TorchFunctionMode):
    """Within, rounding and clamping hand gradients on as if they did nothing (Bengio et al., 2013):
    eight-bit pictures have no other, and a pixel that is all black must be able to brighten."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.clamp_ and args[0].requires_grad:
            before = args[0].detach().clone()
            return args[0].add_(torch.clamp(before, *args[1:], **kwargs) - before)
        if func in STEPPED and args[0].requires_grad:
            before = args[0].detach()
            return args[0] + (func(before, *args[1:], **kwargs) - before)
        return func(*args, **kwargs)


@contextmanager
def _explained() -> Iterator[None]:
    """What autograd raises, as a VisionError; a lack of memory stays what it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise VisionError(
            f"Space vision: no gradient can be taken through this vision model or this VAE "
            f"({error}). Connect weights that are not quantised, another vision model, or a TAESD "
            "for vae; or set space to latent in Novelty Memory, with another name.") from error


class VisionSpace:
    """Embeds latents `[batch, channels, height, width]` as `[batch, dim]`."""

    def __init__(self, vision: str, see: Callable[[Tensor], Tensor]):
        """vision: name of the vision model and its weights; see: x0 -> its embedding
        `[batch, dim]`, or `[batch, tokens, dim]`, which is averaged; of any length."""
        self.id = f"vision/1/{vision}"
        self._see = see

    def embed(self, x0: Tensor) -> Tensor:
        """`[batch, dim]`, float32, on the device of x0."""
        with torch.inference_mode(False), torch.no_grad():
            return self._embed(x0.detach().clone())

    def pulled_back(self, x0: Tensor, wanted: Callable[[Tensor], tuple[Tensor, Tensor]]
                    ) -> tuple[Tensor, Tensor]:
        """A displacement of x0, of its shape, from one of its embedding; one pass forward and one
        backward through the vision model and the decoder.

        wanted: embedding -> its displacement `[batch, dim]`, and what else it finds, which is
        handed on. The displacement of x0 points where a step moves the embedding most along the
        wanted one (a vector-Jacobian product), and is to x0 what that is to the embedding.
        VisionError where autograd cannot pass.
        """
        # The host's CLIP adds in place to what autograd has kept for the way back.
        with (torch.inference_mode(False), torch.enable_grad(),
              allow_mutation_on_saved_tensors()):
            place = x0.detach().clone().requires_grad_(True)
            with _explained():
                embedding = self._embed(place)
            push, found = wanted(embedding.detach())
            with _explained():
                gradient, = torch.autograd.grad(embedding, place, push.clone())
        share = torch.linalg.vector_norm(push, dim=1) / LENGTH
        size, length = (torch.linalg.vector_norm(of.flatten(1).float(), dim=1)
                        for of in (x0, gradient))
        scale = share * size / length.clamp(min=torch.finfo(length.dtype).tiny)
        return scale.view(-1, *[1] * (x0.ndim - 1)) * gradient, found

    def _embed(self, x0: Tensor) -> Tensor:
        with StraightThrough():
            seen = self._see(x0).float()
            if seen.ndim == 3:
                seen = seen.mean(1)
            return LENGTH * torch.nn.functional.normalize(seen, dim=1)
