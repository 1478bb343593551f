"""The figures that `benchmarks.scale` has so far: JSON and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import RESULTS, circumstances, command_line, write_json

LEGEND = """
Synthetic samples in the embedding of Stable Diffusion's latents (256 numbers), of 200 prompts, each
with a fingerprint of its prompt and a preview of 6 kB; see benchmarks/scale_memories.py. Step: what
novelty guidance itself does in one step at 512 x 512, without the model; median and quartiles of
turns in which every size comes once. Record: one new image written to the log and learnt
by the net; when full: one more than max_megabytes allows, so that another is forgotten with each.
Open: from nothing to ready to guide one of the prompts, in a new process that has torch loaded, the
net in its file.
RAM: what that adds to the process. Agreement: rank correlation of P(already generated) of net and
exact kernel, and cosine of their pushes where both P are above .2, each with the radius that it
takes from the memory, over images to come and points up to 1.1 away from remembered ones; in
brackets with prompts taken into account, as is the node's default (-: no P above .2). CPU: seconds
of processor time, of the thread that works (to open: of all), which other work on the machine
disturbs less.
"""


def summary(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The headline figures; None where they are not measured yet."""
    steps = _steps(figures).get("net", {})

    def get(key: str, *path: str) -> float | None:
        found = figures.get(key)
        for name in path:
            found = None if found is None else found.get(name)
        return found

    both = "1000000" in steps and "10" in steps
    return {
        "step_ratio_1m_over_10": round(
            steps["1000000"]["median"] / steps["10"]["median"], 3) if both else None,
        "step_ratio_1m_over_100k": round(
            steps["1000000"]["median"] / steps["100000"]["median"], 3) if (
                both and "100000" in steps) else None,
        "record_seconds_1m": get("record 1000000", "median"),
        "record_when_full_seconds_1m": get("record when full 1000000", "median"),
        "open_seconds_1m": get("open 1000000", "net", "seconds"),
        "bytes_per_sample": get("disk 1000000", "per_sample"),
        "rank_correlation_100k": get("agreement 100000", "rank_correlation"),
        "rank_correlation_100k_prompt_aware": get("agreement 100000",
                                                  "rank_correlation_prompt_aware"),
        "gradient_cosine_100k": get("agreement 100000", "gradient_cosine"),
    }


def write_report(figures: Mapping[str, Any], kinds: Sequence[str]) -> None:
    """benchmarks/results/scale.json and .md."""
    told = circumstances(command_line("scale"))
    headline = {name: round(value, 4) if isinstance(value, float) else value
                for name, value in summary(figures).items()}
    write_json("scale", {"summary": headline, "circumstances": told, "figures": figures})
    lines = ["# Scale: what a memory costs as it grows", "",
             f"`{told['command']}`, {told['date']}, {told['machine']['processor']}, "
             f"{told['machine']['cores']} cores, torch {told['versions']['torch']}", "",
             *(f"- `{name}`: {value}" for name, value in headline.items()), "",
             *_table(figures, kinds), LEGEND.rstrip()]
    (RESULTS / "scale.md").write_text("\n".join(lines) + "\n", "utf-8")


def _steps(figures: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Of the largest number of sizes that were measured in turns."""
    runs = [key for key in figures if key.startswith("steps ")]
    return figures[max(runs, key=len)] if runs else {}


def _table(figures: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    sizes = sorted(int(key.split()[1]) for key in figures if key.startswith("open "))
    steps = _steps(figures)
    rows: dict[str, list[str]] = {}
    for kind in kinds:
        rows[f"step, {kind} (ms)"] = [_spread(steps.get(kind, {}).get(str(n)), 2) for n in sizes]
        rows[f"step, {kind}, CPU (ms)"] = [
            _number(steps.get(kind, {}).get(str(n), {}).get("cpu"), 2) for n in sizes]
    for name in ("record", "record when full"):
        rows[f"{name} (s)"] = [_spread(figures.get(f"{name} {n}"), 3) for n in sizes]
        rows[f"{name}, CPU (s)"] = [
            _number(figures.get(f"{name} {n}", {}).get("cpu"), 3) for n in sizes]
    for kind in kinds:
        opened = [figures[f"open {n}"][kind] for n in sizes]
        rows[f"open, {kind} (s)"] = [
            f"{one['seconds']:.2f} (CPU {one['cpu_seconds']:.2f})" for one in opened]
        rows[f"RAM, {kind} (MB)"] = [f"{one['bytes'] / 1e6:.0f}" for one in opened]
    rows["disk, bytes a sample"] = [f"{figures[f'disk {n}']['per_sample']:.0f}" for n in sizes]
    rows["disk, net (MB)"] = [f"{figures[f'disk {n}']['net'] / 1e6:.1f}" for n in sizes]
    for name, title in (("rank_correlation", "rank correlation"),
                        ("gradient_cosine", "cosine of the pushes"),
                        ("mean_difference", "mean difference of P")):
        rows[f"net and exact: {title}"] = [
            f"{_number(found[name], 3)} ({_number(found[name + '_prompt_aware'], 3) or '-'})"
            if (found := figures.get(f"agreement {n}")) else "" for n in sizes]
    head = ["", *(f"{n:,}" for n in sizes)]
    return [_line(head), "|" + "---|" * len(head),
            *(_line([name, *cells]) for name, cells in rows.items())]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _spread(found: Mapping[str, float] | None, digits: int) -> str:
    return "" if not found else (f"{found['median']:.{digits}f} ({found['low']:.{digits}f} to "
                                 f"{found['high']:.{digits}f})")
