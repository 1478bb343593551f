"""What a novelty net knows of single samples, also where its units are means of several.

A net that is overfull says which samples went into each unit. So those that matter, a prompt's or
the nearest ones, are read from the log, and no more than so many of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .memory import RevisionGoneError
from .memory.bank import Remembered
from .novelty_net import NoveltyNet
from .prompt import log_similarity
from .repulsion import squared_distance

SIMILAR = -12.0  # log weight, by prompt or by age, below which a sample does not count at all
ALIKE = -0.7  # log similarity of prompts that count as one where the radius is fitted: a half
LOOKED_AT = 8192  # samples at most, for the nearest: a tenth of a second to read
SPARSE = 20  # samples that one may stand for; units say more where it would be more


class Centres(NamedTuple):
    """What a kernel is made of: embeddings `[n, dim]`, prompts `[n, PROMPT_DIM]`, and how many
    samples each stands for, `[n]`."""

    embedding: Tensor
    prompt: Tensor
    weight: Tensor


def centres_of(net: NoveltyNet, remembered: Remembered, weight: Tensor | None,
               prompt: Tensor | None) -> Centres:
    """The net's units where they are the samples. Where some are means of several, the samples of
    this prompt, and units for those of prompts that are less alike; no more than a full net has:
    some of them, each for several, where there are more. Too few of them say less than the units.

    weight: of each sample, `[n]`, None where all count the same; prompt: `[PROMPT_DIM]`, None
    where prompts do not matter.
    """
    mass = net.mass if weight is None else net.weight(weight).float()
    units = Centres(net.centre, net.prompt, mass)
    similarity = (torch.zeros(len(mass)) if prompt is None
                  else log_similarity(prompt, net.prompt))
    counts = similarity > SIMILAR
    if len(mass) == len(remembered) or not bool(counts.any()):
        return units
    order = similarity.masked_fill(~counts, -torch.inf).argsort(descending=True, stable=True)
    order = order[:int(counts.sum())]
    fits = net.mass[order].cumsum(dim=0) + torch.arange(len(order)).flip(0) <= net.capacity
    count = max(int(fits.sum()), int((similarity > ALIKE).sum()), 1)
    opened = torch.zeros(len(mass), dtype=torch.bool)
    opened[order[:count]] = True
    members = opened[net.unit_of_each()].nonzero()[:, 0]
    room = net.capacity - (len(order) - count)
    if len(members) > SPARSE * room:
        return units
    of_each = torch.ones(len(members)) if weight is None else weight[members].float()
    if len(members) > room:
        picked, of_each = evenly(of_each, room)
        members = members[picked]
    rest = (part[counts & ~opened] for part in units)
    return Centres(*map(torch.cat, zip((*remembered.some(members), of_each), rest, strict=True)))


def evenly(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most so many of `[n]` samples, as evenly spaced as their weights allow: their indices,
    which ascend, and the weights of all, shared out among them."""
    total = weight.double().cumsum(dim=0)
    step = total[-1] / count
    picked, times = torch.searchsorted(total, step * (torch.arange(count) + 0.5)).unique(
        return_counts=True)
    return picked, (times * step).float()


def distance_to_nearest(net: NoveltyNet, remembered: Remembered, embedding: Tensor) -> Tensor:
    """`[new, dim]` -> `[new]`: to the nearest sample, looked for in the nearest units: in so many
    that they hold, for the whole batch, as many samples as a full net has units. Of more than
    LOOKED_AT only some are looked at."""
    if len(net.mass) == len(remembered):
        return net.distance(embedding)
    order = squared_distance(embedding, net.centre).argsort(dim=1)
    nearer = net.mass[order].cumsum(dim=1) - net.mass[order]
    looked_at = torch.zeros(len(net.mass), dtype=torch.bool)
    looked_at[order[nearer < net.capacity / len(embedding)]] = True
    members = looked_at[net.unit_of_each()].nonzero()[:, 0]
    if len(members) > LOOKED_AT:
        members = members[evenly(torch.ones(len(members)), LOOKED_AT)[0]]
    try:
        found = remembered.some(members)
    except RevisionGoneError:  # another process made the memory smaller meanwhile
        return net.distance(embedding)
    return squared_distance(embedding, found.embedding).amin(dim=1).sqrt()
