"""Brings latents, images and folders of images into a novelty memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..guidance.curation import Remembering
from ..guidance.novelty_memory import NoveltyMemory, content_hashes
from ..guidance.prompt import prompt_embedding
from . import _host
from ._images import image_files, load_image
from ._latents import in_model_space, latent_space

CHUNK = 16  # images that are appended together, and that an interruption can lose


class Importer:
    """Adds samples of one MODEL to a memory. Raises MemoryLogError if the memory is frozen, and
    FeatureSpaceError if it is another model's."""

    def __init__(self, model, memory: NoveltyMemory, vae, conditioning: list | None):
        self.model = model
        self.vae = vae
        self.latent_format = model.get_model_object("latent_format")
        self.space = latent_space(model)
        encoded = _host.encoded_conditioning(conditioning)
        self.remembering = Remembering(
            memory, self.space.id, None if encoded is None else prompt_embedding(encoded))
        self._failures: list[str] = []

    def add_latents(self, latents: Tensor) -> None:
        """Latents `[batch, channels, ...]` as they are on a wire."""
        embedding, previews = self._features(latents)  # raises an error for what is no latent
        self.remembering.add(content_hashes(latents), embedding, previews, "latent")

    def add_images(self, images: Tensor) -> None:
        """IMAGE `[batch, height, width, channels]`."""
        latents = [self._encode(image[None]) for image in images]
        hashes = [content_hash for latent in latents for content_hash in content_hashes(latent)]
        embedding, previews = zip(*map(self._features, latents), strict=True)
        self.remembering.add(hashes, torch.cat(embedding), sum(previews, []), "image")

    def add_folder(self, folder: str, size: tuple[int, int]) -> None:
        """Every image in a folder, scaled to size (width, height); what was read stays remembered
        if the run is interrupted."""
        files = image_files(folder)
        progress = comfy.utils.ProgressBar(len(files))
        for start in range(0, len(files), CHUNK):
            hashes, embeddings, previews = [], [], []
            chunk = files[start:start + CHUNK]
            contents = {file: content for file in chunk
                        if (content := self._read(file)) is not None}
            named = {file: hashlib.sha256(content).hexdigest()
                     for file, content in contents.items()}
            unknown = {*self.remembering.unknown([*named.values()])}
            for file in chunk:
                comfy.model_management.throw_exception_if_processing_interrupted()
                content_hash, content = named.get(file), contents.pop(file, b"")
                image = self._load(file, content, size) if content_hash in unknown else None
                if image is not None:
                    embedding, preview = self._features(self._encode(image))
                    hashes.append(content_hash)
                    embeddings.append(embedding)
                    previews += preview
                progress.update(1)
            if hashes:
                self.remembering.add(hashes, torch.cat(embeddings), previews, "folder")

    def report(self) -> str:
        return self.remembering.report(self._failures)

    def _read(self, file: Path) -> bytes | None:
        """None where it cannot be read."""
        try:
            return file.read_bytes()
        except OSError as error:
            self._failures.append(f"{file.name}: {error}")
            return None

    def _load(self, file: Path, content: bytes, size: tuple[int, int]) -> Tensor | None:
        """None where the content is no whole image."""
        try:
            return load_image(content, size)
        except Exception as error:  # Pillow's plugins raise many kinds
            self._failures.append(f"{file.name}: {error}")
            return None

    def _encode(self, image: Tensor) -> Tensor:
        if self.vae is None:
            raise ValueError("Images need the model's VAE to become samples. Connect it.")
        return self.vae.encode(image[..., :3])

    def _features(self, latents: Tensor) -> tuple[Tensor, list[bytes | None]]:
        """Embeddings `[batch, dim]` and previews."""
        latents = in_model_space(self.model, latents)
        return (self.space.embed(latents),
                [_host.preview(self.latent_format, latent) for latent in latents])
