"""Are the samples of the shipped digits models digits?

    python dev.py bench digits

Draws 50 samples of each class through the real KSampler, in one batch a class, and judges them
with the independent classifier: how many are of the asked class, how many lie within the manifold
of the real digits (k = 5), and how much they vary (Vendi score of a class, mean over the classes).
`digits` at CFG 1; its guidance-distilled student at CFG 1 in 20 steps and in 4, beside `digits` at
the CFG that the student has within it. Writes benchmarks/results/digits.json.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.chains import Chain, Sampler, prompt, start_host
from benchmarks.measures import DigitsMeasure, vendi_score
from benchmarks.results import circumstances, command_line, write_json
from demo.diffusion import MODELS
from demo.digits_distilled import CFG
from demo.host import InProcessHost

CHAIN = Chain(sampler=Sampler("euler", 20), cfg=1.0, label=0)
FEW = Sampler("euler", 4)
EACH = 50
LABELS = torch.arange(10).repeat_interleave(EACH)
DISTILLED = "digits_distilled"


def draw(host: InProcessHost, model: str, chain: Chain) -> Tensor:
    """EACH images of each class, `[500, 3, 16, 16]`."""
    images = []
    for label in range(10):
        graph = prompt(replace(chain, label=label), item=label)
        graph["model"]["inputs"]["model_name"] = model
        graph["latent"]["inputs"]["batch_size"] = EACH
        images.append(host.run(graph).outputs["sampled"][0]["samples"].float())
    return torch.cat(images)


def judge(measure: DigitsMeasure, images: Tensor) -> tuple[dict[str, float], list[float]]:
    """The figures of `draw`'s images, and the agreement of each class."""
    features = measure.features(images)
    with torch.inference_mode():
        hits = (measure.judge.head(features).argmax(dim=1) == LABELS).float()
    inside = (torch.cdist(features, measure.real.features) <= measure.real.radius).any(dim=1)
    colour = images - images.mean(dim=1, keepdim=True)
    vendi = [vendi_score(some) for some in features.split(EACH)]
    figures = {"class_agreement": hits.mean(), "precision": inside.float().mean(),
               "colour_rms": colour.square().mean().sqrt(), "vendi": torch.tensor(vendi).mean()}
    return ({name: round(value.item(), 4) for name, value in figures.items()},
            [round(some.mean().item(), 2) for some in hits.split(EACH)])


def main() -> None:
    argparse.ArgumentParser(prog="python dev.py bench digits", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    measure = DigitsMeasure()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        host = start_host(Path(folder), threads=2)
        summary, each = judge(measure, draw(host, "digits", CHAIN))
        others = {"digits_guided": ("digits", replace(CHAIN, cfg=CFG)),
                  DISTILLED: (DISTILLED, CHAIN),
                  f"{DISTILLED}_{FEW.steps}_steps": (DISTILLED, replace(CHAIN, sampler=FEW))}
        judged = {name: judge(measure, draw(host, model, chain))
                  for name, (model, chain) in others.items()}
    for name, (figures, _) in judged.items():
        summary |= {f"{name}_{figure}": value for figure, value in figures.items()}
    trained = {}
    for name, file in {"digits": "digits", DISTILLED: DISTILLED, "judge": "digits_judge"}.items():
        with safe_open(MODELS / f"{file}.safetensors", "pt") as model:
            trained[name] = model.metadata()
    write_json("digits", {
        "summary": summary, "class_agreement_of_each": each, "samples": len(LABELS),
        "sampler": str(CHAIN.sampler), "cfg": CHAIN.cfg,
        "others": {name: {"model": model, "sampler": str(chain.sampler), "cfg": chain.cfg,
                          "class_agreement_of_each": judged[name][1]}
                   for name, (model, chain) in others.items()},
        "trained": trained, **circumstances(command_line("digits"))})


if __name__ == "__main__":
    main()
