"""Turns images and folders into features, a few at a time: no more are in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from torch import Tensor

from ..guidance.diversity_figures import Features, History
from ..guidance.image_files import open_image
from ..guidance.neighbours import Tick, nearest
from ..guidance.novelty_memory import NoveltyMemory
from ..guidance.distances import INSTALL_LPIPS
from ..guidance.picture_features import (
    PIXELS,
    LpipsFeatures,
    load_lpips_features,
    missing_backbone,
    pixel_features,
    present_backbone,
    square,
)
from . import _host
from ._latents import latent_space
from ._scorer import lpips_folders

AUTO, CLIP_VISION = "auto", "clip_vision"
LPIPS = ("lpips_vgg", "lpips_alex", "lpips_squeeze", "lpips_random")
FEATURES = [AUTO, CLIP_VISION, *LPIPS, PIXELS]
BATCH = 16
NEW = 256  # rows at the end of a memory that this prompt may have written


@dataclass(frozen=True)
class Picture:
    """image: `[height, width, channels]`, None where it is in a file."""

    name: str
    image: Tensor | None = None
    file: Path | None = None

    def load(self) -> Tensor:
        """IMAGE `[1, height, width, 3]`. Raises what Pillow does, and ValueError."""
        if self.image is None:
            array = np.asarray(open_image(self.file), np.float32)
            return torch.from_numpy(array / 255)[None]
        if self.image.shape[-1] not in (3, 4):
            raise ValueError(f"An image has {self.image.shape[-1]} channels; expected 3 (RGB), or "
                             "4 with transparency. Convert it to an image first.")
        return self.image[None, ..., :3].float().cpu()


def pictures_of(images: Sequence[Tensor], files: Sequence[Path], name: str) -> list[Picture]:
    """IMAGEs `[batch, height, width, channels]` and files, as pictures."""
    wired = [image for batch in images for image in batch]
    return [*(Picture(f"{name} {i}", image) for i, image in enumerate(wired, start=1)),
            *(Picture(file.name, file=file) for file in files)]


class Extractor:
    """Features of pictures, and their mean LPIPS where a network for it is here.

    Raises ValueError where what was chosen cannot be had.
    """

    def __init__(self, choice: str, clip_vision, size: int):
        folders, device = lpips_folders(), comfy.model_management.get_torch_device()
        installed = importlib.util.find_spec("lpips") is not None
        present = present_backbone(folders) if installed else None
        self.name = choice
        if choice == AUTO:
            self.name = (CLIP_VISION if clip_vision is not None else
                         PIXELS if present is None else f"lpips_{present}")
        if self.name == CLIP_VISION and clip_vision is None:
            raise ValueError("features is clip_vision, but no CLIP vision model is connected. "
                             "Connect one from Load CLIP Vision, or choose other features.")
        self.clip_vision = clip_vision
        self.net = self.name.removeprefix("lpips_") if self.name in LPIPS else present
        self.lpips: LpipsFeatures | None = None
        self.lpips_why = ""
        if self.net is not None:
            self.lpips = load_lpips_features(self.net, folders, size, device)
        else:
            self.lpips_why = (missing_backbone(folders) if installed else
                              f"needs the Python package lpips: {INSTALL_LPIPS}")

    def __call__(self, images: Sequence[Tensor], counted: bool) -> Tensor:
        """IMAGEs `[1, height, width, 3]` -> `[batch, dim]`; counted: for the mean LPIPS."""
        views = [image.movedim(-1, 1) * 2 - 1 for image in images]
        perceived = None
        if self.lpips is not None and (counted or self.name in LPIPS):
            squares = torch.cat([square(view, self.lpips.size) for view in views])
            perceived = self.lpips(squares, counted)
        if self.name in LPIPS:
            return perceived
        if self.name == PIXELS:
            return torch.cat([pixel_features(view) for view in views])
        alike = len({image.shape for image in images}) == 1
        batches = [torch.cat([*images])] if alike else images
        return torch.cat([self.clip_vision.encode_image(batch)["image_embeds"].flatten(1)
                          for batch in batches]).float().cpu()

    @property
    def mean_lpips(self) -> float | None:
        """Of all pairs of the counted pictures."""
        return None if self.lpips is None else self.lpips.mean_of_pairs()

    def about(self, dim: int) -> Features:
        if self.name in LPIPS:
            meaning = f"what the network {self.net} sees, averaged over the middle square"
            if self.net == "random":
                meaning = "what an untrained network sees, averaged over the middle square"
        else:
            meaning = {PIXELS: "the colours of the image, averaged over a grid of 16 x 16",
                       CLIP_VISION: "what the connected vision model says is in the image",
                       }[self.name]
        return Features(name=self.name, meaning=meaning, dim=dim)


class HistorySearch:
    """Embeds pictures in the space of a memory, and finds the nearest remembered.

    Raises ValueError where model or VAE are missing, FeatureSpaceError if they do not fit.
    """

    def __init__(self, memory: NoveltyMemory, model, vae):
        if model is None or vae is None:
            raise ValueError("A memory is connected, and it needs the model that it guides and the "
                             "model's VAE. Connect both, or disconnect the memory.")
        self.memory, self.model, self.vae = memory, model, vae
        self.space = latent_space(model)
        memory.check_space(self.space.id)
        self.embeddings: list[Tensor] = []

    def add(self, image: Tensor) -> None:
        """IMAGE `[1, height, width, 3]`."""
        latents = self.vae.encode(image)
        if getattr(latents, "is_nested", False) or latents.shape[1] != self.space.channels:
            raise ValueError(f"The VAE does not make latents of {self.space.channels} channels, "
                             "which the model works with. Connect the model's own VAE.")
        self.embeddings.append(self.space.embed(self.model.model.process_latent_in(latents)).cpu())

    def result(self) -> History:
        """What the running prompt itself has just recorded does not count as history."""
        remembered = self.memory.bank.at(self.memory.revision)
        old = ~torch.isin(remembered.revisions, torch.tensor(self._new(), dtype=torch.int64))
        name = self.memory.name
        if not bool(old.any()):
            return History(name=name, why="the memory is empty but for these images"
                           if len(remembered) else "the memory is empty")
        distance, _ = nearest(torch.cat(self.embeddings), remembered.embedding[old], 1)
        known = remembered.nearest
        known = known[old[-len(known):]]
        known = known[torch.isfinite(known)].double().sort().values
        novelty = torch.searchsorted(known, distance[:, 0]) / len(known) if len(known) else None
        return History(name=name, remembered=int(old.sum()), distance=distance[:, 0],
                       novelty=novelty)

    def _new(self) -> list[int]:
        prompt_id, _ = _host.running_node()
        last = self.memory.resolve()
        first = max(0, last - NEW - len(self.embeddings))
        return [entry.revision for entry in self.memory.log.entries(after=first, upto=last)
                if prompt_id and entry.settings.get("prompt_id") == prompt_id]


def read(pictures: Sequence[Picture], extractor: Extractor, tick: Tick, left_out: list[str],
         counted: bool = True, history: HistorySearch | None = None
         ) -> tuple[list[Picture], Tensor]:
    """The pictures that could be read, and their features `[n, dim]`. ValueError if there is none.

    counted: whether they count for the mean LPIPS; left_out: gets a line for each other picture.
    """
    kept, features, failed = [], [], []
    for start in range(0, len(pictures), BATCH):
        batch = []
        for picture in pictures[start:start + BATCH]:
            tick(1)
            try:
                image = picture.load()
                problem = "" if bool(image.isfinite().all()) else "it has values that are no number"
            except Exception as error:  # Pillow's plugins raise many kinds
                if picture.file is None:
                    raise
                problem = str(error)
            if problem:
                failed.append(f"{picture.name}: {problem}")
            else:
                batch.append((picture, image))
        if not batch:
            continue
        rows = extractor([image for _, image in batch], counted)
        for (picture, image), row in zip(batch, rows, strict=True):
            if not bool(row.isfinite().all()):
                failed.append(f"{picture.name}: its features are not finite")
                continue
            kept.append(picture)
            features.append(row)
            if history is not None:
                comfy.model_management.throw_exception_if_processing_interrupted()
                history.add(image)
    left_out += failed
    if not kept:
        raise ValueError("\n".join(["None of the images can be measured.", *failed[:10]]))
    return kept, torch.stack(features)


def ticker(total: int) -> Callable[[int], None]:
    """Drives the node's progress, and ends the work where it is cancelled."""
    progress = comfy.utils.ProgressBar(total)

    def tick(done: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update(done)

    return tick

