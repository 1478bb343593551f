"""The kernel of P: how narrow it is, how far it reaches, and where that stops.

    python dev.py bench kernel [--jobs 2] [--report]

Draws chains of 256 images one after the other through the real KSampler, each row with another
kernel and all else as by default, on the digits, the small DiT and the distilled student in 4
steps. Chains that are drawn already are kept, so it can be stopped and run again at any time.
Writes benchmarks/results/kernel.json and .md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.chains import Sampler
from benchmarks.designs import Change, DesignChain, draw_design, run
from benchmarks.models import DIGITS
from benchmarks.results import RESULTS, circumstances, write_json
from benchmarks.workers import Place
from guidance.fitted_radius import ENOUGH, LATENTS, Fit
from guidance.novelty_memory import FITS, LATENT

COUNT = 256
DIT, STUDENT = "avatars-dit", "digits-distilled"
CHAINS = {
    DIGITS: [DesignChain(sampler=Sampler("euler", 20), cfg=3.0, label=label, model=DIGITS)
             for label in (0, 3)],
    DIT: [DesignChain(sampler=Sampler("euler", 20), cfg=3.0, label=label, model=DIT)
          for label in (0, 1)],
    STUDENT: [DesignChain(sampler=Sampler("euler", 4), cfg=1.0, label=label, model=STUDENT)
              for label in (0, 3)]}
TITLES = {DIGITS: "digits, CFG 3", DIT: "small DiT, CFG 3", STUDENT: "student, 4 steps"}
REPULSION, RADIUS, MATES, MEMORY = (
    f"guidance.{name}" for name in ("repulsion", "fitted_radius", "batch_mates", "novelty_memory"))


@dataclass(frozen=True, kw_only=True)
class Kernel(Change):
    def chains(self, defaults: dict[str, Any]) -> list[DesignChain]:
        guidance = None if self.plain else {**defaults, **self.guidance}
        return [replace(chain, count=COUNT, guidance=guidance, design=self.changes)
                for chain in CHAINS[self.model]]


def half_the_spread(samples: Tensor, fit: Fit, count: float | None = None) -> float:
    """The radius before: at most half of how far the samples spread, in place of fit.in_mean."""
    if len(samples) < ENOUGH:
        return fit.unknown
    spread = (samples - samples.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    nearest = torch.cdist(samples, samples).fill_diagonal_(torch.inf).amin(dim=1).median()
    return float(torch.minimum(fit.of_nearest * nearest, spread / 2))


def kernel(sharpness: float, of_nearest: float, in_mean: float | None
           ) -> dict[tuple[str, str], Any]:
    """sharpness: radii to a bandwidth; of_nearest, in_mean: see Fit; None: half of the spread."""
    edge = sharpness ** 2 / 2
    fit = replace(LATENTS, of_nearest=of_nearest, in_mean=in_mean or LATENTS.in_mean)
    return {(REPULSION, "SHARPNESS"): sharpness, (MEMORY, "FITS"): {**FITS, LATENT: fit},
            **{(module, "EDGE"): edge for module in (REPULSION, RADIUS, MATES)},
            **({} if in_mean else {(MEMORY, "fitted_radius"): half_the_spread})}


LATER = (0.42, 0.5)
SHIPPED = (3, 0.9, 0.02)
TRIED = ((2, 0.7, None), (2, 0.7, 0.05), (2, 0.8, 0.2),
         (3, 0.9, 0.01), SHIPPED, (3, 0.9, 0.05),
         (4, 0.9, 0.01), (4, 1.0, 0.05), (6, 1.0, 0.05))


def _named(sharpness: float, of_nearest: float, in_mean: float | None) -> str:
    def short(value: float) -> str:
        return f"{value:g}".removeprefix("0")
    return (f"{sharpness:g} | {short(of_nearest)} | "
            f"{f'P {short(in_mean)}' if in_mean else 'half the spread'}")


ROWS: tuple[dict[str, Any], ...] = (
    {"what": "seed change only", "plain": True},
    *({"what": _named(*tried), "values": {} if tried == SHIPPED else kernel(*tried)}
      for tried in TRIED),
    {"what": "shipped, *strength* .6", "guidance": {"strength": 0.6}},
    {"what": "shipped, *end_percent* .75", "guidance": {"end_percent": 0.75}},
    *({"what": f"shipped, *cfg_start_percent* {f'{later:g}'[1:]}",
       "guidance": {"cfg_start_percent": later}} for later in LATER))
KERNELS = tuple(Kernel(model=model, **row) for row in ROWS for model in CHAINS
                if CHAINS[model][0].cfg > 1 or "cfg_start_percent" not in row.get("guidance", {}))


def draw_and_save(place: Place, chain: DesignChain) -> int:
    return draw_design(KERNELS, place, chain)


def write_report(rows: Sequence[Mapping[str, Any]]) -> None:
    """benchmarks/results/kernel.json and .md."""
    write_json("kernel", {"rows": rows, **circumstances("python dev.py bench kernel")})
    (RESULTS / "kernel.md").write_text(text(rows), "utf-8")


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    found = {(row["model"], row["what"]): row["chains"] for row in rows}

    def cell(chains: Sequence[Mapping[str, Any]] | None) -> str:
        if chains is None:
            return ""
        distinct, good = (mean(one[key] for one in chains) for key in ("distinct_good", "good"))
        return f"{distinct:.0f} ({good:.3f})"

    return "\n".join([
        "# The kernel of P", "", "`python dev.py bench kernel`", "",
        f"Of {COUNT} images of a class, one after the other, how many are good and unlike every",
        "good one before, and the share of good images in brackets; mean of two classes, euler 20",
        "but for the student, one set of seeds. Of the nearest: the radius, as a share of the",
        "median distance from a sample to its nearest. At most: what P is in the mean of the",
        "samples with the largest radius that is allowed. The shipped kernel is that of "
        f"{_named(*SHIPPED).replace(' |', ',')}.", "",
        f"| kernel: radius in bandwidths | of the nearest | at most | "
        f"{' | '.join(TITLES[model] for model in CHAINS)} |", "|---|---|---" + "|---" * len(CHAINS)
        + "|",
        *(f"| {what if '|' in what else f'{what} | |'} | "
          f"{' | '.join(cell(found.get((model, what))) for model in CHAINS)} |"
          for what in dict.fromkeys(row["what"] for row in rows)), ""])


def main() -> None:
    run("kernel", __doc__, KERNELS, draw_and_save, write_report)


if __name__ == "__main__":
    main()
