"""What novelty guidance tells the user after a run."""

from __future__ import annotations

from collections.abc import Sequence

from .fitted_radius import ENOUGH
from .novelty import PushFigures
from .novelty_memory import NoveltyMemory, Recorded
from .starts import Start


def novelty_report(memory: NoveltyMemory, revision: int, remembered: int, strength: float,
                   record: bool, whole: bool, figures: PushFigures, without_cfg: int,
                   recorded: Recorded | None, ignored: Sequence[str] = (),
                   fitted: float | None = None) -> str:
    """A few lines: the memory, how novel the new images are, what was pushed or why nothing was.

    revision, remembered: what guided the run, and how many samples that was; record: the node's
    switch; whole: whether the run went on to the end; without_cfg: evaluations before CFG began;
    ignored: inputs of the node that have no use, and for what they are; fitted: the radius, where
    the memory gave it.
    """
    stats = memory.log.stats()
    lines = [f"{memory.name}@{revision}: pushed away from {remembered} samples",
             _pushed(memory, remembered, strength, figures)]
    if fitted is not None and figures.evaluations:
        source = (f"until {ENOUGH} samples of this prompt are remembered"
                  if fitted == memory.unknown_radius else "from the distances in the memory")
        if figures.fits_batch:
            source += "; in a batch that is settled, from its own distances"
        lines.append(f"Radius {fitted:.3f}, {source}")
    if without_cfg:
        lines.append(f"CFG began after {without_cfg} evaluations of the model")
    if figures.early:
        lines.append(f"Early push in {figures.early} of these steps: the image was settled where "
                     "noise was high")
    if figures.antithetic:
        lines.append("The images of the batch started from antithetic noises")
    if figures.start is not None:
        lines.append(_start(figures.start))
    if figures.looked:
        lines.append("The model was asked once more, to push from the first step on")
    if figures.gradients:
        lines.append(f"Gradients through the vision model: {figures.gradients}, in "
                     f"{figures.gradient_share:.0%} of the time of the run")
    lines += [f"Not used: {told}" for told in ignored]
    if recorded is not None:
        lines += _recorded(recorded)
    else:
        lines.append("Nothing recorded: " + (
            "the memory is frozen." if not memory.learn else
            "recording is switched off." if not record else
            "this pass ends before the last step; the pass that ends it records."))
    lines.append(f"Memory now: {stats.live_samples} samples, {stats.live_bytes / 2 ** 20:.2f} MB, "
                 f"revision {stats.revision}")
    return "\n".join(lines)


def _pushed(memory: NoveltyMemory, remembered: int, strength: float, figures: PushFigures) -> str:
    if strength == 0:
        return "Nothing pushed: strength is 0."
    if figures.closed or (figures.evaluations and figures.within == 0):
        return "Nothing pushed: no step lies between start_percent and end_percent."
    if not figures.possible:
        return ("Nothing pushed: the memory is empty." if remembered == 0 else
                "Nothing pushed: no remembered sample has a prompt like this one" +
                (", or all that have one have faded." if memory.half_life else "."))
    if figures.evaluations == 0 and figures.of == "activation":
        return ("Nothing pushed: no activation of the positive prompt was seen; a node that "
                "replaces the model's blocks may hide it.")
    if figures.evaluations == 0:
        return ("Nothing pushed: the run has a single step, and the push needs the image of the "
                "step before. Take more steps.")
    if figures.pushed == 0:
        return ("Nothing pushed: no step came near another image of the batch." if remembered == 0
                else "Nothing pushed: no step came near a remembered sample.")
    text = (f"Pushed in {figures.pushed:.0%} of {figures.within} steps, "
            f"by {figures.mean_push:.3f} of the {figures.of} on average")
    if figures.dropped:
        text += f"; {figures.dropped} pushes dropped because they were not finite"
    return text


def _start(start: Start) -> str:
    numbers = ", ".join(str(number + 1) for number in start.chosen)
    seen = "one look at each" if start.steps == 1 else f"a preview of {start.steps} steps each"
    return f"Started from noise {numbers} of {start.candidates} tried, by {seen}"


def _recorded(recorded: Recorded) -> list[str]:
    count = recorded.last_revision - recorded.first_revision + 1
    text = f"Recorded {count} in {1000 * recorded.seconds:.0f} ms"
    if recorded.duplicates:
        text += f", {recorded.duplicates} already remembered"
    if recorded.replaced:
        text += f", in place of {recorded.replaced} from the pass before"
    if recorded.broken:
        text += f"; left out {recorded.broken} whose values are no numbers"
    lines = [text]
    if len(recorded.distance):
        novelty = ", ".join(f"{n:.0%}" for n in recorded.novelty.tolist()) or "unknown yet"
        distance = ", ".join(f"{d:.3f}" for d in recorded.distance.tolist())
        lines.append(f"Novelty {novelty} (distance to the nearest remembered: {distance})")
    return lines
