"""Novelty Guidance: each new sample differs from those remembered."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.early_push import EARLY
from ..guidance.repulsion import REPULSIONS
from ._novelty_hooks import NoveltyHooks
from ._novelty_run import NoveltyOptions
from ._types import CATEGORY, NoveltyMemoryType


class NoveltyGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UncommonNoveltyGuidance",
            display_name="Novelty Guidance",
            category=CATEGORY,
            description="Pushes each new image away from all images in a novelty memory, inside "
                        "any sampler, and remembers the new ones. The node shows after each run "
                        "how novel the images were and what was pushed.",
            search_aliases=["novelty", "diversity", "variation", "seed variance", "same face",
                            "CADS", "never the same twice", "anti-guidance", "SPELL"],
            inputs=[
                io.Model.Input("model", tooltip="The model to guide."),
                NoveltyMemoryType.Input(
                    "memory", tooltip="What to stay away from, from Novelty Memory."),
                io.Float.Input(
                    "strength", default=0.3, min=0.0, max=2.0, step=0.01,
                    tooltip="How far a push goes. It is never more than this fraction of the noise "
                            "that a step removes, so it means the same for every model. 0 pushes "
                            "nothing. For far more, raise radius as well."),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.01,
                    tooltip="Where in the denoising the pushing begins; 0 is pure noise. With a "
                            "memory of space vision 0 stands for 0.2: a vision model sees nothing "
                            "before."),
                io.Float.Input(
                    "end_percent", default=0.9, min=0.0, max=1.0, step=0.01,
                    tooltip="Where in the denoising the pushing ends; 1 is the finished image."),
                io.Float.Input(
                    "radius", default=0.0, min=0.0, max=2.0, step=0.01, optional=True,
                    advanced=True,
                    tooltip="Distance below which two images count as the same: root mean square "
                            "difference of their pooled latents. 0 takes it from the memory, by "
                            "how far its images of this prompt lie apart; the node shows it; .18 "
                            "in space vision. Larger pushes earlier and from farther away."),
                io.Combo.Input(
                    "repulsion", options=list(REPULSIONS), optional=True, advanced=True,
                    tooltip="What pushes. net: a small network that has learnt every image; it "
                            "costs the same however long the history is. exact: every image by "
                            "itself. ball: SPELL's rule, a shift of x0-hat."),
                io.Boolean.Input(
                    "prompt_aware", default=True, optional=True, advanced=True,
                    tooltip="An image repels in proportion to the similarity of the prompts, so "
                            "that a cat does not push a castle. Off: every image repels."),
                io.Float.Input(
                    "batch_repulsion", default=1.0, min=0.0, max=1.0, step=0.05, optional=True,
                    advanced=True,
                    tooltip="How strongly the images of one batch push each other; 0 makes each "
                            "image independent of its batch."),
                io.Boolean.Input(
                    "record", default=True, optional=True, advanced=True,
                    tooltip="Remember the new images when a run has ended well. A frozen memory "
                            "never records."),
                io.Float.Input(
                    "cfg_start_percent", default=0.35, min=0.0, max=1.0, step=0.01, optional=True,
                    tooltip="Where in the denoising CFG begins; before it the model follows the "
                            "prompt alone, as at CFG 1, which is faster too. CFG at high noise "
                            "draws all images of a prompt to one composition. 0: CFG everywhere. "
                            "Nothing changes at CFG 1, nor while nothing is pushed."),
                io.ClipVision.Input(
                    "clip_vision", optional=True,
                    tooltip="For a memory with space vision: what looks at the images, from Load "
                            "CLIP Vision. A memory keeps to one."),
                io.Vae.Input(
                    "vae", optional=True,
                    tooltip="For a memory with space vision: decodes each step for the vision "
                            "model. A TAESD saves much time and memory over the model's VAE."),
                io.Int.Input(
                    "vision_every_n_steps", default=2, min=1, max=100, optional=True,
                    advanced=True,
                    tooltip="For a memory with space vision: a new gradient at every n-th step; "
                            "the steps in between go on with the last one. More is faster."),
                io.Combo.Input(
                    "early_push", options=list(EARLY), optional=True, advanced=True,
                    tooltip="Push as far at high noise as at low. auto: where CFG is 1 and the "
                            "image is settled already, as distilled models settle it in their "
                            "first steps. on: everywhere. In runs of up to 10 steps the model is "
                            "asked once more, to push from the first step. For space latent, and "
                            "not for ball."),
                io.Int.Input(
                    "candidates", default=0, min=0, max=64, optional=True,
                    tooltip="How many starting noises to try at most for each image: the run goes "
                            "on with the first that leads to an image far from all remembered "
                            "ones, else with the farthest. The seed's own noise is tried first; 1 "
                            "tries no other. More difference, and more time: each costs one step "
                            "where the first step settles the image, as in distilled models, else "
                            "four, all without CFG. 0: up to 4, a fifth of the steps at most, "
                            "where CFG is 1 and the first step settles the image; else none. For "
                            "space latent."),
                io.Boolean.Input(
                    "antithetic_noise", default=True, optional=True, advanced=True,
                    tooltip="Start the images of a batch from noises as unlike each other as can "
                            "be, by as much as batch_repulsion says. They differ more; each is as "
                            "good as any, and it costs nothing. Off: the seed's own noises."),
            ],
            outputs=[io.Model.Output(tooltip="The model with novelty guidance, for any sampler.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # two alike are not one: each shows its own report
        )

    @classmethod
    def execute(cls, model, memory, strength, start_percent, end_percent, radius=0.22,
                repulsion="net", prompt_aware=True, batch_repulsion=1.0,
                record=True, cfg_start_percent=0.0, clip_vision=None, vae=None,
                vision_every_n_steps=2, early_push="off", candidates=1,
                antithetic_noise=False) -> io.NodeOutput:
        options = NoveltyOptions(
            strength=strength, start_percent=start_percent, end_percent=end_percent, radius=radius,
            repulsion=repulsion, prompt_aware=prompt_aware, batch_repulsion=batch_repulsion,
            record=record, cfg_start_percent=cfg_start_percent,
            vision_every_n_steps=vision_every_n_steps, early_push=early_push,
            candidates=candidates, antithetic_noise=antithetic_noise)
        hooks = NoveltyHooks(memory, options, cls.hidden.unique_id, clip_vision, vae)
        return io.NodeOutput(hooks.attach(model))


NODES = [NoveltyGuidance]
