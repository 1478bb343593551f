"""DivIn: initial noise that the prompt has less of a hold on.

2606.02453: one Langevin step of x_T under the energy tau |x0-hat(c) - x0-hat(0)| + |x_T|^2 / 2:
x_T - eta (tau grad |x0-hat(c) - x0-hat(0)| + x_T) + sqrt(2 eta) xi. Authors' setting for Stable
Diffusion 1: eta .05, tau .6; for Stable Diffusion 3: .01 and .1. How long the gradient is depends
on the model: with the digits and the DiT tau .6 is lost in xi, with the distilled student it moves
the noise far; so tau is swept from .1 to 60.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.peers.hooks import Peer

ETA = 0.05


def langevin_step(noise: Tensor, gradient: Tensor, fresh: Tensor, tau: float,
                  eta: float = ETA) -> Tensor:
    """The new initial noise; gradient: of the gap's length at the noise, fresh: xi."""
    return noise - eta * (tau * gradient + noise) + (2 * eta) ** 0.5 * fresh


def gap_gradient(gap: Callable[[Tensor], Tensor], noise: Tensor) -> Tensor:
    """Gradient of the length of each sample's gap `[batch, ...]` at the noise `[batch, ...]`."""
    with torch.inference_mode(False), torch.enable_grad():
        at = noise.clone().requires_grad_()
        return torch.autograd.grad(gap(at).flatten(1).norm(dim=1).sum(), at)[0]


@contextmanager
def norms_on_copies(net: nn.Module) -> Iterator[None]:
    """Within, layer norms keep a copy of what they are given: the host's Flux then changes it in
    place, and no gradient would come back."""
    hooks = [module.register_forward_pre_hook(lambda _, given: (given[0].clone(), *given[1:]))
             for module in net.modules() if isinstance(module, nn.LayerNorm)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class DivIn(Peer):
    """strength: tau."""

    def attach(self, model):
        if self.strength and model.is_dynamic():
            model = model.clone(disable_dynamic=True)  # gradients need all weights in one place
        return super().attach(model)

    def initial_noise(self, guider, noise: Tensor, scale, sigma: Tensor) -> Tensor:
        import comfy.model_management
        from comfy.samplers import calc_cond_batch

        from guidance.ordinary_weights import ordinary, ordinary_weights

        inner = guider.inner_model
        conds = [guider.conds["positive"], guider.conds["negative"]]
        timestep = sigma.expand(len(noise))

        def gap(at: Tensor) -> Tensor:
            given, none = calc_cond_batch(inner, conds, scale(at), timestep, guider.model_options)
            return given - none

        before = comfy.model_management.in_training
        comfy.model_management.in_training = True  # the host's operations that have a gradient
        try:
            with ordinary_weights(inner.diffusion_model), norms_on_copies(inner.diffusion_model):
                gradient = gap_gradient(gap, ordinary(noise))
        finally:
            comfy.model_management.in_training = before
        return langevin_step(noise, gradient, self.run.noise(noise), self.strength)
