"""A CLIP_VISION of the host behind a VAE: from a model's latents to embeddings, differentiably."""

from __future__ import annotations

import hashlib

import comfy.clip_model
import comfy.model_management
import torch
from torch import Tensor
from torch.func import functional_call

from ..guidance.memory import FeatureSpaceError
from ..guidance.novelty_memory import NoveltyMemory
from ..guidance.ordinary_weights import ordinary_state
from ..guidance.vision_space import VisionSpace


def vision_space(model, memory: NoveltyMemory, clip_vision, vae, ready: bool = False
                 ) -> VisionSpace:
    """The space in which a memory has pictures of a MODEL, ready to embed or only to be known.
    Raises FeatureSpaceError where the memory holds those of another space, or where an input is
    missing or does not fit."""
    encoder = VisionEncoder(model, clip_vision, vae)
    space = VisionSpace(encoder.name, encoder)
    memory.check_space(space.id)
    if ready:
        encoder.load(model.load_device)
    return space


class VisionEncoder:
    """x0 `[batch, channels, height, width]` in a MODEL's space -> what the vision model says.

    The weights that it works with go with it: the host's own where they lie on its device, else
    copies.
    """

    def __init__(self, model, clip_vision, vae):
        missing = [what for what, given in (
            ("clip_vision, from Load CLIP Vision", clip_vision),
            ("vae, the model's VAE or a TAESD", vae)) if given is None]
        if missing:
            raise FeatureSpaceError(f"Novelty Memory is set to space vision, which needs "
                                    f"{' and '.join(missing)}. Connect what is missing to Novelty "
                                    "Guidance, or set space to latent, with another name.")
        self._latent_format = model.get_model_object("latent_format")
        channels = self._latent_format.latent_channels
        vae.throw_exception_if_invalid()
        if self._latent_format.latent_dimensions != 2 or vae.latent_dim != 2:
            raise FeatureSpaceError(
                "Space vision is for models of images whose latents are images too; this model or "
                "this VAE works with video or sound. Set space to latent in Novelty Memory, with "
                "another name.")
        if vae.latent_channels != channels:
            raise FeatureSpaceError(
                f"The VAE decodes latents of {vae.latent_channels} channels, but this model's have "
                f"{channels}. Connect the model's own VAE, or a TAESD made for it.")
        self._vision, self._vae = clip_vision, vae
        self._decoder = _Decoder(vae.first_stage_model)
        self._device: torch.device | None = None
        self._weights: dict[str, dict[str, Tensor]] = {}
        self.name = f"{clip_vision.model_type}/{fingerprint(clip_vision.model)}"

    def __call__(self, x0: Tensor) -> Tensor:
        """`[batch, dim]`, or `[batch, tokens, dim]`."""
        latents = self._latent_format.process_out(x0.to(self._device))
        latents = latents.to(self._vae.vae_dtype)
        decoded = functional_call(self._decoder, self._weights["decoder"], (latents,)).float()
        picture = self._vae.process_output(decoded.clone()).movedim(1, -1)
        pixels = {"pixel_values": self._preprocessed(picture[..., :3]), "intermediate_output": -2}
        return functional_call(self._vision.model, self._weights["vision"], (), pixels)[2]

    def _preprocessed(self, picture: Tensor) -> Tensor:
        """IMAGE -> what the vision model takes, as the host does it; never cut, for what lies at
        the sides counts as well."""
        of, prepare, more = self._vision, comfy.clip_model.clip_preprocess, {}
        if of.model_type == "siglip2_vision_model":
            prepare = comfy.clip_model.siglip2_preprocess
            more = {"patch_size": of.config.get("patch_size", 16),
                    "num_patches": of.config.get("num_patches", 256)}
        return prepare(picture, size=of.image_size, mean=of.image_mean, std=of.image_std,
                       crop=False, **more).float()

    def load(self, device: torch.device) -> None:
        """To be called before the first image, and before the host loads the MODEL: makes room for
        the copies, and makes them."""
        nets = {"vision": self._vision.model, "decoder": self._decoder}
        if device.type != "cpu":
            comfy.model_management.free_memory(
                sum(weight.nbytes for net in nets.values() for weight in net.parameters()
                    if weight.device != device), device)
        self._device = device
        self._weights = {name: ordinary_state(net, device) for name, net in nets.items()}


class _Decoder(torch.nn.Module):
    """A VAE's second half as a module of its own."""

    def __init__(self, vae: torch.nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)


def fingerprint(net: torch.nn.Module) -> str:
    """Of a vision model: the names, the shapes and some numbers of its weights, the same in single
    and in half precision."""
    found = hashlib.sha256()
    for name, weight in sorted(net.state_dict().items()):
        found.update(f"{name}{[*weight.shape]}".encode())
        if type(weight) is Tensor:
            found.update(weight.reshape(-1)[:16].cpu().half().numpy().tobytes())
    return found.hexdigest()[:12]
