"""What is compared: each method with the settings that it is swept over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.chains import BANK, Chain, Sampler
from benchmarks.novelty import ball
from benchmarks.peers.node import NODE, TSR_NODE, WITH_BANK

PLAIN = "plain"
LOWER_CFG = "lower CFG"
BOOST_NODE = "UncommonBoostAndSkip"
OURS = "ours"
Inputs = dict[str, Any]
Patches = tuple[tuple[str, Inputs], ...]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A method at one strength. guidance: inputs of Novelty Guidance in place of its defaults,
    None: it is not there; memory: of Novelty Memory; cfg: in place of that of the sweep."""

    method: str
    strength: float | None = None
    guidance: Inputs | None = None
    memory: Inputs | None = None
    patches: Patches = ()
    cfg: float | None = None

    def __hash__(self) -> int:
        return hash((self.method, self.strength, self.cfg))

    @property
    def is_ours(self) -> bool:
        return self.method.startswith(OURS)

    def chain(self, defaults: Inputs, *, model: str, sampler: Sampler, cfg: float, label: int,
              seeds: int = 0, count: int) -> Chain:
        """One image after the other."""
        return Chain(model=model, sampler=sampler, cfg=self.cfg or cfg, label=label, seeds=seeds,
                     count=count, patches=self.patches, memory=self.memory,
                     guidance=None if self.guidance is None else defaults | self.guidance)

    def batches(self, defaults: Inputs, *, batch: int, **chain: Any) -> Chain:
        """Batches that nothing is remembered of."""
        patches = tuple(map(_in_batches, self.patches))
        guidance = None if self.guidance is None else self.guidance | {"record": False}
        made = Setting(method=self.method, guidance=guidance, memory=self.memory,
                       patches=patches, cfg=self.cfg).chain(defaults, **chain)
        return Chain(**{**vars(made), "batch": batch})


def _in_batches(patch: tuple[str, Inputs]) -> tuple[str, Inputs]:
    kind, inputs = patch
    if kind == TSR_NODE:  # it takes no batches
        return NODE, {"peer": "tsr", "strength": inputs["tsr_k"], BANK: ""}
    return (kind, inputs | {BANK: ""}) if kind == NODE else (kind, inputs)


def _peer(name: str, strength: float) -> Patches:
    return ((NODE, {"peer": name, "strength": strength,
                    BANK: "chain" if name in WITH_BANK else ""}),)


def _tsr(k: float) -> Patches:
    return ((TSR_NODE, {"tsr_k": k, "tsr_sigma": 1.0}),)


def _boost(gamma: float) -> Patches:
    return ((BOOST_NODE, {"gamma": gamma, "skip": 0}),)


# Three strengths each, the authors' in the middle; but where theirs does next to nothing on small
# models, or their unit does not carry over (each peer's file says so), the sweep goes up from it.
STRENGTHS = {
    "cads": (0.1, 0.25, 0.5),
    "conditioning noise": (0.1, 0.5, 1.5),
    "diversity boost": (1.0, 2.0, 4.0),
    "divin": (0.1, 0.6, 6.0, 60.0),
    "interval cfg": (1.6, 2.9, 5.42),
    "particle guidance": (0.01, 0.03, 0.1),
    "procreate": (100.0, 250.0, 1000.0),
    "sparke": (0.04, 0.12, 0.4),
}
TSR = (0.95, 0.85, 0.7)  # .95: the host's default
RADII = (0.2, 0.3, 0.4)  # of SPELL's ball; the paper's is in the latents' own unit, per model
NET = (0.15, None, 0.19, 0.24)  # radius; None: the defaults
CANDIDATES = (4, 8)
BOOSTS = (1.05, 1.1, 1.2)  # gamma of Boost and Skip, of which no step is skipped
LOWER = (1.0, 1.5, 2.0)
MIDDLE = 1

METHODS: dict[str, tuple[Setting, ...]] = {
    PLAIN: (Setting(method=PLAIN),),
    OURS: tuple(Setting(method=OURS, strength=radius,
                        guidance={} if radius is None else {"radius": radius}) for radius in NET),
    "spell": tuple(Setting(method="spell", strength=radius, guidance=ball(radius))
                   for radius in RADII),
    **{name: tuple(Setting(method=name, strength=strength, patches=_peer(name, strength))
                   for strength in strengths) for name, strengths in STRENGTHS.items()},
    "tsr": tuple(Setting(method="tsr", strength=k, patches=_tsr(k)) for k in TSR),
    "boost": tuple(Setting(method="boost", strength=gamma, patches=_boost(gamma))
                   for gamma in BOOSTS),
    LOWER_CFG: tuple(Setting(method=LOWER_CFG, strength=cfg, cfg=cfg) for cfg in LOWER),
    "ours, features": (Setting(method="ours, features", guidance={},
                               memory={"space": "features"}),),
    "ours, early_push off": (Setting(method="ours, early_push off",
                                     guidance={"early_push": "off"}),),
    "ours, no candidates": (Setting(method="ours, no candidates", guidance={"candidates": 1}),),
    "ours, candidates": tuple(Setting(method="ours, candidates", strength=count,
                                      guidance={"candidates": count})
                              for count in CANDIDATES),
    "ours + tsr": tuple(Setting(method="ours + tsr", strength=k, guidance={}, patches=_tsr(k))
                        for k in TSR),
}
# What is nothing but a batch's starting noises.
OF_BATCHES = (Setting(method="antithetic noise", patches=_peer("antithetic noise", 1.0)),)
OF_CFG = (LOWER_CFG, "interval cfg")  # of no use where there is no CFG
# The same as ours where there is CFG; the second also where the run has few steps.
WITHOUT_CFG = ("ours, early_push off", "ours, no candidates")


def middle(method: str) -> Setting:
    """The authors' setting, and our defaults."""
    settings = METHODS[method]
    return settings[min(MIDDLE, len(settings) - 1)]


