"""The benchmark's own node, which puts a peer on a MODEL."""

from __future__ import annotations

from benchmarks.peers.antithetic_noise import AntitheticNoise
from benchmarks.peers.bank import bank as bank_of
from benchmarks.peers.cads import CADS
from benchmarks.peers.conditioning_noise import ConditioningNoise
from benchmarks.peers.diversity_boost import DiversityBoost
from benchmarks.peers.divin import DivIn
from benchmarks.peers.interval_cfg import IntervalCFG
from benchmarks.peers.particle_guidance import ParticleGuidance
from benchmarks.peers.procreate import ProCreate
from benchmarks.peers.sparke import Sparke
from benchmarks.peers.tsr import TSR
from demo.host import InProcessHost

NODE = "BenchmarkPeer"
TSR_NODE = "TemporalScoreRescaling"  # the host's own
PEERS = {"antithetic noise": AntitheticNoise, "cads": CADS,
         "conditioning noise": ConditioningNoise, "diversity boost": DiversityBoost,
         "divin": DivIn, "interval cfg": IntervalCFG, "particle guidance": ParticleGuidance,
         "procreate": ProCreate, "sparke": Sparke, "tsr": TSR}
WITH_BANK = ("particle guidance", "procreate", "sparke")


class BenchmarkPeer:
    """bank: name of what is kept between queue items; empty where nothing is."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {
            "model": ("MODEL",), "peer": (list(PEERS),),
            "strength": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1e6, "step": 1e-6}),
            "bank": ("STRING", {"default": ""})}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "benchmark"

    def patch(self, model, peer: str, strength: float, bank: str):
        return (PEERS[peer](strength, bank_of(bank) if bank else None).attach(model),)


def register(host: InProcessHost) -> None:
    """Makes the nodes that chains with peers use known to a host."""
    import nodes

    from demo import avatars_dit

    avatars_dit.register()
    nodes.NODE_CLASS_MAPPINGS[NODE] = BenchmarkPeer
    host.load_extra("nodes_eps")
