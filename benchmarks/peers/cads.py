"""CADS: the condition is drowned in noise at first, and comes out of it by and by.

Sadat et al., "CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed
Sampling", 2310.17347. Authors' setting for Stable Diffusion: tau1 .6, tau2 .9, s .25, psi 1.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.conditions import ConditionPeer, standard

TAU1, TAU2 = 0.6, 0.9
PSI = 1.0


def gamma(time: float, tau1: float = TAU1, tau2: float = TAU2) -> float:
    """How much is left of the condition at a time, 1 being pure noise: their annealing."""
    if time <= tau1:
        return 1.0
    return max(0.0, (tau2 - time) / (tau2 - tau1))


def annealed(y: Tensor, noise: Tensor, left: float, scale: float, psi: float = PSI) -> Tensor:
    """sqrt(gamma) y + s sqrt(1 - gamma) n, brought back to the mean and the standard
    deviation of y, mixed with what it was by psi.

    The paper's embeddings have about unit variance; so that s means the same for any, the noise
    has the standard deviation of y.
    """
    if left == 1:
        return y
    mean, std = standard(y)
    noisy = left ** 0.5 * y + scale * (1 - left) ** 0.5 * std * noise
    noisy_mean, noisy_std = standard(noisy)
    rescaled = (noisy - noisy_mean) / noisy_std * std + mean
    return psi * rescaled + (1 - psi) * noisy


class CADS(ConditionPeer):
    """strength: s, the authors' .25. The noise is new at every step (algorithm 1)."""

    def perturbed(self, embedding: Tensor, name: str) -> Tensor:
        left = gamma(self.run.step.time)
        if left == 1:
            return embedding
        return annealed(embedding, self.run.noise(embedding), left, self.strength)
