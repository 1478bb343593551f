"""The figures that `benchmarks.overhead` has so far: JSON and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median
from typing import Any

from benchmarks.results import RESULTS, circumstances, command_line, write_json

OWN = ("novelty", "minority")
CPU = 1  # which of a pair of seconds counts: (wall, processor time)
LEGEND = """
Step: one evaluation of the model by KSampler. Own: what the guidance itself does in a step (the
time in its wrappers, without what these enclose), the mean of a run, of all runs the median and
quartiles; a run's first step, which pushes nothing, is left out for novelty. Minority guidance
works in the first half of the denoising; its mean is of all steps. CPU: processor time of the
thread that samples. Ratio: 1 + own / step, both of this; that is what `summary` has. Side by side:
seconds of all steps of a guided run over those of the plain run of the same round and seed, as the
clock had it: on a machine with other work this spreads far wider than what is looked for, and where
CFG begins later, as it does by default with novelty, there is less to do. Image: own work of a run
outside its steps (reading the memory, recording and learning the image), in steps of the model. The
memory has 10,000 samples (the demo models' own ones a few), all of which push; the classifier is
`base` with random weights for the models with latents of four channels, the shipped one for the
avatars.
"""


def own(runs: Sequence[Mapping], names: Iterable[str], clock: int) -> list[float]:
    """Seconds a step of our own code, the mean of each of these runs; of novelty's without the
    first, which pushes nothing."""
    return [sum(mean(pair[clock] for pair in run[name][1 if name == "novelty" else 0:])
                for name in names if name in run)
            + sum(pair[clock] for pair in run.get("adapter", ())) / len(run["model"])
            for run in runs]


def model_steps(runs: Sequence[Mapping], clock: int) -> list[float]:
    return [pair[clock] for run in runs for pair in run["model"][1:] or run["model"]]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return median(ordered), ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


def rows(runs: Sequence[Mapping]) -> dict[str, dict[str, Any]]:
    """Per variant: what a step and an image cost."""
    by = {name: [run for run in runs if run["variant"] == name]
          for name in dict.fromkeys(run["variant"] for run in runs)}
    step = median(model_steps(runs, CPU))
    found = {}
    for variant, some in by.items():
        names = [name for name in OWN if any(name in run for run in some)]
        spent, wall = (own(some, names, clock) if names else [] for clock in (CPU, 0))
        image = [sum(pair[CPU] for name in names for pair in run.get(f"{name} run", ()))
                 for run in some]
        beside = [_seconds(run) / _seconds(plain) for run in some for plain in by.get("plain", ())
                  if plain["round"] == run["round"]]
        found[variant] = {
            "runs": len(some), "step": median(model_steps(some, 0)),
            "step_cpu": median(model_steps(some, 1)),
            "own": quartiles(wall) if wall else None, "own_cpu": median(spent) if spent else None,
            "ratio": 1 + median(spent) / step if spent else 1.0,
            "side_by_side": quartiles(beside) if beside else None,
            "image_in_steps": median(image) / step if names else None,
            "image_seconds": median(image) if names else None}
    return found


def _seconds(run: Mapping) -> float:
    return sum(pair[0] for name in ("model", "adapter", *OWN) for pair in run.get(name, ()))


def summary(figures: Mapping[str, Any]) -> dict[str, float | None]:
    """The headline figures; None where they are not measured yet."""
    large, tiny = (figures.get(part, []) for part in ("sd15 batch 1", "tiny"))
    table = rows(large) if large else {}

    def ratio(*names: str) -> float | None:
        """Of every run that has these, also where others are in it."""
        runs = [run for run in large if all(name in run for name in names)
                and run["variant"] != "features"]
        return 1 + median(own(runs, names, CPU)) / median(model_steps(large, CPU)) if (
            runs) else None

    spent = own([run for run in tiny if run["variant"] == "novelty"], ["novelty"], CPU)
    recorded = [row["image_in_steps"] for name, row in table.items() if name in ("novelty", "both")]
    return {
        "sd15_novelty_latent": ratio("novelty"),
        "sd15_novelty_features": table.get("features", {}).get("ratio"),
        "sd15_minority": ratio("minority"),
        "sd15_both": ratio("novelty", "minority"),
        "record_in_steps": max(recorded) if recorded else None,
        "novelty_us_per_step": 1e6 * median(spent) if spent else None,
        "import_seconds": (median(pair[0] for pair in figures["import"])
                           if figures.get("import") else None)}


def write_report(figures: Mapping[str, Any]) -> None:
    """benchmarks/results/overhead.json and .md."""
    told = circumstances(command_line("overhead"))
    headline = {name: None if value is None else round(value, 4)
                for name, value in summary(figures).items()}
    tables = {part: rows(runs) for part, runs in figures.items() if part != "import" and runs}
    write_json("overhead", {"summary": headline, "circumstances": told, "tables": tables,
                            "figures": figures})
    lines = ["# Overhead: what guidance adds to a step and to an image", "",
             f"`{told['command']}`, {told['date']}, {told['machine']['processor']}, "
             f"{told['machine']['cores']} cores, ComfyUI {told['versions']['comfyui']}, torch "
             f"{told['versions']['torch']}", "",
             *(f"- `{name}`: {value}" for name, value in headline.items())]
    if figures.get("import"):
        wall, busy = ([pair[i] for pair in figures["import"]] for i in (0, 1))
        lines += ["", f"Import of the pack, beyond what the host imports itself: "
                      f"{median(wall):.2f} s ({min(wall):.2f} to {max(wall):.2f}), CPU "
                      f"{median(busy):.2f} s."]
    for part, table in tables.items():
        lines += ["", f"## {part}", "",
                  "| guidance | runs | step (s) | step, CPU (s) | own (ms) | own, CPU (ms) | ratio "
                  "| side by side | image (s) | image (steps) |", "|" + "---|" * 10]
        lines += [_row(name, row) for name, row in table.items()]
    notes = RESULTS / "overhead_notes.md"
    lines += [LEGEND.rstrip(), *([notes.read_text("utf-8").rstrip()] if notes.is_file() else [])]
    (RESULTS / "overhead.md").write_text("\n".join(lines) + "\n", "utf-8")


def _row(name: str, row: Mapping[str, Any]) -> str:
    def three(values: Sequence[float] | None, factor: float, digits: int) -> str:
        return "" if values is None else (
            f"{factor * values[0]:.{digits}f} ({factor * values[1]:.{digits}f} to "
            f"{factor * values[2]:.{digits}f})")

    def one(value: float | None, factor: float, digits: int) -> str:
        return "" if value is None else f"{factor * value:.{digits}f}"

    cells = [name, str(row["runs"]), one(row["step"], 1, 3), one(row["step_cpu"], 1, 3),
             three(row["own"], 1e3, 2), one(row["own_cpu"], 1e3, 2), one(row["ratio"], 1, 4),
             three(row["side_by_side"], 1, 3), one(row["image_seconds"], 1, 3),
             one(row["image_in_steps"], 1, 3)]
    return f"| {' | '.join(cells)} |"
