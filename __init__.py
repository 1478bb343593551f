"""Uncommon: images that differ from all those you already have. ComfyUI loads the nodes here.

Importing this file needs neither ComfyUI nor torch, so pytest may import it as a package.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable

WEB_DIRECTORY = "./web"
MODULES = ("models", "memory", "memory_files", "novelty", "selection", "minority_score",
           "minority_classifier", "minority", "diversity")

log = logging.getLogger("uncommon")


def load_nodes(modules: Iterable[str] = MODULES) -> list[type]:
    """The node classes of `nodes/<module>.py`; a module that fails does not lose the others."""
    found: list[type] = []
    for module in modules:
        try:
            found += importlib.import_module(f".nodes.{module}", __package__).NODES
        except Exception:
            log.exception("The nodes in nodes/%s.py are missing: importing it failed.", module)
    return found


def add_routes() -> None:
    """What the memory panel asks the server; without it the nodes still work."""
    try:
        importlib.import_module(".nodes._memory_routes", __package__).add_routes()
    except Exception:
        log.exception("The memory panel will not work: nodes/_memory_routes.py failed.")


async def comfy_entrypoint():
    try:
        from comfy_api.latest import ComfyExtension
    except ImportError as error:
        raise ImportError("Uncommon needs ComfyUI 0.30.0 or newer; please update it.") from error

    class Uncommon(ComfyExtension):
        async def on_load(self) -> None:
            add_routes()

        async def get_node_list(self) -> list[type]:
            return load_nodes()

    return Uncommon()
