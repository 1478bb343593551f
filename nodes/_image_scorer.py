"""Scores images and folders of images, and keeps the scores."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ..guidance.distances import LATENT_DISTANCES, load_distance
from ..guidance.image_files import open_image
from ..guidance.minority_score import MinorityScorer, default_sigma
from ..guidance.scored_set import Scored, ScoredImages, ScoredSet, ScoreSettings
from ._images import as_picture, centre_cropped, image_size
from ._latents import feature_space
from ._scorer import HostDenoiser, log_snr_curve, lpips_folders

CHUNK = 16  # images that are kept together, and that an interruption can lose
LISTED = 512  # files of a folder that are looked up together
NAMED = 10  # of what was skipped


@dataclass(frozen=True)
class Picture:
    """An image to score `[1, height, width, 3]`, cropped."""

    content_hash: str
    image: Tensor
    path: str = ""
    stamp: str = ""


class ImageScorer:
    """Scores images and folders with one MODEL, and keeps the scores.

    sigma: 0 for the default of the size; size: (width, height) that images are cropped to; folder:
    where the scores are kept. Raises ValueError, DistanceError, ScoredSetError; an interruption
    loses at most CHUNK images.
    """

    def __init__(self, model, vae, conditioning: list | None, *, distance: str, sigma: float,
                 draws: int, seed: int, batch: int, size: tuple[int, int], folder: Path,
                 count: int):
        self.vae, self.size = vae, size
        self.latent_format = model.get_model_object("latent_format")
        self.space, self.channels = feature_space(model)
        if sigma == 0:
            shrunk = self.latent_format.spacial_downscale_ratio
            sigma = round(default_sigma(size[1] / shrunk, size[0] / shrunk), 4)
        in_latents = distance in LATENT_DISTANCES
        measure = load_distance(distance, lpips_folders(), model.load_device)
        self.scorer = MinorityScorer(
            denoise=HostDenoiser(model, conditioning, sigma), draws=draws, seed=seed, batch=batch,
            view=(lambda latents: latents) if in_latents else self._decode,
            distance=lambda a, b: measure(a.to(model.load_device), b.to(model.load_device)))
        sampling = model.get_model_object("model_sampling")
        self.kept = ScoredSet.open(folder, ScoreSettings(
            space=self.space, channels=self.channels, distance=distance, sigma=sigma, draws=draws,
            seed=seed, size=size, log_snr=log_snr_curve(sampling)), self._answer())
        self.progress = comfy.utils.ProgressBar(count)
        self.members: dict[str, tuple[float, str]] = {}
        self.pictures: dict[str, Tensor] = {}
        self.failures: list[str] = []
        self.not_finite: list[str] = []
        self.new = self.copies = 0
        self._waiting: list[Picture] = []

    def add_images(self, images: Sequence[Tensor]) -> None:
        """IMAGEs `[batch, height, width, channels]`."""
        for image in (image for batch in images for image in batch):
            comfy.model_management.throw_exception_if_processing_interrupted()
            if image.shape[-1] not in (3, 4):
                raise ValueError(f"An image has {image.shape[-1]} channels; expected 3 (RGB), or 4 "
                                 "with transparency. Convert it to an image first.")
            image = image[..., :3]
            data = image.float().cpu().contiguous().numpy().tobytes()
            same = (image.shape[1], image.shape[0]) == self.size
            self._take(Picture(hashlib.sha256(data).hexdigest(), image[None] if same else
                               centre_cropped(as_picture(image), self.size)))
        self._score_waiting()

    def add_folder(self, files: Sequence[Path]) -> None:
        """Image files; those that were scored already are not even read."""
        for start in range(0, len(files), LISTED):
            for picture in self._unknown(files[start:start + LISTED]):
                self._take(picture)
        self._score_waiting()

    def result(self) -> ScoredImages:
        """The images of this run. ValueError if there is none with a score."""
        if not self.members:
            raise ValueError("\n".join(["None of the images got a score.", *self._problems()]))
        return ScoredImages.ranked(self.kept, self.members, pictures=self.pictures,
                                   to_wire=self.latent_format.process_out)

    def report(self, images: ScoredImages) -> str:
        settings, scores = images.settings, images.scores
        width, height = settings.size
        median = scores.double().quantile(0.5)
        file = self.kept.path
        lines = [
            f"{len(images):,} images at {width} x {height}, {settings.distance}, sigma "
            f"{settings.sigma:g}: {self.new:,} new, {len(images) - self.new:,} scored already",
            f"Score: rarest {scores[0]:.4g}, median {median:.4g}, most common {scores[-1]:.4g}"]
        if len(images) == 1:
            lines.append("A single image: there is nothing to compare it with.")
        elif scores[0] == scores[-1]:
            lines.append("All scores are equal: this model and distance cannot rank these images.")
        if self.copies:
            lines.append(f"{self.copies:,} copies of others count once")
        lines += self._problems()
        lines.append(f"Kept in {file} ({file.stat().st_size / 2 ** 20:.1f} MB)")
        return "\n".join(lines)

    def _problems(self) -> list[str]:
        lines = []
        for what, names in (("skipped", self.failures),
                            ("left out, as their score is not a finite number", self.not_finite)):
            if names:
                lines += [f"{len(names):,} {what}:", *names[:NAMED]]
                lines += ["..."] * (len(names) > NAMED)
        return lines

    def _unknown(self, files: Sequence[Path]) -> Iterator[Picture]:
        """Those of the files that must be scored; the others become members at once."""
        noted = self.kept.known_files([str(file) for file in files])
        scores = self.kept.scores([key for _, key in noted.values()])
        for file in files:
            comfy.model_management.throw_exception_if_processing_interrupted()
            try:
                stat = file.stat()
                stamp = f"{stat.st_size}-{stat.st_mtime_ns}"
                seen, content_hash = noted.get(str(file), ("", ""))
                if seen == stamp and content_hash in scores:
                    self._member(content_hash, scores[content_hash], str(file))
                    self.progress.update(1)
                    continue
                content = file.read_bytes()
                image = centre_cropped(open_image(content), self.size)
            except Exception as error:  # Pillow's plugins raise many kinds
                self.failures.append(f"{file.name}: {error}")
                self.progress.update(1)
                continue
            yield Picture(hashlib.sha256(content).hexdigest(), image, str(file), stamp)

    def _take(self, picture: Picture) -> None:
        self._waiting.append(picture)
        if len(self._waiting) == CHUNK:
            self._score_waiting()

    def _score_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        known = self.kept.scores([picture.content_hash for picture in waiting])
        unique = {picture.content_hash: picture for picture in waiting
                  if picture.content_hash not in known}
        if unique:
            latents = torch.cat([self._encode(picture.image) for picture in unique.values()])
            scores = self.scorer.scores(latents, list(unique)).tolist()
            rows = [Scored(key, score, latent, picture.path, picture.stamp)
                    for (key, picture), score, latent in zip(
                        unique.items(), scores, latents, strict=True)
                    if math.isfinite(score)]
            self.kept.add(rows)
            self.new += len(rows)
            known |= {row.content_hash: row.score for row in rows}
        noted = {picture.path for picture in unique.values()}
        self.kept.note_files((picture.path, picture.stamp, picture.content_hash)
                             for picture in waiting
                             if picture.path not in {"", *noted} and picture.content_hash in known)
        for picture in waiting:
            key = picture.content_hash
            if key in known:
                self._member(key, known[key], picture.path)
                if not picture.path:
                    self.pictures[key] = picture.image
            else:
                self.not_finite.append(Path(picture.path).name or "an image from the wire")
        if waiting:
            self.progress.update(len(waiting))

    def _member(self, content_hash: str, score: float, path: str) -> None:
        self.copies += content_hash in self.members
        self.members.setdefault(content_hash, (score, path))

    def _encode(self, image: Tensor) -> Tensor:
        """IMAGE `[1, height, width, 3]` -> latent as the sampler sees it."""
        latents = self.vae.encode(image)
        nested = getattr(latents, "is_nested", False)
        if nested or latents.shape[1] != self.channels:
            raise ValueError(
                "This VAE makes latents of " + ("several parts" if nested else
                                                f"{latents.shape[1]} channels") +
                f", but the model works with {self.channels} channels. Connect the model's own "
                "VAE.")
        return self.latent_format.process_in(latents.float().cpu())

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents as the sampler sees them -> images `[batch, 3, height, width]` in [-1, 1]."""
        wire = self.latent_format.process_out(latents.clone())  # some VAEs write into it
        images = self.vae.decode(wire)
        images = images.reshape(len(latents), -1, *images.shape[-3:])[:, 0]  # video: first frame
        return (images[..., :3].movedim(-1, 1).float() * 2 - 1).clamp(-1, 1)

    def _answer(self) -> tuple[float, ...]:
        """What tells this model, conditioning, VAE and distance from others."""
        generator = torch.Generator().manual_seed(0)
        small = torch.rand(1, 3, 8, 8, generator=generator)
        width, height = self.size
        probe = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")
        answer = self.scorer.answer(self._encode(probe.movedim(1, -1)))
        if not all(map(math.isfinite, answer)):
            raise ValueError("The model, or the VAE, answers a test image with values that are not "
                             "finite. Check that both work together, and that no patch breaks "
                             "them.")
        return answer


def chosen_size(width: int, height: int, images: Sequence[Tensor],
                files: Sequence[Path]) -> tuple[int, int]:
    """(width, height) to crop to; 0 takes that of the first image."""
    if width and height:
        return width, height
    first = next((batch for batch in images if len(batch)), None)
    if first is not None:
        found = first.shape[2], first.shape[1]
    else:
        found = next(filter(None, map(image_size, files)), None)
    if found is None:
        raise ValueError("None of the files can be read as an image. Give another folder.")
    return width or found[0], height or found[1]


def load_member(images: ScoredImages, index: int) -> Tensor:
    """IMAGE `[1, height, width, 3]` of a scored image. ValueError if its file is gone."""
    picture = images.pictures.get(images.hashes[index])
    if picture is not None:
        return picture
    path = images.paths[index]
    try:
        return centre_cropped(open_image(Path(path)), images.settings.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f'"{path}" was scored, but cannot be read now ({error}). Put it back, or '
                         "run Minority Score again.") from error
