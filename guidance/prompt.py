"""How alike two prompts are, so that "a cat" does not push "a castle"."""

from __future__ import annotations

import torch
from torch import Tensor

PROMPT_DIM = 64
PROMPT_WIDTH = 0.25


def prompt_embedding(encoded: Tensor) -> Tensor:
    """An encoded prompt of any width `[width]` -> `[PROMPT_DIM]` of unit length, or all zeros.

    Wider encodings are projected by a fixed Gaussian matrix, which keeps angles to about
    1 / sqrt(PROMPT_DIM) (Johnson and Lindenstrauss); narrower ones are padded.
    """
    encoded = encoded.detach().float().cpu().flatten()
    if len(encoded) > PROMPT_DIM:
        generator = torch.Generator().manual_seed(len(encoded))
        encoded = torch.randn(PROMPT_DIM, len(encoded), generator=generator) @ encoded
    padded = torch.nn.functional.pad(encoded, (0, PROMPT_DIM - len(encoded)))
    return padded / padded.norm().clamp(min=1e-12)


def log_similarity(prompt: Tensor, prompts: Tensor) -> Tensor:
    """`[PROMPT_DIM]` and `[n, PROMPT_DIM]` -> `[n]`: log of a Gaussian kernel of the distance.

    0 for the same prompt, and for samples without one (all zeros), which thus count for every
    prompt; with PROMPT_WIDTH .25, -1.6 at a cosine of .9, -8 at .5, -16 at 0.
    """
    squared = (prompts - prompt).square().sum(dim=1)
    return -squared * prompts.any(dim=1) / (2 * PROMPT_WIDTH ** 2)
