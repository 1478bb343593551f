"""Nodes around the novelty memory: open it, add to it, take from it, look into it."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..guidance.curation import FORGET, describe, forget
from ..guidance.memory.cap import WHEN_FULL
from ..guidance.novelty_memory import SPACES, NoveltyMemory
from . import _host, _notes
from ._images import previews_as_image, stamp
from ._importer import Importer
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
                    tooltip="Above this size images are forgotten, the oldest first."),
                io.String.Input(
                    "database", default="", optional=True, advanced=True,
                    tooltip="SQLAlchemy URL of a database to share between machines, e.g. "
                            "postgresql+psycopg://user@host/name. Empty: a file in ComfyUI's user "
                            "folder."),
                io.Combo.Input(
                    "when_full", options=list(WHEN_FULL), default=WHEN_FULL[0], optional=True,
                    advanced=True,
                    tooltip="What is forgotten above max_megabytes. oldest: the images that came "
                            "first. reservoir: any, with equal chances, so that what stays is a "
                            "fair sample of all that ever came; a new image may go at once."),
                io.Int.Input(
                    "half_life", default=0, min=0, max=2 ** 31 - 1, optional=True, advanced=True,
                    tooltip="How many images are recorded until one counts half as much as a new "
                            "one; after twice as many, a quarter. What counts less pushes from "
                            "less far: after 3 times as many from three quarters as far, after 7 "
                            "times hardly at all. 0: none ever fades. 200 to 5000 keep a project "
                            "moving on."),
                io.Combo.Input(
                    "space", options=list(SPACES), default=SPACES[0], optional=True,
                    advanced=True,
                    tooltip="What images are compared by. latent: their latents, with any model. "
                            "features: what a block inside the model computes, and the push "
                            "happens there. vision: what a CLIP vision model sees; slower, and "
                            "Novelty Guidance needs clip_vision and vae. A memory keeps to one."),
            ],
            outputs=[NoveltyMemoryType.Output(
                display_name="memory", tooltip="The memory, for Novelty Guidance and others.")],
        )

    @classmethod
    def validate_inputs(cls, mode, revision) -> bool | str:
        return None in (mode, revision) or cls._problem(mode, revision) or True  # None: linked

    @classmethod
    def fingerprint_inputs(cls, name, mode, revision, max_megabytes, database="", **inputs):
        """Changes with the memory, so that what it guides runs again exactly when it has learnt."""
        pinned = mode == "frozen" and revision not in (None, LATEST)
        if None in (name, revision, database):  # linked: nobody knows yet which memory it will be
            return revision if pinned else float("nan")
        if not pinned:
            revision = cls._memory(name, mode, revision, max_megabytes, database).resolve()
        _notes.note_state(f"{name}@{revision}")
        return revision

    @classmethod
    def execute(cls, name, mode, revision, max_megabytes, database="",
                **options) -> io.NodeOutput:
        if problem := cls._problem(mode, revision):
            raise ValueError(problem)
        memory = cls._memory(name, mode, revision, max_megabytes, database, **options)
        memory.bank.at(memory.revision)  # raises RevisionError or StorageError here, on this node
        return io.NodeOutput(memory)

    @classmethod
    def _problem(cls, mode, revision) -> str | None:
        """What is wrong with the mode and the revision, if anything is."""
        if mode not in MODES:
            return f"mode is {mode}; expected one of {', '.join(MODES)}."
        if revision < LATEST:
            return f"revision is {revision}; expected -1 for the latest, or a number from 0 on."
        if mode == "learn" and revision != LATEST:
            return (f"Mode learn goes on from the latest revision, but revision is {revision}. Set "
                    "revision to -1, or mode to frozen.")
        return None

    @classmethod
    def _memory(cls, name, mode, revision, max_megabytes, database, **options) -> NoveltyMemory:
        return NoveltyMemory(
            url=database or _host.default_database(), name=name, learn=mode == "learn",
            revision=None if revision == LATEST else revision, max_megabytes=max_megabytes,
            **options)


class RememberSamples(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonRememberSamples",
            display_name="Remember Samples",
            category=CATEGORY,
            description="Adds images to a novelty memory that Novelty Guidance did not make: "
                        "latents, images, or a whole folder. What is remembered already is left "
                        "out, so running it again does no harm.",
            search_aliases=["add to memory", "import images", "novelty memory", "folder",
                            "avoid these images", "record sample"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that the memory guides: it says what a latent "
                                     "means. It is not run."),
                NoveltyMemoryType.Input(
                    "memory", tooltip="What to add to, from Novelty Memory with mode learn."),
                io.Latent.Input(
                    "latent", optional=True,
                    tooltip="Finished latents of this model; each of a batch is one sample."),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="Images to encode with the VAE, at their own size; each of a batch is "
                            "one sample."),
                io.Vae.Input(
                    "vae", optional=True,
                    tooltip="The model's VAE. Needed for images and for a folder."),
                io.Conditioning.Input(
                    "conditioning", optional=True,
                    tooltip="The prompt that the samples belong to, so that they push only prompts "
                            "like it. Without one they push every prompt."),
                io.String.Input(
                    "folder", default="", optional=True,
                    tooltip="A folder of images on the computer that runs ComfyUI: a full path, or "
                            "a name inside the input folder. Files that cannot be read are "
                            "skipped and named."),
                io.Int.Input(
                    "width", default=512, min=8, max=16384, step=8, optional=True,
                    tooltip="Images of the folder are scaled and cut to this size; take the size "
                            "at which you generate."),
                io.Int.Input(
                    "height", default=512, min=8, max=16384, step=8, optional=True,
                    tooltip="Images of the folder are scaled and cut to this size; take the size "
                            "at which you generate."),
            ],
            outputs=[
                NoveltyMemoryType.Output(
                    display_name="memory",
                    tooltip="The same memory; link it on to have the samples added first."),
                io.String.Output(display_name="report",
                                 tooltip="How many were new, and what was skipped."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,  # two alike both run, and each shows its own report
        )

    @classmethod
    def fingerprint_inputs(cls, folder="", **inputs):
        """Changes with the content of the folder."""
        return stamp(folder)

    @classmethod
    def execute(cls, model, memory, latent=None, image=None, vae=None, conditioning=None,
                folder="", width=512, height=512) -> io.NodeOutput:
        importer = Importer(model, memory, vae, conditioning)
        if latent is None and image is None and not folder:
            raise ValueError("Nothing to remember. Connect a latent, or an image and the VAE, or "
                             "give a folder of images.")
        if latent is not None:
            importer.add_latents(latent["samples"])
        if image is not None:
            importer.add_images(image)
        if folder:
            importer.add_folder(folder, (width, height))
        report = importer.report()
        _host.tell_memory_changed(memory)
        return io.NodeOutput(memory, report, ui=_host.shown(cls, report))


class ForgetSamples(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonForgetSamples",
            display_name="Forget Samples",
            category=CATEGORY,
            description="Takes samples out of a novelty memory, each time the queue runs: bypass "
                        "or delete this node when you are done. Earlier revisions stay what they "
                        "were.",
            search_aliases=["delete", "remove from memory", "undo", "clear memory", "reset",
                            "novelty memory"],
            inputs=[
                NoveltyMemoryType.Input(
                    "memory", tooltip="What to take from, from Novelty Memory with mode learn."),
                io.Combo.Input(
                    "what", options=list(FORGET), default=FORGET[0],
                    tooltip="last: the newest `count` samples. one: the sample `number`. all: "
                            "every sample. chosen: those in `numbers`. undo: takes the last "
                            "forgetting back; its samples come back under new numbers."),
                io.Int.Input(
                    "count", default=1, min=1, max=2 ** 31 - 1,
                    tooltip="How many of the newest samples, where `what` is last."),
                io.Int.Input(
                    "number", default=1, min=1, max=2 ** 31 - 1,
                    tooltip="Which sample, where `what` is one: the number that Memory Info "
                            "shows."),
                io.String.Input(
                    "numbers", default="", optional=True,
                    tooltip="Which samples, where `what` is chosen: numbers and spans, with "
                            "commas between them, as in 3, 5, 8-12."),
            ],
            outputs=[
                NoveltyMemoryType.Output(
                    display_name="memory",
                    tooltip="The same memory; link it on to have the samples forgotten first."),
                io.String.Output(display_name="report", tooltip="What was forgotten."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,  # two alike both run, and each shows its own report
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return float("nan")  # a new one each time: it differs from every other, so the node runs

    @classmethod
    def execute(cls, memory, what, count, number, numbers="") -> io.NodeOutput:
        report = forget(memory, what, count, number, numbers)
        _host.tell_memory_changed(memory)
        return io.NodeOutput(memory, report, ui=_host.shown(cls, report))


class MemoryInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonMemoryInfo",
            display_name="Memory Info",
            category=CATEGORY,
            description="Shows what a novelty memory holds: its revision, size and newest samples "
                        "with their numbers, seeds, novelty and previews.",
            search_aliases=["novelty memory", "history", "statistics", "revision", "inspect",
                            "list samples"],
            inputs=[
                NoveltyMemoryType.Input("memory", tooltip="What to look into."),
                io.AnyType.Input(
                    "after", optional=True,
                    tooltip="Anything that shall happen first: link a sampler's latent to see the "
                            "memory with the new images in it."),
                io.Int.Input(
                    "newest", default=16, min=0, max=256, optional=True,
                    tooltip="How many of the newest samples to list and to show."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="What the memory holds."),
                io.Int.Output(display_name="revision",
                              tooltip="The revision that counts: the latest, or the one chosen in "
                                      "Novelty Memory."),
                io.Image.Output(display_name="previews",
                                tooltip="Small pictures of the newest samples, newest first; one "
                                        "black picture where there is none."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,  # two alike both run, and each shows its own report
        )

    @classmethod
    def execute(cls, memory, after=None, newest=16) -> io.NodeOutput:
        found = describe(memory, newest)
        previews = previews_as_image([entry.preview for entry in found.newest if entry.preview])
        shown = _host.shown(cls, found.text) | ui.PreviewImage(previews, cls=cls).as_dict()
        return io.NodeOutput(found.text, found.revision, previews, ui=shown)


NODES = [NoveltyMemoryNode, RememberSamples, ForgetSamples, MemoryInfo]
