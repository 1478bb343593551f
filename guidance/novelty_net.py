"""The novelty net: a small network that memorises all samples in a fixed number of units.

After Gwern, "Novelty Nets: Classifier Anti-Guidance" (2024), it learns after every image and says
P(already generated | embedding). Its two layers are Gaussian units and a log-sum, a radial basis
network (Moody and Darken, 1989) that grows as Platt's resource-allocating network does (1991): each
sample becomes a unit while there is room. After that the two nearest units become one, or the
sample joins its nearest unit, whichever loses less (MacQueen's sequential means, 1967).

So the net *is* the exact kernel memory until it is full. From then on its time and space stay as
they are, but for 9 bytes a sample that say what became of it: so it finds a prompt's samples too.
It learns in the order of the log and without chance: the same log gives the same net. A forgotten
sample takes its weight out of its unit, so nothing is learnt again; only in a net that was full
when samples were forgotten can the centres differ a little from those of a net learnt afresh.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .memory.bank import Remembered
from .prompt import PROMPT_DIM, PROMPT_WIDTH
from .repulsion import squared_distance

CAPACITY = 2048
PAGE = 4096  # samples that are read at once
# Where units are merged, prompts PROMPT_WIDTH apart count like images this far apart.
TYPICAL_DISTANCE = 0.4


def _among(values: Tensor, known: Tensor) -> Tensor:
    """`[n]` bool: which of the values `[n]` are among the known `[m]`; both ascend."""
    if len(known) == 0:
        return torch.zeros(len(values), dtype=torch.bool)
    return known[torch.searchsorted(known, values).clamp(max=len(known) - 1)] == values


class NoveltyNet:
    """centre: `[units, dim]`; prompt: `[units, PROMPT_DIM]`; mass: `[units]`, samples in each;
    learnt: the revisions of the samples it holds, `[n]`."""

    def __init__(self, dim: int, capacity: int = CAPACITY):
        self.dim = dim
        self.capacity = capacity
        self._units = 0
        self.was_full = False  # ever; from then on gaps are known
        self._point = torch.zeros(capacity, dim + PROMPT_DIM)  # embedding, and scaled prompt
        self._norm = torch.zeros(capacity)  # squared, of each point
        self._mass = torch.zeros(capacity)
        # Squared distance to the nearest other, or less where that one has moved away since: it is
        # measured anew when it matters.
        self._gap = torch.full((capacity,), torch.inf)
        self._neighbour = torch.zeros(capacity, dtype=torch.int64)
        self._stale = torch.zeros(capacity, dtype=torch.bool)
        self._first = torch.zeros(capacity, dtype=torch.int64)  # the sample that began each unit
        # Of every sample ever learnt: its revision, the sample whose unit it went into (itself
        # where it began one that is still there), and whether it still counts.
        self._revision = torch.empty(0, dtype=torch.int32)
        self._went_into = torch.empty(0, dtype=torch.int32)
        self._counts = torch.empty(0, dtype=torch.bool)
        self._ends = torch.zeros(2, dim)  # embeddings of the first and the last sample learnt

    @property
    def centre(self) -> Tensor:
        return self._point[:self._units, :self.dim]

    @property
    def prompt(self) -> Tensor:
        return self._point[:self._units, self.dim:] * (PROMPT_WIDTH / TYPICAL_DISTANCE)

    @property
    def mass(self) -> Tensor:
        return self._mass[:self._units]

    def unit_of_each(self) -> Tensor:
        """`[n]`: of the samples that it holds, in the order they came."""
        into = self._went_into.long()
        while not torch.equal(further := into[into], into):
            into = further
        unit = torch.zeros(self.ever, dtype=torch.int64)
        unit[self._first[:self._units]] = torch.arange(self._units)
        return unit[into[self._counts]]

    def weight(self, of_each: Tensor) -> Tensor:
        """`[units]`: in place of the mass, the sum of the weights `[n]` of its samples."""
        return torch.from_numpy(np.bincount(self.unit_of_each(), of_each, self._units))

    @property
    def learnt(self) -> Tensor:
        return self._revision[self._counts].long()

    @property
    def ever(self) -> int:
        """How many samples it has ever learnt."""
        return len(self._revision)

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        return {"point": self._point, "norm": self._norm, "mass": self._mass, "gap": self._gap,
                "neighbour": self._neighbour, "stale": self._stale, "first": self._first,
                "revision": self._revision, "went_into": self._went_into, "counts": self._counts,
                "ends": self._ends, "units": torch.tensor([self._units, self.was_full])}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> NoveltyNet:
        """KeyError where the state is not of this version."""
        capacity, width = state["point"].shape
        net = cls(width - PROMPT_DIM, capacity)
        for name in net.state().keys() - {"units"}:
            setattr(net, f"_{name}", state[name])
        net._units, net.was_full = int(state["units"][0]), bool(state["units"][1])
        return net

    def copy(self) -> NoveltyNet:
        return self.from_state({name: part.clone() for name, part in self.state().items()})

    def distance(self, embedding: Tensor) -> Tensor:
        """`[batch, dim]` -> `[batch]`: to the nearest unit."""
        return squared_distance(embedding, self.centre).min(dim=1).values.sqrt()

    def holds(self, remembered: Remembered) -> bool:
        """Exactly these samples."""
        return (torch.equal(self.learnt, remembered.revisions)
                and self._knows_ends(remembered, remembered.revisions))

    def can_follow(self, remembered: Remembered) -> bool:
        """Whether these samples come after those it holds: some may be forgotten since, and some
        be new."""
        last = int(self._revision[-1]) if self.ever else 0
        held, old = self.learnt, self._old(remembered)
        if not torch.equal(old, held) and (
                remembered.revision <= last or not bool(_among(old, held).all())):
            return False
        return (self.ever > 0 or self.dim == remembered.dim) and self._knows_ends(remembered, old)

    def follow(self, remembered: Remembered, most: int | None = None) -> bool:
        """Forgets what is not among these samples, which it can follow; learns the others, or
        `most` of them. Returns whether it holds all of them then."""
        held, old = self.learnt, self._old(remembered)
        if not torch.equal(old, held):
            self._forget(held[~_among(held, old)])
        self.learn(remembered, len(old), most)
        return most is None or len(old) + most >= len(remembered)

    def _old(self, remembered: Remembered) -> Tensor:
        """Those of the revisions that came when the last sample it learnt did, or before."""
        last = self._revision[-1:].long() if self.ever else torch.zeros(1, dtype=torch.int64)
        return remembered.revisions[:int(torch.searchsorted(remembered.revisions, last,
                                                            right=True))]

    def learn(self, remembered: Remembered, first: int = 0, most: int | None = None) -> None:
        """Learns the samples from index `first` on, in order: all, or `most`."""
        last = min(len(remembered), first + (most or len(remembered)))
        for start in range(first, last, PAGE):
            end = min(start + PAGE, last)
            embedding, prompt = remembered.read(start, end)
            points = torch.cat([embedding, prompt * (TYPICAL_DISTANCE / PROMPT_WIDTH)], dim=1)
            before = len(self._revision)
            self._revision = torch.cat([self._revision, remembered.revisions[start:end].int()])
            self._went_into = torch.cat([self._went_into, torch.arange(
                before, len(self._revision), dtype=torch.int32)])
            self._counts = torch.cat([self._counts, torch.ones(len(points), dtype=torch.bool)])
            self._ends = torch.stack([embedding[0] if before == 0 else self._ends[0],
                                      embedding[-1]])
            for sample, point in enumerate(points, start=before):
                if self._units < self.capacity:
                    self._add(point, sample)
                else:
                    self._absorb(point, sample)

    def _knows_ends(self, remembered: Remembered, old: Tensor) -> bool:
        """Whether the first and the last sample that it ever learnt, where they are among the old
        ones, are what it knows: a net of another log with such revisions is told by them."""
        for end, index in ((0, 0), (-1, len(old) - 1)):
            if len(old) and old[index] == self._revision[end]:
                embedding, _ = remembered.read(index, index + 1)
                if not torch.equal(embedding[0], self._ends[end]):
                    return False
        return True

    # Forgetting

    def _forget(self, revisions: Tensor) -> None:
        samples = torch.searchsorted(self._revision, revisions.int())
        self._counts[samples] = False
        if not self.was_full:  # each sample is a unit still, in the order they came
            kept = self._counts[self._first[:self._units]]
            for part in (self._point, self._norm, self._mass, self._first):
                part[:int(kept.sum())] = part[:self._units][kept]
            self._units = int(kept.sum())
            return
        unit_of = {int(sample): unit for unit, sample in enumerate(self._first[:self._units])}
        emptied = []
        for sample in samples.tolist():
            unit = unit_of[self._began(sample)]
            self._mass[unit] -= 1
            if self._mass[unit] == 0:
                emptied.append(unit)
        for unit in sorted(emptied, reverse=True):
            self._remove(unit)

    def _began(self, sample: int) -> int:
        """The sample that began the unit which holds this one."""
        into = self._went_into
        while (parent := int(into[sample])) != sample:
            into[sample] = into[parent]
            sample = parent
        return sample

    def _remove(self, unit: int) -> None:
        """The last unit takes its place."""
        last = self._units - 1
        self._stale[:last + 1] |= self._neighbour[:last + 1] == unit
        for part in (self._point, self._norm, self._mass, self._gap, self._neighbour, self._stale,
                     self._first):
            part[unit] = part[last]
        self._neighbour[:last][self._neighbour[:last] == last] = unit
        self._gap[last] = torch.inf
        self._units = last

    # Learning. Numpy's views of the same memory: its calls cost a fraction of torch's, and there
    # are twenty of them a sample.

    def _add(self, point: Tensor, sample: int) -> None:
        unit = self._units
        self._units += 1
        self._place(unit, point, 1.0, sample)
        if self.was_full:
            self._spread(unit, self._distances(unit))
        elif self._units == self.capacity:
            self._find_gaps()

    def _absorb(self, point: Tensor, sample: int) -> None:
        distance = self._distances_to(point)
        nearest, closest = int(distance.argmin()), self._closest()
        if distance[nearest] <= self._gap[closest]:
            self._went_into[sample] = self._first[nearest]
            self._join(nearest, point, 1.0)
            return
        other = int(self._neighbour[closest])
        self._went_into[self._first[closest]] = self._first[other]
        self._join(other, self._point[closest].clone(), float(self._mass[closest]))
        self._place(closest, point, 1.0, sample)
        distance[closest] = np.inf
        distance[other] = max(float(self._norm[other] + self._norm[closest]
                                    - 2 * torch.dot(self._point[other], point)), 0.0)
        self._spread(closest, distance)

    def _join(self, unit: int, point: Tensor, mass: float) -> None:
        total = float(self._mass[unit]) + mass
        moved = torch.lerp(self._point[unit], point, mass / total)
        self._place(unit, moved, total, int(self._first[unit]))
        self._spread(unit, self._distances(unit))

    def _place(self, unit: int, point: Tensor, mass: float, sample: int) -> None:
        self._point[unit] = point
        self._norm[unit] = torch.dot(point, point)
        self._mass[unit] = mass
        self._first[unit] = sample

    def _spread(self, unit: int, distance: np.ndarray) -> None:
        """The gaps that change when a unit moves to these distances from the others: its own, and
        those of units near it."""
        gap, neighbour, stale = (part.numpy()[:self._units] for part in (
            self._gap, self._neighbour, self._stale))
        stale |= (neighbour == unit) & (distance > gap)
        nearer = np.flatnonzero(distance <= gap)
        gap[nearer], neighbour[nearer], stale[nearer] = distance[nearer], unit, False
        neighbour[unit] = distance.argmin()
        gap[unit], stale[unit] = distance[neighbour[unit]], False

    def _closest(self) -> int:
        """The unit whose nearest other is nearest."""
        gap, stale = self._gap.numpy(), self._stale.numpy()
        while stale[closest := int(gap.argmin())]:
            distance = self._distances(closest)
            nearest = int(distance.argmin())
            gap[closest], stale[closest] = distance[nearest], False
            self._neighbour[closest] = nearest
        return closest

    def _find_gaps(self) -> None:
        self.was_full = True
        for rows in torch.arange(self.capacity).split(512):
            distance = squared_distance(self._point[rows], self._point)
            distance[torch.arange(len(rows)), rows] = torch.inf
            self._gap[rows], self._neighbour[rows] = distance.min(dim=1)

    def _distances(self, unit: int) -> np.ndarray:
        """`[units]`, squared, infinite to itself."""
        distance = self._distances_to(self._point[unit])
        distance[unit] = np.inf
        return distance

    def _distances_to(self, point: Tensor) -> np.ndarray:
        points, norms = self._point[:self._units], self._norm[:self._units]
        distance = torch.addmv(norms, points, point, alpha=-2).numpy()
        distance += float(torch.dot(point, point))
        return np.maximum(distance, 0, out=distance)
