"""The workflow of a remembered sample, from the image of it that was saved."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from PIL import Image

MOST = 1000  # images that are looked into; nearly always one of the first is it


def saved_workflow(folder: Path, memory: str, sample: Mapping) -> dict | None:
    """The page's workflow in the PNG that was saved of a sample; None where there is none.

    memory: its name; sample: as `gallery.samples` gives it. An image is its own if the same
    revision of the memory guided it with the same seed, and it was remembered: that gives the next
    revision, so no two runs can have all three in common.
    """
    if "guided_at" not in sample:
        return None
    wanted = (f"{memory}@{sample['guided_at']}", sample["seed"])
    time = datetime.fromisoformat(sample["time"]).timestamp()
    for path in _nearest(folder, time)[:MOST]:
        prompt, workflow = _carried(path)
        if wanted in _remembered(prompt):
            return workflow
    return None


def _nearest(folder: Path, time: float) -> list[Path]:
    """The PNG files in a folder and its folders, those first that were written nearest to a time:
    samples of an imported memory are younger than their images."""
    found = []
    for path in folder.rglob("*.png"):
        try:
            found.append((abs(path.stat().st_mtime - time), path))
        except OSError:  # gone, or a link to nothing
            continue
    return [path for _, path in sorted(found)]


def _carried(path: Path) -> tuple[dict, dict | None]:
    """The prompt and the workflow that an image carries, as far as it does."""
    try:
        with Image.open(path) as image:
            prompt, workflow = (json.loads(image.info.get(key, "null"))
                                for key in ("prompt", "workflow"))
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError):
        return {}, None
    return (prompt if isinstance(prompt, dict) else {},
            workflow if isinstance(workflow, dict) else None)


def _remembered(prompt: Mapping) -> Iterator[tuple[str, str]]:
    """Memory at its revision, and seed, of each sampler that was guided and left a sample."""
    for node in prompt.values():
        try:
            for note in node["_meta"]["uncommon"].values():
                if note["recorded"]:
                    yield note["memory"], str(note["seed"])
        except (KeyError, TypeError, AttributeError):  # another pack's node
            continue
