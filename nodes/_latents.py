"""The spaces that a MODEL's latents live in, and the way there from a wire."""

from __future__ import annotations

from torch import Tensor

from ..guidance.feature_space import FeatureSpace
from ..guidance.latent_space import LatentSpace
from ..guidance.novelty_memory import FEATURES, NoveltyMemory
from ._feature_tap import tap_of


def feature_space(model) -> tuple[str, int]:
    """The space of a MODEL's latents by name, as minority classifiers have it, and its channels."""
    latent_format = model.get_model_object("latent_format")
    channels = latent_format.latent_channels
    return f"{type(latent_format).__name__}/{channels}", channels


def latent_space(model) -> LatentSpace:
    """The pooled space of a MODEL's latents, as novelty memories have it."""
    latent_format = model.get_model_object("latent_format")
    return LatentSpace(type(latent_format).__name__, latent_format.latent_channels)


def memory_space(model, memory: NoveltyMemory) -> LatentSpace | FeatureSpace:
    """The space in which a memory has samples of a MODEL. Raises FeatureSpaceError where it holds
    those of another space, or where the model has no such space."""
    found = latent_space(model)
    if memory.space == FEATURES:
        found = tap_of(model).space(type(model.get_model_object("latent_format")).__name__)
    memory.check_space(found.id)
    return found


def in_model_space(model, latents: Tensor) -> Tensor:
    """Latents as they are on a wire -> as the MODEL's sampler sees them. ValueError if they are
    empty, or another model's."""
    channels = model.get_model_object("latent_format").latent_channels
    nested = getattr(latents, "is_nested", False)  # video with sound
    if not nested and not latents.any():
        raise ValueError("This latent is empty: nothing was sampled into it yet. Link the latent "
                         "that a sampler gives.")
    if nested or latents.shape[1] != channels:
        raise ValueError(
            f"These latents have the shape {list(latents.shape)}, but the model works with "
            f"{channels} channels. Use latents of this model, or its own VAE.")
    return model.model.process_latent_in(latents)
