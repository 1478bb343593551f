"""The command `python -m guidance.diversity`: the report for folders, without ComfyUI."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .diversity import Settings, measure, measure_steps
from .diversity_figures import Extras, Features
from .diversity_report import as_json, text
from .image_files import open_image
from .picture_features import PIXELS, pixel_features

PIXELS_MEANING = "the colours of the image, averaged over a grid of 16 x 16"
LPIPS_WHY = "is computed by the node Diversity Report, not by this command"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(arguments)
    settings = Settings(k_knn=options.k_knn, k_lof=options.k_lof, k_manifold=options.k_manifold,
                        vendi_q=options.vendi_q)
    try:
        names, features, left_out = _read(options.folder)
        reference = None
        if options.reference is not None:
            _, reference, others = _read(options.reference)
            left_out += [f"reference: {one}" for one in others]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    counter = _Counter("Comparing", measure_steps(
        len(features), 0 if reference is None else len(reference)))
    found = measure(features, reference, settings, counter)
    counter.end()
    about = Features(name=PIXELS, meaning=PIXELS_MEANING, dim=found.dim)
    extras = Extras(lpips_why=LPIPS_WHY, left_out=left_out)
    print(text(found, about, names, extras).encode(errors="replace").decode())
    if options.json is not None:
        try:
            options.json.write_text(as_json(found, about, names, extras), "utf-8")
        except OSError as error:
            print(f'"{options.json}" cannot be written: {error}', file=sys.stderr)
            return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m guidance.diversity",
        description="Tells how diverse the images in a folder are, by their pixels.")
    parser.add_argument("folder", type=Path, help="the images; folders inside are not searched")
    parser.add_argument("--reference", type=Path, metavar="FOLDER",
                        help="images to compare with: precision, recall, density, coverage")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all numbers")
    for name, what in (("knn", "AvgkNN"), ("lof", "LOF"), ("manifold", "precision to coverage")):
        parser.add_argument(f"--k-{name}", type=_positive, default=getattr(defaults, f"k_{name}"),
                            metavar="K", help=f"neighbours for {what} (%(default)s)")
    parser.add_argument("--vendi-q", type=float, default=defaults.vendi_q, metavar="Q",
                        help="order of the Vendi score (%(default)s)")
    return parser


def _positive(value: str) -> int:
    if int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return int(value)


def _read(folder: Path) -> tuple[list[str], Tensor, list[str]]:
    """Names, pixel features `[n, dim]`, and what was left out. ValueError if nothing is there."""
    if not folder.is_dir():
        raise ValueError(f'"{folder}" is no folder. Give the path of a folder of images.')
    known = Image.registered_extensions()
    files = sorted(file for file in folder.iterdir()
                   if file.is_file() and file.suffix.lower() in known)
    names, features, left_out = [], [], []
    counter = _Counter(f"Reading {folder}", len(files))
    for file in files:
        try:
            array = np.asarray(open_image(file), np.float32)
        except Exception as error:  # Pillow's plugins raise many kinds
            left_out.append(f"{file.name}: {error}")
        else:
            picture = torch.from_numpy(array / 127.5 - 1).movedim(-1, 0)[None]
            names.append(file.name)
            features.append(pixel_features(picture))
        counter(1)
    counter.end()
    if not names:
        raise ValueError("\n".join([f'"{folder}" holds no image that can be read. Give the path '
                                    "of the folder that holds the images.", *left_out[:10]]))
    return names, torch.cat(features), left_out


class _Counter:
    """Shows how far a work is, where someone may be looking."""

    def __init__(self, what: str, steps: int):
        self.what, self.steps, self.done = what, steps, 0
        self.shown = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        self.done += done
        if self.shown:
            print(f"\r{self.what}: {self.done:,} of {self.steps:,}", end="", file=sys.stderr)

    def end(self) -> None:
        if self.shown:
            print(file=sys.stderr)
