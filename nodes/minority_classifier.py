"""Train, save and load the classifier of Minority Guidance."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..guidance.adm_encoder import SIZES
from ..guidance.training_set import TrainingSettings
from . import _classifier_files as files
from . import _host
from ._curves import draw_training
from ._pen import as_image
from ._trainer import train
from ._types import MINORITY_CATEGORY, MinorityClassifierType, ScoredImagesType

files.register_folder()


class TrainMinorityClassifier(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonTrainMinorityClassifier",
            display_name="Train Minority Classifier",
            category=MINORITY_CATEGORY,
            description="Trains a small network that tells from a noisy image how rare the "
                        "finished one will be. Minority Guidance follows it. It can be stopped at "
                        "any time: the same settings go on where it stopped.",
            search_aliases=["minority guidance", "rare", "classifier training", "train classifier",
                            "noisy classifier", "don't play favorites"],
            inputs=[
                ScoredImagesType.Input(
                    "scored", tooltip="The images to learn from, from Minority Score: some "
                                      "thousand, scored with the model that will be guided."),
                io.Int.Input(
                    "classes", default=0, min=0, max=1000,
                    tooltip="Into how many classes of rarity the images are divided, all of one "
                            "size. 0: one per 100 images, from 2 to the paper's 100."),
                io.Combo.Input(
                    "size", options=list(SIZES), default=SIZES[0],
                    tooltip="small: half a million parameters, also for a CPU. base: some "
                            "millions. paper: as guided-diffusion's classifiers, for a GPU and "
                            "many images."),
                io.Int.Input(
                    "iterations", default=3000, min=1, max=1000000,
                    tooltip="How many batches to learn from. The paper's authors took 60,000 of "
                            "256 images."),
                io.Int.Input(
                    "batch_size", default=64, min=1, max=4096,
                    tooltip="Images in a batch."),
                io.Float.Input(
                    "learning_rate", default=3e-4, min=1e-6, max=1.0, step=1e-6, round=False,
                    tooltip="At the start; it falls to 0 in a straight line."),
                io.Int.Input(
                    "seed", default=0, min=0, max=2 ** 64 - 1, control_after_generate=False,
                    tooltip="The same seed gives the same classifier on the same machine."),
                io.Float.Input(
                    "validation_share", default=0.05, min=0.0, max=0.5, step=0.01,
                    tooltip="Share of each class that is not learnt from but tested on. 0: none."),
                io.Boolean.Input(
                    "flip", default=True,
                    tooltip="Mirrors half of the images. Turn it off where left and right matter, "
                            "as in writing."),
                io.Boolean.Input(
                    "resume", default=True, optional=True, advanced=True,
                    tooltip="Goes on with a training of the same images and settings that was "
                            "stopped, and takes one that had ended as it is. Off: begins anew."),
                MinorityClassifierType.Input(
                    "extractor", optional=True,
                    tooltip="A classifier to build on, such as guided-diffusion's: it stays as it "
                            "is, and a small one that reads it is trained."),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="An ADM model to build on, in place of an extractor: its encoder half "
                            "stays as it is, and a small classifier that reads it is trained."),
            ],
            outputs=[
                MinorityClassifierType.Output(
                    display_name="classifier",
                    tooltip="For Minority Guidance and Save Minority Classifier."),
                io.LossMap.Output(display_name="loss",
                                  tooltip="The loss of every iteration, for Plot Loss Graph."),
                io.Image.Output(
                    display_name="curves",
                    tooltip="Losses in training and validation, and the accuracy by noise level."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, scored, resume=True, extractor=None, model=None, **settings) -> io.NodeOutput:
        training = train(scored, TrainingSettings(**settings), resume, extractor, model,
                         cls.hidden.unique_id)
        curves = as_image(draw_training(training))
        return io.NodeOutput(training.classifier(), {"loss": training.losses}, curves,
                             ui=ui.PreviewImage(curves, cls=cls))


class SaveMinorityClassifier(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonSaveMinorityClassifier",
            display_name="Save Minority Classifier",
            category=MINORITY_CATEGORY,
            description="Writes a classifier into models/minority_classifiers, where Load Minority "
                        "Classifier finds it: one safetensors file with all that belongs to it.",
            search_aliases=["minority guidance", "export classifier", "store classifier"],
            inputs=[
                MinorityClassifierType.Input(
                    "classifier", tooltip="What to save."),
                io.String.Input(
                    "name", default="classifier",
                    tooltip="Name of the file, with folders if you like: faces/vgg. A number is "
                            "added, as Save Image does. %year%, %month%, %day% and so on are "
                            "filled in."),
                io.Boolean.Input(
                    "overwrite", default=False,
                    tooltip="Writes to the very name, without a number, and replaces what is "
                            "there."),
            ],
            outputs=[MinorityClassifierType.Output(
                display_name="classifier", tooltip="The same classifier.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            not_idempotent=True,  # two alike both write
        )

    @classmethod
    def execute(cls, classifier, name, overwrite) -> io.NodeOutput:
        path = files.save(classifier, name, overwrite)
        text = f"Saved as {path}"
        _host.show_on_node(cls.hidden.unique_id, text)
        return io.NodeOutput(classifier, ui=ui.PreviewText(text))


class LoadMinorityClassifier(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonLoadMinorityClassifier",
            display_name="Load Minority Classifier",
            category=MINORITY_CATEGORY,
            description="Loads a classifier for Minority Guidance: one of this pack (no set-up), "
                        "one that you trained, a classifier of OpenAI's guided-diffusion, or the "
                        "LSUN pair of the paper's authors.",
            search_aliases=["minority guidance", "guided diffusion classifier", "mc_lsun",
                            "256x256_classifier", "load classifier", "avatars"],
            inputs=[
                io.Combo.Input(
                    "classifier_name", options=files.classifier_names(), display_name="classifier",
                    tooltip="Those of this pack, then the files in models/minority_classifiers."),
                io.Combo.Input(
                    "extractor_name", options=[files.NO_EXTRACTOR, *files.classifier_names()],
                    default=files.NO_EXTRACTOR, optional=True, advanced=True,
                    display_name="extractor",
                    tooltip="The frozen network that the classifier reads, where it comes in a "
                            "file of its own: 256x256_classifier.pt for the authors' mc_lsun.pt. "
                            "Classifiers of this pack need none."),
                io.Combo.Input(
                    "noise_schedule", options=list(files.SCHEDULES), default="auto", optional=True,
                    advanced=True, display_name="noise schedule",
                    tooltip="What a classifier of guided-diffusion was trained on. auto: cosine "
                            "for 64 x 64 images, else linear, as OpenAI's. Classifiers of this "
                            "pack know theirs."),
            ],
            outputs=[MinorityClassifierType.Output(
                display_name="classifier", tooltip="For Minority Guidance.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, classifier_name, extractor_name=files.NO_EXTRACTOR, **inputs):
        """Changes with the files."""
        return [files.stamp(name) for name in (classifier_name, extractor_name) if name]

    @classmethod
    def execute(cls, classifier_name, extractor_name=files.NO_EXTRACTOR,
                noise_schedule="auto") -> io.NodeOutput:
        classifier = files.load(classifier_name, extractor_name, noise_schedule)
        text = classifier.describe()
        _host.show_on_node(cls.hidden.unique_id, text)
        return io.NodeOutput(classifier, ui=ui.PreviewText(text))


NODES = [TrainMinorityClassifier, SaveMinorityClassifier, LoadMinorityClassifier]
