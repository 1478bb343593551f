"""Where figures are kept, with what is needed to get them again."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dev import ROOT, locate_host

RESULTS = ROOT / "benchmarks" / "results"


def circumstances(command: str) -> dict[str, Any]:
    """Machine, versions, command and date."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": {"system": platform.system(), "processor": _processor(),
                    "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "comfyui": _comfyui_version(),
                     "prdc": importlib.metadata.version("prdc")},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines()
             if line.startswith("model name")] if cpuinfo.is_file() else []
    return names[0] if names else platform.processor()


def _comfyui_version() -> str:
    return runpy.run_path(str(locate_host() / "comfyui_version.py"))["__version__"]


def write_json(name: str, content: Mapping[str, Any]) -> None:
    """benchmarks/results/<name>.json, with `summary` first."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def earlier_rows(name: str, key: str = "rows") -> Any:
    """What benchmarks/results/<name>.json has under a key, as it is; an empty list before that."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text("utf-8"))[key] if file.is_file() else []


def command_line(name: str) -> str:
    """What to type to get these results."""
    return " ".join(["python dev.py bench", name, *sys.argv[1:]])
