"""One case of the matrix: a kind of model, a sampler, a schedule, CFG and guidance, and what must
hold of them.

The case is drawn three times through the host's own sampling: unpatched, with guidance of strength
0, and guided. What the sampler and the model saw of each evaluation is compared with the closed
form of the push, for each image of the batch by itself, at the noise level that the host's own
`noise_scaling` tells.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from benchmarks.closed_form import (
    Direction,
    Place,
    agree,
    away_from,
    early_extra,
    signal_and_noise,
    spread,
)
from benchmarks.probe import Probe, Seen
from demo.host import InProcessHost
from demo.host.small_families import FAMILIES
from demo.host.small_models import MODELS

STEPS, BATCH, SEED = 3, 2, 0
SCALE, STRENGTH, RADIUS = 3.0, 0.5, 2.0
WINDOW = {"start_percent": 0.1, "end_percent": 0.9}
NOVELTY, EARLY, MINORITY = "novelty", "early novelty", "minority"
GUIDANCE = (NOVELTY, EARLY, MINORITY, f"{NOVELTY}+{MINORITY}", f"{MINORITY}+{NOVELTY}")
SMALL = MODELS | FAMILIES
EDGE = 1e-4  # relative: nearer to an end of a window, rounding decides on which side one is


def axes() -> dict[str, list]:
    """What the host offers, and what we add to it."""
    return {"model": [name for name, one in MODELS.items() if not one.video],
            "sampler": list(comfy.samplers.SAMPLER_NAMES),
            "scheduler": list(comfy.samplers.SCHEDULER_NAMES),
            "cfg": [1.0, 3.0], "guidance": list(GUIDANCE)}


@dataclass(frozen=True, kw_only=True)
class Case:
    model: str
    sampler: str
    scheduler: str
    cfg: float
    guidance: str

    @property
    def nodes(self) -> list[str]:
        """From the model on."""
        return self.guidance.split("+")

    @property
    def window(self) -> dict[str, float]:
        """Open from the start where early_push may look at the model before the first push."""
        return WINDOW | ({"start_percent": 0.0} if EARLY in self.nodes else {})


@dataclass
class Outcome:
    """failures: what did not hold; refused: why the host itself cannot draw this case, if so;
    evaluations: of the model in the guided run; off_grid: those between the levels of the schedule;
    outside: those outside the window; pushed: pushes that should be, one a node and evaluation;
    early: those of them that early_push makes larger."""

    failures: list[str] = field(default_factory=list)
    refused: str | None = None
    evaluations: int = 0
    off_grid: int = 0
    outside: int = 0
    pushed: int = 0
    early: int = 0


class Matrix:
    """Draws cases. folder: for the memories, one for each kind of model.

    The host collects garbage at every run, which takes longer than drawing; so what is there
    already is set aside. `gc.unfreeze()` takes it back.
    """

    def __init__(self, host: InProcessHost, folder) -> None:
        gc.collect()
        gc.freeze()
        self.host, self.folder = host, folder
        self.classifier = Direction()
        self.told: list[tuple[str, str]] = []
        self._models: dict[str, object] = {}
        self._remembered: set[str] = set()
        self._noise_scales: dict[str, float] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, what the nodes tell the user goes to `told`."""
        module = self.host.pack("nodes._host")
        before = module.show_on_node
        module.show_on_node = lambda node_id, text: self.told.append((node_id, text))
        try:
            yield
        finally:
            module.show_on_node = before

    def model(self, name: str):
        if name not in self._models:
            self._models[name] = SMALL[name].load()
        return self._models[name]

    def node(self, node_id: str, **inputs):
        """The first output of one of the pack's nodes."""
        node = self.host.pack_nodes[node_id].PREPARE_CLASS_CLONE(None)
        node.hidden.unique_id = node_id
        with torch.inference_mode():
            return node.execute(**inputs).args[0]

    def memory(self, name: str, learn: bool = False):
        url = f"sqlite:///{(self.folder / 'matrix.sqlite').as_posix()}"
        return self.host.pack("guidance.novelty_memory").NoveltyMemory(
            url=url, name=name, learn=learn)

    def remember(self, name: str) -> None:
        """What the model draws in one step, in two and in three: near what every sampler meets."""
        if name in self._remembered:
            return
        model = self.with_novelty(self.model(name), name, strength=0.0, record=True,
                                  memory=self.memory(name, learn=True))
        for steps in (1, 2, 3):
            self.draw(model, Case(model=name, sampler="euler", scheduler="normal", cfg=3.0,
                                  guidance=NOVELTY), steps=steps)
        self._remembered.add(name)

    def with_novelty(self, model, name: str, **changes):
        inputs = {"memory": self.memory(name), "strength": STRENGTH, "radius": RADIUS,
                  "repulsion": "exact", "prompt_aware": False, "batch_repulsion": 0.0,
                  "record": False} | WINDOW | changes
        return self.node("UncommonNoveltyGuidance", model=model, **inputs)

    def with_minority(self, model, **changes):
        inputs = {"classifier": self.classifier, "rarity": 99.0, "scale": SCALE,
                  "mode": "class"} | WINDOW | changes
        return self.node("UncommonMinorityGuidance", model=model, **inputs)

    def guided(self, case: Case, strength: float = 1.0, model=None):
        """The MODEL with the case's guidance, times a strength, between two probes."""
        outer, inner = Probe(), Probe()
        model = outer.attach(self.model(case.model) if model is None else model, "outer")
        for kind in case.nodes:
            if kind in (NOVELTY, EARLY):
                self.remember(case.model)
                model = self.with_novelty(model, case.model, strength=strength * STRENGTH,
                                          early_push="auto" if kind == EARLY else "off",
                                          **case.window)
            else:
                model = self.with_minority(model, scale=strength * SCALE, **case.window)
        return inner.attach(model, "inner"), outer, inner

    def draw(self, model, case: Case, *, steps: int = STEPS, latent: Tensor | None = None,
             noise: Tensor | None = None, positive: list | None = None, **more) -> Tensor:
        """What KSampler draws; more: as comfy.sample.sample takes it."""
        kind = SMALL[case.model]
        latent = kind.latent(BATCH) if latent is None else latent
        with torch.inference_mode():
            noise = comfy.sample.prepare_noise(latent, SEED) if noise is None else noise
            return comfy.sample.sample(
                model, noise, steps, case.cfg, case.sampler, case.scheduler,
                kind.prompt(1) if positive is None else positive, kind.prompt(2), latent,
                disable_pbar=True, seed=SEED, **more)

    def check(self, case: Case) -> Outcome:
        """Draws the case and tells what does not hold."""
        outcome, self.told = Outcome(), []
        with self.listening():
            try:
                plain = self.draw(self.model(case.model), case)
            except Exception as error:  # noqa: BLE001 - whatever the host says, it says the same
                outcome.refused = f"{type(error).__name__}: {error}"
            neutral, outer, inner = self.guided(case, 0.0)
            try:
                drawn = self.draw(neutral, case)
            except Exception as error:  # noqa: BLE001
                if outcome.refused != f"{type(error).__name__}: {error}":
                    outcome.failures.append(f"strength 0: {type(error).__name__}: {error}")
                return outcome
            if outcome.refused:
                outcome.failures.append(f"unpatched: {outcome.refused}, but strength 0 is drawn")
                return outcome
            if not torch.equal(drawn.nan_to_num(), plain.nan_to_num()):
                outcome.failures.append("strength 0 is not the unpatched model")
            if any(one.asked is not other.asked for one, other in zip(outer.seen, inner.seen,
                                                                      strict=True)):
                outcome.failures.append("strength 0 gives the model another tensor")
            model, outer, inner = self.guided(case)
            self.told = []
            drawn = self.draw(model, case)
        if plain.isfinite().all() and not drawn.isfinite().all():
            outcome.failures.append("not finite")
        nodes = [node for node, text in self.told if text]
        if len(nodes) != len(case.nodes):
            outcome.failures.append(f"told: {self.told}")
        self.compare(case, outer, inner, outcome)
        return outcome

    def compare(self, case: Case, outer: Probe, inner: Probe, outcome: Outcome) -> Outcome:
        """Every evaluation of a run of the case's MODEL with the closed form."""
        sampling = self.model(case.model).get_model_object("model_sampling")
        outcome.evaluations = len(outer.seen)
        looks = len(inner.seen) - len(outer.seen)  # asked once more, before the first push
        if looks != int(EARLY in case.nodes and case.cfg == 1):
            outcome.failures.append(f"the model was asked {looks} times more")
        previous = inner.seen.pop(0).out if looks else None
        for number, (outside, inside) in enumerate(zip(outer.seen, inner.seen, strict=True)):
            place = self._place(sampling, outside, case.window)
            outcome.off_grid += int(not torch.isclose(
                outside.schedule, outside.sigma[0].to(outside.schedule), rtol=EDGE).any())
            outcome.outside += int(not place.within)
            for kind, found, base in ((NOVELTY, inside.x - outside.x, outside.x),
                                      (MINORITY, outside.out - inside.out, inside.out)):
                expected, relative, certain = torch.zeros_like(place.x), 0.0, place.certain
                if kind == MINORITY and kind in case.guidance:
                    expected, certain = self._minority(place)
                    relative = 1e-3
                elif kind in case.guidance and place.within and previous is not None:
                    expected, relative = self._novelty(case, place, previous.double(),
                                                       outcome)
                outcome.pushed += int(expected.any())
                if certain and not agree(found, expected, base, relative):
                    outcome.failures.append(
                        f"{kind}, evaluation {number} at sigma {place.here:.6g}: pushed by "
                        f"{found.norm():.6g}, should be {expected.norm():.6g}, differs by "
                        f"{(found - expected).norm():.3g}")
            previous = outside.out
        return outcome

    def _place(self, sampling, seen: Seen, window: dict[str, float]) -> Place:
        sigma = seen.sigma.double()
        here = float(sigma[0])
        end, start = (float(sampling.percent_to_sigma(window[name]))
                      for name in ("end_percent", "start_percent"))
        return Place(seen.x.double(), *signal_and_noise(sampling, sigma), here,
                     within=end <= here <= start,
                     certain=min(abs(here / end - 1), abs(here / start - 1)) > EDGE)

    def _minority(self, place: Place) -> tuple[Tensor, bool]:
        """The push, and whether it is certain that there is one, or none."""
        a, s, low = float(place.a[0]), float(place.s[0]), self.classifier.log_snr_range[0]
        log_snr = 2 * math.log(a / s) if a > 0 else -math.inf
        certain = place.certain and abs(abs(log_snr) - abs(low)) > 1e-2
        if not place.within or abs(log_snr) > abs(low):
            return torch.zeros_like(place.x), certain
        total = math.hypot(a, s)
        gradient = self.classifier.gradient(
            place.x / total, torch.full_like(place.a, log_snr))
        return SCALE * s ** 2 / (a * total) * gradient, certain

    def _novelty(self, case: Case, place: Place, previous: Tensor, outcome: Outcome
                 ) -> tuple[Tensor, float]:
        """The push, and how far it may be off, as a fraction: it takes distances of embeddings e in
        float32, as |e|^2 + |e'|^2 - 2 e e'."""
        space = self.host.pack("nodes._latents").latent_space(self.model(case.model))
        remembered = self.memory(case.model).bank.at().embedding.double()
        embedding, x = (space.embed(one).double() for one in (previous, place.x))
        wanted = away_from(embedding, remembered, RADIUS) * STRENGTH / 0.3  # whole at .3
        shift = place.a[:, None] * wanted
        if EARLY in case.nodes and case.cfg == 1:
            noise = place.s * self._noise_scale(case.model)
            extra = early_extra(embedding, x, wanted, remembered, place.a, noise, 2 * STRENGTH)
            outcome.early += int(extra.any())
            shift = shift + extra
        shift = space.lift(shift.float(), previous.float()).double()
        most = STRENGTH * (place.x - spread(place.a, place.x) * previous).flatten(1).norm(dim=1)
        shift = shift * spread((most / shift.flatten(1).norm(dim=1)).clamp(max=1), place.x)
        return shift, 1e-3 + 2e-6 * float(embedding.square().sum(1).max()) / RADIUS ** 2

    def _noise_scale(self, name: str) -> float:
        """Root mean square of the embedding of noise of variance 1, from that of each number."""
        if name not in self._noise_scales:
            space = self.host.pack("nodes._latents").latent_space(self.model(name))
            latent = SMALL[name].latent(1)
            impulses = torch.eye(latent.numel()).view(-1, *latent.shape[1:])
            self._noise_scales[name] = float(space.embed(impulses).square().sum().sqrt())
        return self._noise_scales[name]
