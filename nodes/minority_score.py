"""Minority Score and Select by Minority Score: how rare images are for a model."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..guidance.distances import DISTANCES
from ..guidance.minority_score import BATCH, DRAWS
from . import _host
from ._histogram import histogram
from ._image_scorer import ImageScorer, chosen_size, load_member
from ._images import image_files, stamp
from ._types import MINORITY_CATEGORY, ScoredImagesType

DEFAULT_DISTANCE = "latent_l2"  # needs no file, whatever the model
RAREST = "rarest"
WHICH = [RAREST, "most common"]
_used: list[Path | None] = []  # files of scores, by any run since the host started; None: deleted


class MinorityScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonMinorityScore",
            display_name="Minority Score",
            category=MINORITY_CATEGORY,
            description="Tells how rare images are for a model: each gets noise, the model removes "
                        "it in one step, and the score is how far the result is from the image. "
                        "Rare images come out worse. Sorts them, draws the distribution, and keeps "
                        "the scores for Train Minority Classifier.",
            search_aliases=["rarity", "rare images", "outliers", "LPIPS", "sort images", "unusual",
                            "dataset", "minority guidance"],
            inputs=[
                io.Model.Input("model", tooltip="The model for which images are rare or common."),
                io.Vae.Input("vae", tooltip="The model's VAE; pixel_space for models of Load ADM "
                                            "Diffusion Model."),
                io.Image.Input("image", optional=True,
                               tooltip="Images to score: a batch, or a list of several sizes."),
                io.Conditioning.Input(
                    "conditioning", optional=True,
                    tooltip="What the images show, or an empty prompt. Models that know no prompt "
                            "need none."),
                io.String.Input(
                    "folder", default="", optional=True,
                    tooltip="A folder of images on the computer that runs ComfyUI: a full path, or "
                            "a name inside the input folder. Files that cannot be read are "
                            "skipped and named."),
                io.Int.Input(
                    "width", default=0, min=0, max=16384, step=8, optional=True,
                    tooltip="Images are scaled and cut to this size; take the size that the model "
                            "was trained at. 0: the width of the first image."),
                io.Int.Input(
                    "height", default=0, min=0, max=16384, step=8, optional=True,
                    tooltip="Images are scaled and cut to this size; take the size that the model "
                            "was trained at. 0: the height of the first image."),
                io.Combo.Input(
                    "distance", options=list(DISTANCES), default=DEFAULT_DISTANCE, optional=True,
                    tooltip="How far the result is from the image. latent_l2: of latents, the "
                            "fastest, no files. lpips_vgg is the paper's; it, alex and squeeze "
                            "need a file, and the error says which. lpips_random needs none. l1, "
                            "l2: of pixels, which favours bright and colourful images."),
                io.Float.Input(
                    "sigma", default=0.0, min=0.0, max=1000.0, step=0.1, round=False,
                    optional=True,
                    tooltip="How much noise is put on the images: its standard deviation over "
                            "theirs. Little noise judges details, much of it the whole. 0: by the "
                            "size of the latents, 1.6 for 64 x 64 and in proportion to the "
                            "side."),
                io.Int.Input(
                    "draws", default=DRAWS, min=1, max=1000, optional=True,
                    tooltip="How many times each image is tried, with other noise; the score is "
                            "the mean. More is steadier and slower."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2 ** 64 - 1, optional=True,
                    control_after_generate=False,
                    tooltip="Chooses the noise. An image's score depends on it, but not on the "
                            "other images."),
                io.Int.Input(
                    "show", default=16, min=1, max=1024, optional=True,
                    tooltip="Of a folder, how many of the rarest and of the most common images "
                            "come out; images that were connected all do."),
                io.Int.Input(
                    "batch", default=BATCH, min=1, max=1024, optional=True, advanced=True,
                    tooltip="How many images the model denoises at once. Lower it if memory runs "
                            "out. The scores stay the same."),
            ],
            outputs=[
                ScoredImagesType.Output(
                    display_name="scored",
                    tooltip="The images with their scores, for Train Minority Classifier and "
                            "Select by Minority Score."),
                io.Float.Output(display_name="scores", is_output_list=True,
                                tooltip="The scores of all images, the rarest first."),
                io.Image.Output(display_name="images", is_output_list=True,
                                tooltip="The images, the rarest first; of a folder only the first "
                                        "and the last."),
                io.Image.Output(display_name="histogram",
                                tooltip="A picture of how the scores are distributed."),
                io.String.Output(display_name="report",
                                 tooltip="How many were scored, and what was skipped."),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,
            is_output_node=True,
            not_idempotent=True,  # two alike both run, and each shows its own report
        )

    @classmethod
    def fingerprint_inputs(cls, folder=("",), **inputs):
        """Changes with the content of the folder, and when a file of scores is deleted."""
        return [stamp(folder[0]), _deleted()]

    @classmethod
    def execute(cls, model, vae, image=(), conditioning=(None,), folder=("",), width=(0,),
                height=(0,), distance=(DEFAULT_DISTANCE,), sigma=(0.0,), draws=(DRAWS,),
                seed=(0,), show=(16,), batch=(BATCH,)) -> io.NodeOutput:
        images = [one for one in image if one is not None]
        files = image_files(folder[0]) if folder[0] else []
        if not sum(map(len, images)) + len(files):
            raise ValueError("Nothing to score. Connect images, or give a folder of images.")
        scorer = ImageScorer(
            model[0], vae[0], conditioning[0], distance=distance[0], sigma=sigma[0],
            draws=draws[0], seed=seed[0], batch=batch[0],
            size=chosen_size(width[0], height[0], images, files),
            folder=_sets_folder(lasting=bool(files)), count=sum(map(len, images)) + len(files))
        if scorer.kept.path not in _used:
            _used.append(scorer.kept.path)
        scorer.add_images(images)
        scorer.add_folder(files)
        scored = scorer.result()
        report = scorer.report(scored)
        picture = histogram(scored.scores.tolist(),
                            f"{distance[0]} at sigma {scored.settings.sigma:g}")
        _host.show_on_node(cls.hidden.unique_id, report)
        shown = ui.PreviewText(report).as_dict() | ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput(scored, scored.scores.tolist(),
                             [load_member(scored, i) for i in _shown(scored, show[0])], picture,
                             report, ui=shown)


class SelectByMinorityScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonSelectByMinorityScore",
            display_name="Select by Minority Score",
            category=MINORITY_CATEGORY,
            description="Takes the rarest or the most common of scored images: the plain way to "
                        "rare images, by drawing many and keeping a few.",
            search_aliases=["top k", "keep rarest", "filter images", "rarity", "outliers",
                            "curate dataset", "best of"],
            inputs=[
                ScoredImagesType.Input("scored", tooltip="Scored images, from Minority Score."),
                io.Int.Input("count", default=8, min=1, max=100000,
                             tooltip="How many to take; all if there are fewer."),
                io.Combo.Input("which", options=WHICH,
                               tooltip="Which ones; the most extreme comes first."),
            ],
            outputs=[
                io.Image.Output(display_name="images", is_output_list=True,
                                tooltip="The images, at the size at which they were scored."),
                io.Float.Output(display_name="scores", is_output_list=True,
                                tooltip="Their scores, in the same order."),
                io.Latent.Output(display_name="latent",
                                 tooltip="Their latents as one batch, for a sampler."),
            ],
        )

    @classmethod
    def execute(cls, scored, count, which) -> io.NodeOutput:
        chosen = scored.extreme(count, rarest=which == RAREST)
        latents = scored.to_wire(scored.latents(chosen))
        return io.NodeOutput([load_member(scored, i) for i in chosen],
                             scored.scores[chosen].tolist(), {"samples": latents})


def _sets_folder(lasting: bool) -> Path:
    """Where scores are kept: those of connected images only until ComfyUI ends."""
    folder = (folder_paths.get_system_user_directory("uncommon") if lasting
              else folder_paths.get_temp_directory())
    return Path(folder, "minority_scores")


def _deleted() -> int:
    """How many files of scores were deleted while outputs in the host's cache relied on them."""
    _used[:] = [path if path and path.exists() else None for path in _used]
    return _used.count(None)


def _shown(scored, show: int) -> list[int]:
    """The indices of the images that come out, the rarest first."""
    of_folder = [i for i, key in enumerate(scored.hashes) if key not in scored.pictures]
    left_out = {*of_folder[show:-show]}
    return [i for i in range(len(scored)) if i not in left_out]


NODES = [MinorityScore, SelectByMinorityScore]
