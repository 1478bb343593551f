"""Trains minority classifiers of the avatars as a user does: with this pack's nodes in ComfyUI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from demo.avatars import AVATARS_SIZE, avatars
from demo.host import InProcessHost, Prompt
from guidance.minority_checkpoint import load_classifier


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe:
    """count: of faces to learn from, the first of those that the model was trained on; the rest
    as the inputs of Minority Score and Train Minority Classifier. frozen: whether the classifier
    reads the model's own encoder half, or is trained from scratch."""

    count: int = 20_000
    distance: str = "latent_l2"
    sigma: float = 0.8
    draws: int = 10
    classes: int = 100
    iterations: int = 2500
    batch_size: int = 64
    frozen: bool = True

    def prompt(self, faces: Path, name: str) -> Prompt:
        nodes = {
            "model": ("UncommonLoadADM", {"model_name": "avatars"}),
            "vae": ("VAELoader", {"vae_name": "pixel_space"}),
            "score": ("UncommonMinorityScore", {
                "model": ["model", 0], "vae": ["vae", 0], "folder": str(faces),
                "width": AVATARS_SIZE, "height": AVATARS_SIZE, "distance": self.distance,
                "sigma": self.sigma, "draws": self.draws, "batch": 64}),
            "train": ("UncommonTrainMinorityClassifier", {
                "scored": ["score", 0], "classes": self.classes, "size": "small",
                "iterations": self.iterations, "batch_size": self.batch_size,
                "learning_rate": 1e-3, "seed": 0, "validation_share": 0.05, "flip": True}),
            "curves": ("SaveImage", {"images": ["train", 2], "filename_prefix": name}),
            "histogram": ("SaveImage", {"images": ["score", 3],
                                        "filename_prefix": f"{name}-scores"}),
            "save": ("UncommonSaveMinorityClassifier", {
                "classifier": ["train", 0], "name": name, "overwrite": True}),
        }
        if self.frozen:
            nodes["train"][1]["model"] = ["model", 0]
        return {key: {"class_type": kind, "inputs": inputs}
                for key, (kind, inputs) in nodes.items()}


def train_classifier(host: InProcessHost, recipe: ClassifierRecipe, target: Path) -> None:
    """Writes the classifier to `target`, in half precision. Scores and the training are kept in
    the host's folders, so that what was interrupted goes on."""
    faces = write_faces(host.directory / "input" / f"avatars-{recipe.count}", recipe.count)
    run = host.run(recipe.prompt(faces, target.stem))
    print(run.outputs["score"][4])
    made = host.directory / "models" / "minority_classifiers" / target.name
    target.parent.mkdir(parents=True, exist_ok=True)
    load_classifier(made).save(target, torch.float16)


def write_faces(folder: Path, count: int) -> Path:
    """The first faces of the series that the model was trained on, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    have = len([*folder.glob("*.png")])
    images, _ = avatars(count - have, first=have) if have < count else ((), ())
    for number, image in enumerate(images, start=have):
        pixels = ((image.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{number:06}.png")
    return folder
