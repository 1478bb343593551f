"""Keep Most Different and Keep Novel: a few of many images, by how they differ."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..guidance.selection import farthest_apart, most_different, novel, percentile_distance
from . import _host
from ._selection_inputs import Candidates, check_memory, remembered_before
from ._types import CATEGORY, NoveltyMemoryType

COUNT, FRACTION = "count", "fraction"
PERCENTILE, DISTANCE = "percentile", "distance"
TYPICAL, FARTHEST = "typical of a group", "farthest apart"
DIFFERENT, NOVEL = "Keep Most Different", "Keep Novel"


def _sources() -> list:
    return [
        io.Image.Input(
            "image", optional=True,
            tooltip="Images to choose from: a batch, or a list of any sizes."),
        io.Latent.Input(
            "latent", optional=True,
            tooltip="Latents to choose from: a batch, or a list. With images too, the latents of "
                    "these images, in the same order; then the latents are compared."),
    ]


def _outputs() -> list:
    return [
        io.Image.Output(display_name="images", is_output_list=True,
                        tooltip="The images kept, in their order, as a list."),
        io.Latent.Output(display_name="latents", is_output_list=True,
                         tooltip="The latents kept, in their order, as a list; each has its place "
                                 "in the batch and its noise mask."),
        io.Int.Output(display_name="indices", is_output_list=True,
                      tooltip="Which ones were kept, counted from 0 over all batches."),
    ]


class KeepMostDifferent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonKeepMostDifferent",
            display_name=DIFFERENT,
            category=CATEGORY,
            description="Keeps the few of many images that stand best for all of them: groups "
                        "like images by k-medoids and keeps the middle one of each group. Or "
                        "those that are farthest from one another.",
            search_aliases=["k-medoids", "cluster", "diverse subset", "representatives", "curate",
                            "contact sheet", "deduplicate", "filter images", "best of",
                            "farthest point", "outliers"],
            inputs=[
                *_sources(),
                io.Combo.Input("keep", options=[COUNT, FRACTION],
                               tooltip="Whether count or fraction says how many to keep."),
                io.Int.Input("count", default=4, min=1, max=100000,
                             tooltip="How many to keep; all if there are fewer."),
                io.Float.Input("fraction", default=0.25, min=0.0, max=1.0, step=0.01,
                               tooltip="Which part of them to keep; at least one is kept."),
                io.Vae.Input("vae", optional=True,
                             tooltip="Compares images as the latents of this VAE. Without it their "
                                     "pixels are compared, which needs no model."),
                io.Model.Input("model", optional=True,
                               tooltip="Compares latents in this model's own units, as Novelty "
                                       "Memory does. It is not run."),
                io.Combo.Input("choose", options=[TYPICAL, FARTHEST], optional=True,
                               tooltip="typical of a group: the middle one of each group of like "
                                       "images, by k-medoids. farthest apart: images that are as "
                                       "far from one another as possible, so also what stands "
                                       "alone, rare or broken."),
            ],
            outputs=[
                *_outputs(),
                io.Int.Output(display_name="medoids", is_output_list=True,
                              tooltip="For every image that came in, which of the kept ones stands "
                                      "for it: its number, as in indices."),
                io.String.Output(display_name="report",
                                 tooltip="How many were kept, and how well they stand for all."),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            is_output_node=True,
            not_idempotent=True,  # two alike both run, and each shows its own report
        )

    @classmethod
    def execute(cls, keep, count, fraction, image=(), latent=(), vae=(None,),
                model=(None,), choose=(TYPICAL,)) -> io.NodeOutput:
        candidates = Candidates(image, latent, model[0], vae[0])
        pick = farthest_apart if choose[0] == FARTHEST else most_different
        wanted = count[0] if keep[0] == COUNT else max(1, round(fraction[0] * len(candidates)))
        found = pick(candidates.embedding, wanted)
        report = f"{found.report(wanted)}\nCompared: {candidates.compared}"
        return io.NodeOutput(*_kept(DIFFERENT, candidates, found.kept), found.medoid, report,
                             ui=_host.shown(cls, report))


class KeepNovel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonKeepNovel",
            display_name=NOVEL,
            category=CATEGORY,
            description="Drops images that are too near to one another, or to those in a novelty "
                        "memory, and keeps the others. If none is new, what follows does not run.",
            search_aliases=["deduplicate", "remove duplicates", "similar images", "filter images",
                            "novelty", "memory", "curate", "threshold"],
            inputs=[
                *_sources(),
                io.Combo.Input(
                    "measure", options=[PERCENTILE, DISTANCE],
                    tooltip="Whether percentile or distance says how near is too near."),
                io.Float.Input(
                    "percentile", default=10.0, min=0.0, max=100.0, step=1.0,
                    tooltip="Too near is what is nearer than this percentage of the remembered "
                            "images are to their nearest; without a memory, of the images that "
                            "came in."),
                io.Float.Input(
                    "distance", default=0.22, min=0.0, max=10.0, step=0.01,
                    tooltip="Too near is what is nearer than this: root mean square difference of "
                            "the pooled latents, as the radius of Novelty Guidance, or of the "
                            "pooled pixels from -1 to 1. 0 drops only copies."),
                NoveltyMemoryType.Input(
                    "memory", optional=True,
                    tooltip="What the images shall differ from, from Novelty Memory; nothing is "
                            "added to it. Needs the model, and for images the VAE. Without it "
                            "they shall only differ from one another."),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="The model of the memory: it says what a latent means. It is not run."),
                io.Vae.Input(
                    "vae", optional=True,
                    tooltip="Compares images as the latents of this VAE: the model's own, where "
                            "there is a memory. Without it their pixels are compared."),
                io.Conditioning.Input(
                    "conditioning", optional=True,
                    tooltip="The prompt of the images: what is remembered from quite different "
                            "prompts then does not count. Without one everything counts."),
            ],
            outputs=[
                *_outputs(),
                io.String.Output(display_name="report",
                                 tooltip="How many were kept, and why the others were not."),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            is_output_node=True,
            not_idempotent=True,  # two alike both run, and each shows its own report
        )

    @classmethod
    def execute(cls, measure, percentile, distance, image=(), latent=(), memory=(None,),
                model=(None,), vae=(None,), conditioning=(None,)) -> io.NodeOutput:
        memory, lines = memory[0], []
        if memory is not None:
            check_memory(memory, model[0], vae[0], bool(latent))
        candidates = Candidates(image, latent, model[0], vae[0])
        remembered = candidates.embedding[:0]
        if memory is not None:
            remembered, lines = remembered_before(memory, conditioning[0], cls.hidden.unique_id)
            remembered = remembered.view(len(remembered), candidates.embedding.shape[1])
        limit = distance[0]
        if measure[0] == PERCENTILE:
            limit, line = _limit(remembered, candidates.embedding, percentile[0])
            lines.append(line)
        found = novel(candidates.embedding, remembered, limit)
        report = "\n".join([found.report(limit), *lines, f"Compared: {candidates.compared}"])
        return io.NodeOutput(*_kept(NOVEL, candidates, found.kept), report,
                             ui=_host.shown(cls, report))


def _limit(remembered: Tensor, embedding: Tensor, percentile: float) -> tuple[float, str]:
    """The distance that a percentile means, and a line that says so."""
    for points, whose in ((remembered, "in the memory"), (embedding, "among the images")):
        limit = percentile_distance(points, percentile)
        if limit is not None:
            return limit, f"Percentile {percentile:g} {whose} is a distance of {limit:.3g}"
    return 0.0, "There is nothing to take a percentile of, so only copies are dropped"


def _kept(name: str, candidates: Candidates, kept: list[int]) -> tuple:
    """The outputs images, latents and indices. An empty list would make the nodes that follow
    fail, so where nothing is kept they are told not to run. name: of the node."""
    return (candidates.images(kept, name), candidates.latents(kept, name),
            kept or ExecutionBlocker(None))


NODES = [KeepMostDifferent, KeepNovel]
