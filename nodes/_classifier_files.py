"""Where minority classifiers are: the host's models folder, and this pack."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..guidance.adm_checkpoint import Schedule
from ..guidance.minority_checkpoint import EXTENSIONS, load_classifier
from ..guidance.minority_classifier import MinorityClassifier

FOLDER = "minority_classifiers"
SHIPPED = Path(__file__).parent.parent / "demo" / "models"
SHIPPED_ENDING = "_minority.safetensors"
NO_EXTRACTOR = "none"
SCHEDULES = {"auto": None, "linear": Schedule(), "cosine": Schedule(kind="cosine")}


def register_folder() -> None:
    """Makes the folder known to the host, beside any that the user has configured."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    folders, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (folders, set(EXTENSIONS))


def shipped_classifiers() -> dict[str, str]:
    """Name -> path of the classifiers in this pack."""
    return {path.stem: str(path) for path in sorted(SHIPPED.glob(f"*{SHIPPED_ENDING}"))}


def classifier_names() -> list[str]:
    """The shipped ones, then every file in the host's folders."""
    return [*shipped_classifiers(), *folder_paths.get_filename_list(FOLDER)]


def classifier_path(name: str) -> str:
    """Path of one of `classifier_names`; FileNotFoundError if it is gone."""
    return shipped_classifiers().get(name) or folder_paths.get_full_path_or_raise(FOLDER, name)


def load(name: str, extractor_name: str, schedule: str) -> MinorityClassifier:
    extractor = None if extractor_name == NO_EXTRACTOR else classifier_path(extractor_name)
    return load_classifier(classifier_path(name), extractor, SCHEDULES[schedule])


def stamp(name: str) -> tuple | None:
    """Changes when the file does."""
    try:
        found = os.stat(classifier_path(name))
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def save(classifier: MinorityClassifier, name: str, overwrite: bool) -> Path:
    """Writes to the first of the host's folders; numbers the file unless it may overwrite."""
    name = name.strip().removesuffix(".safetensors")
    if not name or name.endswith(("/", "\\")):
        raise ValueError(f'The name is "{name}"; expected a file name, such as faces/vgg.')
    root = Path(folder_paths.get_folder_paths(FOLDER)[0]).resolve()
    if not (root / name).resolve().is_relative_to(root):
        raise ValueError(f'"{name}" lies outside "{root}". Give a name without "..", and no full '
                         "path.")
    folder, stem, number, *_ = folder_paths.get_save_image_path(name, str(root))
    path = Path(folder, f"{stem}.safetensors" if overwrite else f"{stem}_{number:05}_.safetensors")
    classifier.save(path)
    return path
