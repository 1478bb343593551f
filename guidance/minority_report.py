"""What the minority nodes tell the user after a run."""

from __future__ import annotations

import math

from .minority import MinorityFigures
from .self_guided import SelfGuidedFigures
from .step_window import Passed


def minority_report(target: int | None, classes: int, weight: float,
                    figures: MinorityFigures) -> str:
    """A few lines: what was climbed, and what was pushed or why nothing was.

    target: the class, None in mode mixed; weight: the scale, or beta in mode mixed.
    """
    aim = (f"Towards class {target} of {classes} (0 common, {classes - 1} rare)"
           if target is not None else f"Towards a higher score, mixed over {classes} classes")
    name = "scale" if target is not None else "beta"
    if reason := _nothing(name, weight, figures.passed):
        return f"{aim}\n{reason}"
    if figures.pushed == 0:
        return f"{aim}\nNothing pushed: all {figures.dropped} pushes were not finite. Lower {name}."
    lines = [aim, _pushed(figures)]
    if figures.computed < figures.pushed:
        lines.append(f"The classifier ran {figures.computed} times.")
    first, last = figures.first, figures.last
    if target is not None:
        lines.append(f"log p(class {target}): {first:.3f} at the first push, {last:.3f} at the "
                     "last")
    else:
        lines.append(f"Expected score: {math.exp(first):.4f} at the first push, "
                     f"{math.exp(last):.4f} at the last")
    return "\n".join(lines)


def self_guided_report(mode: str, scale: float, figures: SelfGuidedFigures) -> str:
    """A few lines: what was pushed or why nothing was."""
    if reason := _nothing("scale", scale, figures.passed):
        return reason
    if figures.pushed == 0:
        return f"Nothing pushed: all {figures.dropped} pushes were not finite. Lower scale."
    if figures.mean_push == 0:
        return ("Nothing pushed: the image is restored from too little noise to come out "
                "different. Lower renoise_percent.")
    return "\n".join([
        f"Away from what the model restores ({mode})", _pushed(figures),
        f"Distance to the restored image: {figures.first:.4f} at the first push, "
        f"{figures.last:.4f} at the last"])


def boost_report(gamma: float, skip: int, clips: bool, before: list[float],
                 after: list[float]) -> str:
    """gamma, skip: the inputs; clips: whether x0-hat was kept between -1 and 1; before, after:
    sigma at which the run began, and begins now, empty for a run without a schedule."""
    if gamma == 1 and skip == 0:
        return "Nothing done: gamma is 1 and skip is 0."
    parts = [] if gamma == 1 else [f"initial noise times {gamma:g}"]
    if skip:
        parts.append(f"first {skip} {'step' if skip == 1 else 'steps'} skipped: begins at sigma "
                     f"{after[0]:.4g} in place of {before[0]:.4g}")
    if clips:
        parts.append("pixels kept in their range")
    text = ", ".join(parts)
    return text[0].upper() + text[1:]


def _nothing(name: str, weight: float, passed: Passed) -> str | None:
    """Why no push was tried, if none was."""
    if weight == 0:
        return f"Nothing pushed: {name} is 0."
    if passed.evaluations == 0:
        return "Nothing pushed: the run has no steps."
    if passed.outside == passed.evaluations:
        return "Nothing pushed: no step lies between start_percent and end_percent."
    if passed.outside + passed.out_of_range == passed.evaluations:
        return ("Nothing pushed: all steps lie outside the noise levels that the push is made "
                "for; start_percent and end_percent leave none of these.")
    return None


def _pushed(figures: MinorityFigures | SelfGuidedFigures) -> str:
    passed = figures.passed
    text = (f"Pushed at {figures.pushed} of {passed.evaluations} evaluations, by "
            f"{figures.mean_push:.3f} of the noise removed on average")
    if passed.out_of_range:
        text += (f"; left alone at {passed.out_of_range}, outside the noise levels that the push "
                 "is made for")
    if figures.dropped:
        text += f"; {figures.dropped} pushes dropped because they were not finite"
    return text
