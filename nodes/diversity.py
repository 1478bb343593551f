"""Diversity Report: how different the pictures of a set are, and what they cover."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..guidance.diversity import Settings, measure, measure_steps
from ..guidance.diversity_figures import Extras
from ..guidance.diversity_report import as_json, table, text
from . import _host
from ._diversity_plots import draw_pairs, draw_plots
from ._diversity_reader import FEATURES, Extractor, HistorySearch, pictures_of, read, ticker
from ._images import image_files, stamp
from ._types import CATEGORY, NoveltyMemoryType, ScoredImagesType

DEFAULTS = Settings()
SIZE = 128


class DiversityReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonDiversityReport",
            display_name="Diversity Report",
            category=CATEGORY,
            description="Tells how diverse a set of images is: Vendi score, AvgkNN, LOF, LPIPS, "
                        "copies; beside a reference set precision, recall, density and coverage; "
                        "beside a memory how new they are. In words, numbers and pictures.",
            search_aliases=["metrics", "statistics", "precision recall", "coverage", "vendi",
                            "lof", "outliers", "duplicates", "similarity", "evaluate", "compare "
                            "sets", "mode collapse"],
            inputs=[
                io.Image.Input(
                    "images", optional=True,
                    tooltip="Images to measure: a batch, or a list of several sizes. They and "
                            "those of the folder are one set."),
                io.String.Input(
                    "folder", default="", optional=True,
                    tooltip="A folder of images on the computer that runs ComfyUI: a full path, or "
                            "a name inside the input folder. Files that cannot be read are "
                            "skipped and named."),
                io.Image.Input(
                    "reference_images", optional=True,
                    tooltip="Images to compare with: real ones, or those of another setting."),
                io.String.Input(
                    "reference_folder", default="", optional=True,
                    tooltip="A folder of images to compare with, like folder."),
                ScoredImagesType.Input(
                    "scored", optional=True,
                    tooltip="Scored images, from Minority Score, to report and draw their scores. "
                            "Score the same images, as the report does not check it."),
                ScoredImagesType.Input(
                    "scored_reference", optional=True,
                    tooltip="The scored reference, to draw its scores beside the others. Take the "
                            "same model, distance and sigma."),
                NoveltyMemoryType.Input(
                    "memory", optional=True,
                    tooltip="A novelty memory, to tell how far the images are from what it "
                            "remembers. What this run has just added to it does not count. Needs "
                            "model and vae."),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="The model that the memory guides. It is not run."),
                io.Vae.Input("vae", optional=True, tooltip="That model's VAE."),
                io.ClipVision.Input(
                    "clip_vision", optional=True,
                    tooltip="A model from Load CLIP Vision (CLIP, SigLIP or DINO), which judges by "
                            "what the images show. The best features there are here."),
                io.Combo.Input(
                    "features", options=FEATURES, default=FEATURES[0], optional=True,
                    tooltip="What images are compared by. auto: clip_vision if one is connected, "
                            "else an LPIPS network whose file is here, else pixels. lpips_random "
                            "and pixels need no file; pixels tell colour and layout only."),
                io.Int.Input(
                    "k_knn", default=DEFAULTS.k_knn, min=1, max=1000, optional=True,
                    tooltip="How many nearest images AvgkNN averages over. A set needs one image "
                            "more."),
                io.Int.Input(
                    "k_lof", default=DEFAULTS.k_lof, min=1, max=1000, optional=True,
                    tooltip="How many nearest images LOF compares with. A set needs one image "
                            "more: lower it for small sets."),
                io.Int.Input(
                    "k_manifold", default=DEFAULTS.k_manifold, min=1, max=1000, optional=True,
                    tooltip="For precision, recall, density and coverage: each ball reaches to the "
                            "k-th nearest image of its set. A set needs one image more."),
                io.Float.Input(
                    "vendi_q", default=DEFAULTS.vendi_q, min=0.1, max=100.0, step=0.1,
                    optional=True, advanced=True,
                    tooltip="The order of the Vendi score. 1 is usual; below it the rare kinds "
                            "count more, above it the frequent ones."),
                io.Int.Input(
                    "lpips_size", default=SIZE, min=32, max=1024, step=16, optional=True,
                    advanced=True,
                    tooltip="The side, in pixels, that images are cut to for LPIPS. Larger sees "
                            "finer detail, and is slower."),
            ],
            outputs=[
                io.String.Output(display_name="report",
                                 tooltip="The numbers, and in plain words what each means."),
                io.String.Output(display_name="table",
                                 tooltip="The numbers with their definitions, as Markdown."),
                io.String.Output(display_name="json",
                                 tooltip="All numbers, and those of each image, as JSON."),
                io.Image.Output(display_name="plots",
                                tooltip="How AvgkNN, LOF and minority scores are distributed, and "
                                        "a map of the images."),
                io.Image.Output(display_name="pairs",
                                tooltip="The images that are most alike, two by two."),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            is_output_node=True,
            not_idempotent=True,  # two alike both run, and each shows its own report
        )

    @classmethod
    def fingerprint_inputs(cls, folder=("",), reference_folder=("",), **inputs):
        """Changes with the content of the folders."""
        return [stamp(folder[0]), stamp(reference_folder[0])]

    @classmethod
    def execute(cls, images=(), folder=("",), reference_images=(), reference_folder=("",),
                scored=(None,), scored_reference=(None,), memory=(None,), model=(None,),
                vae=(None,), clip_vision=(None,), features=(FEATURES[0],),
                k_knn=(DEFAULTS.k_knn,), k_lof=(DEFAULTS.k_lof,),
                k_manifold=(DEFAULTS.k_manifold,), vendi_q=(DEFAULTS.vendi_q,),
                lpips_size=(SIZE,)) -> io.NodeOutput:
        pictures = pictures_of([one for one in images if one is not None],
                               image_files(folder[0]) if folder[0] else [], "image")
        references = pictures_of([one for one in reference_images if one is not None],
                                 image_files(reference_folder[0]) if reference_folder[0] else [],
                                 "reference")
        if not pictures:
            raise ValueError("Nothing to measure. Connect images, or give a folder of images.")
        settings = Settings(k_knn=k_knn[0], k_lof=k_lof[0], k_manifold=k_manifold[0],
                            vendi_q=vendi_q[0])
        history = None if memory[0] is None else HistorySearch(memory[0], model[0], vae[0])
        extractor = Extractor(features[0], clip_vision[0], lpips_size[0])
        tick = ticker(len(pictures) + len(references)
                      + measure_steps(len(pictures), len(references)))
        left_out: list[str] = []
        kept, rows = read(pictures, extractor, tick, left_out, history=history)
        reference = None
        if references:
            _, reference = read(references, extractor, tick, left_out, counted=False)
        found = measure(rows, reference, settings, tick)
        extras = Extras(
            lpips=extractor.mean_lpips, lpips_net=extractor.net or "",
            lpips_why=extractor.lpips_why, scores=_scores(scored), scores_of=_scores_of(scored),
            reference_scores=_scores(scored_reference), left_out=left_out,
            history=None if history is None else history.result())
        names = [picture.name for picture in kept]
        about = extractor.about(found.dim)
        report = text(found, about, names, extras)
        plots = draw_plots(found, rows, reference, extras)
        pairs = draw_pairs(found, kept)
        _host.show_on_node(cls.hidden.unique_id, report)
        shown = ui.PreviewText(report).as_dict() | ui.PreviewImage(plots, cls=cls).as_dict()
        return io.NodeOutput(report, table(found, extras),
                             as_json(found, about, names, extras), plots, pairs, ui=shown)


def _scores(scored):
    return None if scored[0] is None else scored[0].scores


def _scores_of(scored) -> str:
    if scored[0] is None:
        return ""
    settings = scored[0].settings
    return f"{settings.distance} at sigma {settings.sigma:g}, {settings.draws} draws"


NODES = [DiversityReport]
