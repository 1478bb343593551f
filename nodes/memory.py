"""Nodes around the novelty memory: open it, add to it, take from it, look into it."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.novelty_memory import NoveltyMemory
from . import _host
from ._types import CATEGORY, NoveltyMemoryType

LATEST = -1
MODES = ["learn", "frozen"]


class NoveltyMemoryNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonNoveltyMemory",
            display_name="Novelty Memory",
            category=CATEGORY,
            description="A named memory of generated images that lasts across runs and restarts. "
                        "It is made at first use. While it learns, the same seed gives a new "
                        "image each time; frozen at one revision, the same image.",
            search_aliases=["sample memory", "history", "novelty", "remember", "freeze"],
            inputs=[
                io.String.Input(
                    "name", default="my project",
                    tooltip="Which memory: 1 to 64 letters, digits, spaces, _ - or dots. Every "
                            "user of this server who gives the name shares the memory."),
                io.Combo.Input(
                    "mode", options=MODES, default="learn",
                    tooltip="learn: new images are remembered. frozen: the memory pushes but "
                            "stays as it is, so results can be reproduced."),
                io.Int.Input(
                    "revision", default=LATEST, min=LATEST, max=2 ** 31 - 1,
                    tooltip="The state of the memory that pushes: -1 for the latest, or a number "
                            "that an image's metadata names, with mode frozen."),
                io.Int.Input(
                    "max_megabytes", default=1024, min=1, max=2 ** 20,
                    tooltip="Above this size the oldest images are forgotten."),
                io.String.Input(
                    "database", default="", optional=True, advanced=True,
                    tooltip="SQLAlchemy URL of a database to share between machines, e.g. "
                            "postgresql+psycopg://user@host/name. Empty: a file in ComfyUI's user "
                            "folder."),
            ],
            outputs=[NoveltyMemoryType.Output(
                display_name="memory", tooltip="The memory, for Novelty Guidance and others.")],
        )

    @classmethod
    def validate_inputs(cls, mode, revision) -> bool | str:
        if mode not in MODES:
            return f"mode is {mode}; expected one of {', '.join(MODES)}."
        if mode == "learn" and revision != LATEST:
            return (f"Mode learn goes on from the latest revision, but revision is {revision}. Set "
                    "revision to -1, or mode to frozen.")
        if revision < LATEST:
            return f"revision is {revision}; expected -1 for the latest, or a number from 0 on."
        return True

    @classmethod
    def fingerprint_inputs(cls, name, mode, revision, max_megabytes, database=""):
        """Changes with the memory, so that what it guides runs again exactly when it has learnt."""
        memory = cls._memory(name, mode, revision, max_megabytes, database)
        return memory.resolve()

    @classmethod
    def execute(cls, name, mode, revision, max_megabytes, database="") -> io.NodeOutput:
        memory = cls._memory(name, mode, revision, max_megabytes, database)
        memory.bank.at(memory.revision)  # raises RevisionError or StorageError here, on this node
        return io.NodeOutput(memory)

    @classmethod
    def _memory(cls, name, mode, revision, max_megabytes, database) -> NoveltyMemory:
        return NoveltyMemory(
            url=database or _host.default_database(), name=name, learn=mode == "learn",
            revision=None if revision == LATEST else revision, max_megabytes=max_megabytes)


NODES = [NoveltyMemoryNode]
