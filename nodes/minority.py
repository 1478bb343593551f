"""Rare images on demand: guidance by a minority classifier, and what needs none."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance import minority, self_guided
from ._minority_hooks import BoostHooks, MinorityHooks, MinorityOptions
from ._self_guided_hooks import SelfGuidedHooks, SelfGuidedOptions
from ._types import MINORITY_CATEGORY, MinorityClassifierType

START_PERCENT = "Where in the denoising the pushing begins; 0 is pure noise."
END_PERCENT = "Where in the denoising the pushing ends; 1 is the finished image."


class MinorityGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonMinorityGuidance",
            display_name="Minority Guidance",
            category=MINORITY_CATEGORY,
            description="Makes rare images, or the most typical ones, inside any sampler: each "
                        "step is pushed towards a class of rarity that a minority classifier "
                        "knows. Costs one run of the small classifier and its gradient a step.",
            search_aliases=["minority", "rare", "rarity", "long tail", "unusual", "typical",
                            "majority", "classifier guidance", "don't play favorites"],
            inputs=[
                io.Model.Input("model", tooltip="The model to guide."),
                MinorityClassifierType.Input(
                    "classifier", tooltip="Knows how rare a noisy image is; trained on the latents "
                                          "of this kind of model."),
                io.Float.Input(
                    "rarity", default=99.0, min=0.0, max=100.0, step=0.1,
                    tooltip="How rare, as a percentile of the images that the classifier learnt "
                            "from: 99 is the rarest hundredth, 50 the middle, 0 the most typical. "
                            "Mode class uses it."),
                io.Float.Input(
                    "scale", default=3.0, min=0.0, max=100.0, step=0.1,
                    tooltip="How strongly mode class pushes: w in the paper, where 1 is the "
                            "classifier's own opinion. 0 pushes nothing. High values break "
                            "images."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip=START_PERCENT),
                io.Float.Input("end_percent", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip=END_PERCENT),
                io.Combo.Input(
                    "mode", options=list(minority.MODES),
                    tooltip="class: towards the class that rarity names. mixed: rarer than now, "
                            "wherever that is; its strength is beta."),
                io.Float.Input(
                    "beta", default=18.0, min=-100.0, max=100.0, step=0.1, optional=True,
                    advanced=True,
                    tooltip="How strongly mode mixed pushes: images are drawn in proportion to "
                            "their minority score to the power of beta. 0 pushes nothing; below 0 "
                            "towards the typical."),
                io.Int.Input(
                    "class_number", default=-1, min=-1, max=99999, optional=True, advanced=True,
                    tooltip="A class of the classifier in place of rarity: 0 is the most typical, "
                            "the last one the rarest. -1: by rarity."),
                io.Int.Input(
                    "every_n_steps", default=1, min=1, max=1000, optional=True, advanced=True,
                    tooltip="Run the classifier at every n-th step only, and push by the same "
                            "direction in between. Saves time with a large classifier."),
                io.Combo.Input(
                    "form", options=list(minority.FORMS), optional=True, advanced=True,
                    tooltip="score: the paper's equation, right for every sampler. mean: what "
                            "guided-diffusion's ancestral sampler does; for Euler ancestral."),
            ],
            outputs=[io.Model.Output(tooltip="The model with minority guidance, for any sampler.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # two alike are not one: each shows its own report
        )

    @classmethod
    def execute(cls, model, classifier, rarity, scale, start_percent, end_percent, mode, beta=18.0,
                class_number=-1, every_n_steps=1, form="score") -> io.NodeOutput:
        options = MinorityOptions(
            rarity=rarity, scale=scale, start_percent=start_percent, end_percent=end_percent,
            mode=mode, beta=beta, class_number=class_number, every_n_steps=every_n_steps, form=form)
        hooks = MinorityHooks(classifier, options, cls.hidden.unique_id)
        return io.NodeOutput(hooks.attach(model))


class SelfGuidedMinority(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonSelfGuidedMinority",
            display_name="Self-Guided Minority",
            category=MINORITY_CATEGORY,
            description="Rare images without a classifier: what the model restores badly from "
                        "noise is rare to it, and each n-th step is pushed there. Costs extra runs "
                        "of the model: with the defaults 1.6 times the time. On large "
                        "text-to-image models it costs quality.",
            search_aliases=["minority", "rare", "rarity", "long tail", "unusual", "self-guidance",
                            "training-free", "SGMS"],
            inputs=[
                io.Model.Input("model", tooltip="The model to guide."),
                io.Combo.Input(
                    "mode", options=list(self_guided.MODES),
                    tooltip="backprop: the published method; a gradient through the model, which "
                            "takes the memory that training takes. free: without a gradient; one "
                            "more run of the model at each pushed step."),
                io.Float.Input(
                    "scale", default=0.4, min=-10.0, max=10.0, step=0.05,
                    tooltip="How strongly it pushes, by the largest element of the push. The paper "
                            "has 0.4 for faces, 0.2 for ImageNet. 0 pushes nothing; below 0 "
                            "towards the typical."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip=START_PERCENT),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip=END_PERCENT),
                io.Int.Input(
                    "every_n_steps", default=5, min=1, max=1000, optional=True, advanced=True,
                    tooltip="Push at every n-th step only. The paper has 5 of 250 steps; with few "
                            "steps, less is stronger and slower."),
                io.Float.Input(
                    "renoise_percent", default=0.2, min=0.0, max=1.0, step=0.01, optional=True,
                    advanced=True,
                    tooltip="How much noise the model restores the image from, as a place in the "
                            "denoising: 0 is pure noise, 1 the finished image. The paper's 0.8 of "
                            "the noise steps is 0.2."),
            ],
            outputs=[io.Model.Output(tooltip="The model with its own guidance, for any sampler.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # two alike are not one: each shows its own report
        )

    @classmethod
    def execute(cls, model, mode, scale, start_percent, end_percent, every_n_steps=5,
                renoise_percent=0.2) -> io.NodeOutput:
        options = SelfGuidedOptions(
            mode=mode, scale=scale, start_percent=start_percent, end_percent=end_percent,
            every_n_steps=every_n_steps, renoise_percent=renoise_percent)
        return io.NodeOutput(SelfGuidedHooks(options, cls.hidden.unique_id).attach(model))


class BoostAndSkip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonBoostAndSkip",
            display_name="Boost and Skip",
            category=MINORITY_CATEGORY,
            description="Rare images for free: sampling starts from stronger noise and leaves out "
                        "its first steps. Costs nothing, it saves steps. Use it with a sampler "
                        "that adds noise (Euler ancestral): others leave the stronger noise in "
                        "the image.",
            search_aliases=["minority", "rare", "rarity", "initial noise", "noise scale",
                            "skip steps", "boost", "training-free"],
            inputs=[
                io.Model.Input("model", tooltip="The model whose sampling is changed."),
                io.Float.Input(
                    "gamma", default=2.0, min=0.0, max=20.0, step=0.05,
                    tooltip="What the initial noise is multiplied by. 1 changes nothing. The paper "
                            "has 4 for faces and 2.5 for ImageNet, at 250 ancestral steps. With "
                            "Euler, DPM++ 2M and others that add no noise, more than 1.2 is seen "
                            "as noise in the image."),
                io.Int.Input(
                    "skip", default=1, min=0, max=1000,
                    tooltip="How many of the sampler's first steps are left out. 0 changes "
                            "nothing. The paper has 3 of 250; one step of 20 is more than that."),
                io.Boolean.Input(
                    "clip", default=True, optional=True, advanced=True,
                    tooltip="Keep the image that each step heads for between black and white, as "
                            "the paper's code does; otherwise the stronger noise stays in it. For "
                            "pixel-space models only; latents have no such range."),
            ],
            outputs=[io.Model.Output(tooltip="The model with the changed start, for any sampler.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # two alike are not one: each shows its own report
        )

    @classmethod
    def execute(cls, model, gamma, skip, clip=True) -> io.NodeOutput:
        return io.NodeOutput(BoostHooks(gamma, skip, clip, cls.hidden.unique_id).attach(model))


NODES = [MinorityGuidance, SelfGuidedMinority, BoostAndSkip]
