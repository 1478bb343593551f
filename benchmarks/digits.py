"""Are the samples of the shipped digits model digits?

    python dev.py bench digits

Draws 50 samples of each class at CFG 1 through the real KSampler, in one batch a class, and judges
them with the independent classifier: how many are of the asked class, and how many lie within the
manifold of the real digits (k = 5). Writes benchmarks/results/digits.json.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks.chains import MODEL, Chain, Sampler, prompt, start_host
from benchmarks.measures import DigitsMeasure
from benchmarks.results import circumstances, command_line, write_json
from demo.judge import JUDGE_FILE

CHAIN = Chain(sampler=Sampler("euler", 20), cfg=1.0, label=0)
EACH = 50


def main() -> None:
    measure = DigitsMeasure()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        host = start_host(Path(folder), threads=2)
        images = []
        for label in range(10):
            graph = prompt(replace(CHAIN, label=label), item=label)
            graph["latent"]["inputs"]["batch_size"] = EACH
            images.append(host.run(graph).outputs["sampled"][0]["samples"].float())
    features = measure.features(torch.cat(images))
    labels = torch.arange(10).repeat_interleave(EACH)
    with torch.inference_mode():
        hits = measure.judge.head(features).argmax(dim=1) == labels
    inside = (torch.cdist(features, measure.real.features) <= measure.real.radius).any(dim=1)
    colour = torch.cat(images) - torch.cat(images).mean(dim=1, keepdim=True)
    with safe_open(MODEL, "pt") as model, safe_open(JUDGE_FILE, "pt") as judge:
        trained = {"digits": model.metadata(), "judge": judge.metadata()}
    write_json("digits", {
        "summary": {"class_agreement": round(hits.float().mean().item(), 4),
                    "precision": round(inside.float().mean().item(), 4),
                    "colour_rms": round(colour.square().mean().sqrt().item(), 4)},
        "class_agreement_of_each": [round(x.item(), 2) for x in hits.float().split(EACH)
                                    for x in [x.mean()]],
        "samples": len(labels), "sampler": str(CHAIN.sampler), "cfg": CHAIN.cfg,
        "trained": trained, **circumstances(command_line("digits"))})


if __name__ == "__main__":
    main()
