"""What the widgets of Novelty Guidance mean for one sampling run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..guidance.early_push import LOOK_STEPS
from ..guidance.feature_novelty import FeatureRun
from ..guidance.feature_space import FeatureSpace
from ..guidance.fitted_radius import FITTED
from ..guidance.latent_space import LatentSpace
from ..guidance.memory.bank import Remembered
from ..guidance.memory.net_cache import Tick
from ..guidance.novelty import NoveltyRun, NoveltySettings
from ..guidance.novelty_memory import LATENT, NoveltyMemory
from ..guidance.starts import AUTO, affordable
from ..guidance.step_window import StepWindow
from ..guidance.vision_novelty import VisionRun
from ..guidance.vision_space import VisionSpace

# What start_percent 0 means in space vision: before it the decoded x0-hat is a blur, whose
# embedding says nothing of the image to come (docs/novelty.md).
VISION_START = 0.2
# In a sample's settings: whether its run, from pure noise, was decided at its first look; and of so
# many of the newest samples most are to say so, since one is told wrongly in ten cases.
SETTLED, NEWEST = "settled", 8
Space = LatentSpace | FeatureSpace | VisionSpace


@dataclass(frozen=True, kw_only=True)
class NoveltyOptions:
    """The widgets of Novelty Guidance; percents run from 0, pure noise, to 1."""

    strength: float
    start_percent: float
    end_percent: float
    radius: float
    repulsion: str
    prompt_aware: bool
    batch_repulsion: float
    record: bool
    cfg_start_percent: float
    vision_every_n_steps: int = 2
    early_push: str = "off"
    candidates: int = 1
    antithetic_noise: bool = False

    def fits_radius(self, memory: NoveltyMemory) -> bool:
        """Whether the radius comes from the memory."""
        return self.radius == FITTED and memory.fit is not None

    def fits_early_push(self, memory: NoveltyMemory) -> bool:
        return memory.space == LATENT and self.repulsion != "ball"

    def ignored(self, memory: NoveltyMemory) -> list[str]:
        """What is set and has no use, and for what it is."""
        told = []
        if self.early_push == "on" and not self.fits_early_push(memory):
            told.append("early_push. It is for a memory with space latent, and not for ball.")
        if self.candidates > 1 and memory.space != LATENT:
            told.append("candidates. It is for a memory with space latent.")
        return told

    def run(self, memory: NoveltyMemory, model, space: Space, remembered: Remembered,
            prompt: Tensor | None, sigmas: Tensor, *, pure_noise: bool, without_cfg: bool,
            tick: Tick) -> NoveltyRun:
        """sigmas: of the run, `[steps + 1]`; pure_noise: whether it starts from that; without_cfg:
        whether there is no CFG at all; tick: for a net that has much to learn first."""
        sampling = model.get_model_object("model_sampling")
        early = self.early_push if self.fits_early_push(memory) else "off"
        if early == "auto" and not without_cfg:
            early = "off"
        repulsion = memory.repulsion(self.repulsion, remembered,
                                     prompt if self.prompt_aware else None, self.radius,
                                     model.load_device, tick)
        radius = repulsion.radius if repulsion else self.radius or memory.unknown_radius
        settings = NoveltySettings(
            strength=self.strength, radius=radius, batch=self.batch_repulsion,
            fits_batch=(self.fits_radius(memory) and memory.space == LATENT
                        and radius == memory.unknown_radius and pure_noise),
            early=early, look=early != "off" and len(sigmas) - 1 <= LOOK_STEPS,
            sigma_first=float(sigmas[0]),
            sigma_start=float(sampling.percent_to_sigma(self.start_percent)),
            sigma_end=float(sampling.percent_to_sigma(self.end_percent)))
        if isinstance(space, VisionSpace):
            if self.start_percent == 0:
                settings = replace(settings, sigma_start=float(
                    sampling.percent_to_sigma(VISION_START)))
            return VisionRun(space, repulsion, settings, StepWindow(
                schedule=tuple(sigmas.tolist()), every=self.vision_every_n_steps,
                sigma_start=settings.sigma_start, sigma_end=settings.sigma_end))
        kind = FeatureRun if isinstance(space, FeatureSpace) else NoveltyRun
        return kind(space, repulsion, settings)

    def starts(self, memory: NoveltyMemory, remembered: Remembered, steps: int, *,
               without_cfg: bool) -> int:
        """How many starting noises to try. AUTO: as many as a run with early pushes and without
        CFG can afford, where one look tells an image, as it did for the newest remembered ones."""
        if self.candidates != AUTO:
            return self.candidates
        count = affordable(steps)
        newest = remembered.revisions[-NEWEST:].tolist()
        pushes_early = self.early_push != "off" and self.fits_early_push(memory)
        if count == 1 or not newest or not without_cfg or not pushes_early:
            return 1
        told = [entry.settings[SETTLED]
                for entry in memory.log.entries(after=newest[0] - 1, upto=newest[-1])
                if entry.revision in newest and SETTLED in entry.settings]
        return count if told and sum(told) > len(told) / 2 else 1
