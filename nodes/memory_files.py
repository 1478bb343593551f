"""Nodes that bring memories together: merge two, export one to a file, import one from a file."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..guidance.sharing import export_file, import_file, merge_memories
from . import _host
from ._types import CATEGORY, NoveltyMemoryType

ENDING = ".safetensors"


class MergeMemories(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonMergeMemories",
            display_name="Merge Memories",
            category=CATEGORY,
            description="Adds all samples of one novelty memory to another. What is there already "
                        "is left out, so running it again does no harm. Both must be of one "
                        "feature space: of models that share their latents.",
            search_aliases=["novelty memory", "combine memories", "union", "copy memory",
                            "join histories", "add memory"],
            inputs=[
                NoveltyMemoryType.Input(
                    "memory", tooltip="What to add to, from Novelty Memory with mode learn."),
                NoveltyMemoryType.Input(
                    "source", tooltip="What to add, from another Novelty Memory. It stays as it "
                                      "is; frozen at a revision, it gives what it held then."),
            ],
            outputs=[
                NoveltyMemoryType.Output(
                    display_name="memory",
                    tooltip="The memory that was added to; link it on to have the samples added "
                            "first."),
                io.String.Output(display_name="report",
                                 tooltip="How many were new, and what the memory holds now."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,  # two alike both run, and each shows its own report
        )

    @classmethod
    def execute(cls, memory, source) -> io.NodeOutput:
        report = merge_memories(memory, source, _host.progress())
        _host.tell_memory_changed(memory)
        return io.NodeOutput(memory, report, ui=_host.shown(cls, report))


class ExportMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonExportMemory",
            display_name="Export Memory",
            category=CATEGORY,
            description="Writes a novelty memory into the output folder: one safetensors file to "
                        "share beside a workflow, or to keep as a backup. Import Memory reads it.",
            search_aliases=["novelty memory", "save memory", "share memory", "backup", "download",
                            "safetensors"],
            inputs=[
                NoveltyMemoryType.Input(
                    "memory", tooltip="What to export. Frozen at a revision, what it held then."),
                io.String.Input(
                    "filename_prefix", default="memories/memory",
                    tooltip="Where in the output folder, as in Save Image: folders if you like, "
                            "and a number is added, so that nothing is replaced. %year%, %month%, "
                            "%day% and so on are filled in."),
                io.AnyType.Input(
                    "after", optional=True,
                    tooltip="Anything that shall happen first: link a sampler's latent to have "
                            "the new images in the file."),
            ],
            outputs=[io.String.Output(
                display_name="report", tooltip="How much was written, and where.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,  # two alike both write
        )

    @classmethod
    def execute(cls, memory, filename_prefix, after=None) -> io.NodeOutput:
        folder, name, number, *_ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory())
        report = export_file(memory, Path(folder, f"{name}_{number:05}_{ENDING}"))
        return io.NodeOutput(report, ui=_host.shown(cls, report))


class ImportMemory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonImportMemory",
            display_name="Import Memory",
            category=CATEGORY,
            description="Adds the samples of a file that Export Memory has written to a novelty "
                        "memory. What is there already is left out, so running it again does no "
                        "harm. Bypass or delete it when you are done.",
            search_aliases=["novelty memory", "load memory", "shared memory", "restore", "upload",
                            "safetensors"],
            inputs=[
                NoveltyMemoryType.Input(
                    "memory", tooltip="What to add to, from Novelty Memory with mode learn. A new "
                                      "name gives a memory of its own to the file."),
                io.Combo.Input(
                    "file", options=_files(),
                    tooltip="A file in ComfyUI's input folder. Copy it there, and press R to "
                            "refresh the list."),
            ],
            outputs=[
                NoveltyMemoryType.Output(
                    display_name="memory",
                    tooltip="The same memory; link it on to have the samples added first."),
                io.String.Output(display_name="report",
                                 tooltip="How many were new, and what the memory holds now."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,  # two alike both run, and each shows its own report
        )

    @classmethod
    def validate_inputs(cls, file) -> bool | str:
        if file is None or folder_paths.exists_annotated_filepath(file):  # None: linked
            return True
        there = ", ".join(_files()) or "no such file at all"
        return (f'There is no file "{file}" in ComfyUI\'s input folder: it holds {there}. Copy '
                "the file there.")

    @classmethod
    def fingerprint_inputs(cls, file, **inputs):
        """Changes with the file; each time where it is linked."""
        if file is None:
            return float("nan")
        if not folder_paths.exists_annotated_filepath(file):
            return None
        found = os.stat(folder_paths.get_annotated_filepath(file))
        return found.st_size, found.st_mtime_ns

    @classmethod
    def execute(cls, memory, file) -> io.NodeOutput:
        path = Path(folder_paths.get_annotated_filepath(file))
        report = import_file(memory, path, _host.progress())
        _host.tell_memory_changed(memory)
        return io.NodeOutput(memory, report, ui=_host.shown(cls, report))


def _files() -> list[str]:
    """The safetensors files in ComfyUI's input folder, by name."""
    with os.scandir(folder_paths.get_input_directory()) as found:
        return sorted(file.name for file in found
                      if file.name.endswith(ENDING) and file.is_file())


NODES = [MergeMemories, ExportMemory, ImportMemory]
