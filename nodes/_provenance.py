"""What an image was made with: what has to be the same for it to come out the same again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfyui_version import __version__ as host_version

MODEL_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
PROJECT = Path(__file__).parent.parent / "pyproject.toml"
EDGE = 2 ** 16  # bytes of each end of a file that are looked at


def made_with(prompt: Mapping[str, Mapping]) -> dict:
    """Versions, device, and fingerprints of the model files that a prompt names."""
    device = comfy.model_management.get_torch_device()
    version = re.search(r'^version = "(.+)"', PROJECT.read_text("utf-8"), re.MULTILINE)
    return {"comfyui": host_version, "uncommon": version[1] if version else "unknown",
            "torch": torch.__version__,
            "device": comfy.model_management.get_torch_device_name(device),
            "files": _model_files(prompt)}


def fingerprint(path: Path) -> str:
    """Of the size and both ends of a file: told in no time, also for gigabytes."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        found.update(file.read(EDGE))
        file.seek(max(0, size - EDGE))
        found.update(file.read(EDGE))
    return found.hexdigest()[:16]


def _model_files(prompt: Mapping[str, Mapping]) -> dict[str, str]:
    """Fingerprints of those that are there and can be read."""
    names = {value for node in prompt.values() for value in node.get("inputs", {}).values()
             if isinstance(value, str) and value.lower().endswith(MODEL_FILES)}
    found = {}
    for name in sorted(names):
        places = (folder_paths.get_full_path(folder, name)
                  for folder in folder_paths.folder_names_and_paths)
        # ValueError: on Windows, a path on another drive than ComfyUI's.
        with suppress(OSError, ValueError):
            if path := next(filter(None, places), None):
                found[name] = fingerprint(Path(path))
    return found
