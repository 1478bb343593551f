"""Images and latents to choose from, in batches and lists, and what they are compared by."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import comfy.utils
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from nodes import LatentFromBatch
from torch import Tensor

from ..guidance.latent_space import LatentSpace
from ..guidance.novelty_memory import NoveltyMemory
from ..guidance.overfull_net import SIMILAR
from ..guidance.prompt import log_similarity, prompt_embedding
from . import _host, _notes
from ._latents import in_model_space, latent_space

PIXELS, LATENTS = "pixels", "latents"


class Candidates:
    """What one node chooses from. images: IMAGE tensors, batches of any sizes; latents: LATENT
    dicts, likewise. Where both are given, they are the same samples in the same order, and the
    latents are compared. Raises ValueError if there is nothing, or if they differ in number.

    model: says what the latents mean, or None; vae: by which images are compared as latents.
    embedding: `[n, dim]`, CPU; compared: PIXELS or LATENTS.
    """

    def __init__(self, images: Sequence, latents: Sequence, model, vae):
        self.model = model
        self._images = [image for image in images if image is not None]
        self._latents = [latent for latent in latents if latent is not None]
        if any(getattr(latent["samples"], "is_nested", False) for latent in self._latents):
            raise ValueError("These latents hold video with sound, which cannot be compared yet. "
                             "Decode them and connect the images instead.")
        count = sum(map(len, self._images))
        latent_count = sum(len(latent["samples"]) for latent in self._latents)
        if not count + latent_count:
            raise ValueError("Nothing to choose from. Connect images or latents.")
        if count and latent_count and count != latent_count:
            raise ValueError(f"There are {count} images but {latent_count} latents. Connect the "
                             "images of these latents, or only one of both.")
        self.compared = LATENTS if latent_count or vae is not None else PIXELS
        if latent_count:
            found = [self._embed(latent["samples"]) for latent in self._latents]
        elif vae is not None:
            found = self._encoded(vae)
        else:
            found = [_pixels(image) for image in self._images]
        if len({one.shape[1] for one in found}) > 1:
            raise ValueError("These latents differ in their number of channels, so they belong to "
                             "different models. Choose from those of one model at a time.")
        self.embedding = torch.cat(found)
        broken = (~torch.isfinite(self.embedding).all(dim=1)).nonzero().flatten().tolist()
        if broken:
            raise ValueError(f"Number {', '.join(map(str, broken[:10]))} (from 0) holds values "
                             "that are no numbers, so nothing can be compared with it. Draw it "
                             "again; if it comes back, run the VAE or the model in float32.")

    def __len__(self) -> int:
        return len(self.embedding)

    def images(self, kept: Sequence[int], name: str):
        """The kept images, each IMAGE `[1, ...]`; what says why there are none, where none are.

        name: of the node."""
        if not sum(map(len, self._images)):
            return ExecutionBlocker(f"{name} got no images to give on: connect its image input.")
        single = [image[i:i + 1] for image in self._images for i in range(len(image))]
        return [single[i] for i in kept] or ExecutionBlocker(None)

    def latents(self, kept: Sequence[int], name: str):
        """The kept latents, each LATENT of one, with its noise mask and place in the batch; what
        says why there are none, where none are. name: of the node."""
        if not self._latents:
            return ExecutionBlocker(f"{name} got no latents to give on: connect its latent input.")
        places = [(latent, i) for latent in self._latents for i in range(len(latent["samples"]))]
        return [LatentFromBatch().frombatch(*places[i], 1)[0] for i in kept] or (
            ExecutionBlocker(None))

    def _encoded(self, vae) -> list[Tensor]:
        progress = comfy.utils.ProgressBar(sum(map(len, self._images)))
        found = []
        for image in self._images:
            for one in image.split(1):
                comfy.model_management.throw_exception_if_processing_interrupted()
                found.append(self._embed(vae.encode(one[..., :3])))
                progress.update(1)
        return found

    def _embed(self, latents: Tensor) -> Tensor:
        """Latents as they are on a wire; with a model in its own space and units."""
        if self.model is None:
            if not latents.any():
                raise ValueError("This latent is empty: nothing was sampled into it yet. Link the "
                                 "latent that a sampler gives.")
            return LatentSpace("wire", latents.shape[1]).embed(latents).cpu()
        return latent_space(self.model).embed(in_model_space(self.model, latents)).cpu()


def _pixels(image: Tensor) -> Tensor:
    """IMAGE `[batch, height, width, channels]`, embedded by its colours in [-1, 1]."""
    colours = image[..., :3].expand(*image.shape[:-1], 3).movedim(-1, 1)
    return LatentSpace("pixels", 3).embed(colours * 2 - 1).cpu()


def check_memory(memory: NoveltyMemory, model, vae, latents: bool) -> None:
    """Raises ValueError if something lacks to compare with a memory, and FeatureSpaceError if it
    is another model's."""
    if model is None:
        raise ValueError("To compare with a memory the model that it guides is needed. Connect "
                         "model, or disconnect memory.")
    if not latents and vae is None:
        raise ValueError("To compare images with a memory the model's VAE is needed. Connect vae, "
                         "or the latents of the images.")
    memory.check_space(latent_space(model).id)


def remembered_before(memory: NoveltyMemory, conditioning: list | None,
                      node_id: str) -> tuple[Tensor, list[str]]:
    """The embeddings `[m, dim]` that count, and lines about them.

    What the samplers upstream recorded in this very run are the images that came in themselves.
    """
    revision = memory.resolve()
    remembered = memory.bank.at(revision)
    revisions = [revision for note in _notes.upstream(node_id)
                 for revision in note.get("recorded", ())]
    own = memory.recorded_by(_host.running_node()[0], revisions) if revisions else []
    counts = ~torch.isin(remembered.revisions,
                         torch.tensor([entry.revision for entry in own], dtype=torch.int64))
    lines = [f"{memory.name}@{revision}: {len(remembered)} samples"]
    if len(remembered) and not counts.all():
        lines[0] += f", of which this run recorded {int((~counts).sum())}, which do not count"
    encoded = _host.encoded_conditioning(conditioning)
    if encoded is not None and len(remembered):
        alike = log_similarity(prompt_embedding(encoded), remembered.prompt) > SIMILAR
        lines += [f"{int((counts & ~alike).sum())} of them have quite different prompts and do not "
                  "count"] * bool((counts & ~alike).any())
        counts &= alike
    return remembered.embedding[counts], lines
