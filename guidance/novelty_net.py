"""The novelty net: a small network that memorises all samples in a fixed number of units.

After Gwern, "Novelty Nets: Classifier Anti-Guidance" (2024), it learns after every image and says
P(already generated | embedding). Its two layers are Gaussian units and a log-sum, a radial basis
network (Moody and Darken, 1989) that grows as Platt's resource-allocating network does (1991): each
sample becomes a unit while there is room. After that the two nearest units become one, or the
sample joins its nearest unit, whichever loses less (MacQueen's sequential means, 1967).

So the net *is* the exact kernel memory until it is full, and from then on its time and space stay
as they are, however long the history grows. It learns in the order of the log and without chance:
the same log gives the same net.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .memory.bank import Remembered
from .prompt import PROMPT_DIM, PROMPT_WIDTH
from .repulsion import squared_distance

CAPACITY = 2048
# Weighs prompts against embeddings when units are merged: prompts PROMPT_WIDTH apart count like
# images this far apart, so that only images of like prompts become one.
TYPICAL_DISTANCE = 0.4


class NoveltyNet:
    """centre: `[units, dim]`; prompt: `[units, PROMPT_DIM]`; mass: `[units]`, samples in each;
    learnt: the revisions of the samples it has learnt, `[n]`; ends: the embeddings of the first and
    the last of them, `[2, dim]`, by which a net of another log with such revisions is told.
    """

    def __init__(self, dim: int, capacity: int = CAPACITY):
        self.dim = dim
        self.capacity = capacity
        self.learnt = torch.empty(0, dtype=torch.int64)
        self.ends = torch.zeros(2, dim)
        self._units = 0
        self._point = torch.zeros(capacity, dim + PROMPT_DIM)  # embedding, and scaled prompt
        self._mass = torch.zeros(capacity)
        self._gap = torch.full((capacity,), torch.inf)  # squared distance to the nearest other
        self._neighbour = torch.zeros(capacity, dtype=torch.int64)

    @property
    def centre(self) -> Tensor:
        return self._point[:self._units, :self.dim]

    @property
    def prompt(self) -> Tensor:
        return self._point[:self._units, self.dim:] * (PROMPT_WIDTH / TYPICAL_DISTANCE)

    @property
    def mass(self) -> Tensor:
        return self._mass[:self._units]

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        return {"point": self._point, "mass": self._mass, "gap": self._gap,
                "neighbour": self._neighbour, "learnt": self.learnt,
                "ends": self.ends, "units": torch.tensor([self._units])}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> NoveltyNet:
        capacity, width = state["point"].shape
        net = cls(width - PROMPT_DIM, capacity)
        net._point, net._mass, net.learnt = state["point"], state["mass"], state["learnt"]
        net._gap, net._neighbour, net.ends = state["gap"], state["neighbour"], state["ends"]
        net._units = int(state["units"])
        return net

    def learn(self, remembered: Remembered, first: int = 0) -> None:
        """Learns the samples from index `first` on, in order."""
        points = torch.cat([remembered.embedding,
                            remembered.prompt * (TYPICAL_DISTANCE / PROMPT_WIDTH)], dim=1)[first:]
        room = min(self.capacity - self._units, len(points))
        new = slice(self._units, self._units + room)
        self._point[new] = points[:room]
        self._mass[new] = 1
        self._units += room
        if room and self._units == self.capacity:
            self._find_gaps()
        for point in points[room:]:
            self._absorb(point)
        self.learnt = torch.cat([self.learnt, remembered.revisions[first:]])
        if len(remembered):
            self.ends = remembered.embedding[[0, -1]]

    def has_learnt_from(self, remembered: Remembered) -> bool:
        """Whether what it has learnt is how `remembered` begins."""
        count = len(self.learnt)
        if count == 0 or count > len(remembered):
            return False
        return (torch.equal(self.learnt, remembered.revisions[:count])
                and torch.equal(self.ends, remembered.embedding[[0, count - 1]]))

    def _find_gaps(self) -> None:
        for rows in torch.arange(self.capacity).split(512):
            distance = squared_distance(self._point[rows], self._point)
            distance[torch.arange(len(rows)), rows] = torch.inf
            self._gap[rows], self._neighbour[rows] = distance.min(dim=1)

    def _absorb(self, point: Tensor) -> None:
        distance = squared_distance(point[None], self._point)[0]
        nearest = int(distance.argmin())
        closest = int(self._gap.argmin())
        if distance[nearest] <= self._gap[closest]:
            self._join(nearest, point, 1.0)
            return
        other = int(self._neighbour[closest])
        self._join(other, self._point[closest].clone(), float(self._mass[closest]))
        self._point[closest] = point
        self._mass[closest] = 1
        self._refresh(closest)

    def _join(self, unit: int, point: Tensor, mass: float) -> None:
        total = self._mass[unit] + mass
        self._point[unit] += (point - self._point[unit]) * (mass / total)
        self._mass[unit] = total
        self._refresh(unit)

    def _refresh(self, unit: int) -> None:
        """The gaps that change when a unit moves: its own, and those of units near it."""
        distance = self._distances(unit)
        stale = (self._neighbour == unit) & (distance > self._gap)
        nearer = distance < self._gap
        self._gap[nearer], self._neighbour[nearer] = distance[nearer], unit
        for other in stale.nonzero()[:, 0].tolist():
            self._gap[other], self._neighbour[other] = self._distances(other).min(dim=0)
        self._gap[unit], self._neighbour[unit] = distance.min(dim=0)

    def _distances(self, unit: int) -> Tensor:
        distance = squared_distance(self._point[unit][None], self._point)[0]
        distance[unit] = torch.inf
        return distance
