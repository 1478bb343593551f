"""The benchmark of the kernel: each row changes what it says, and nothing stays so."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks import chains
from benchmarks.chains import Sampler, draw, guidance_defaults
from benchmarks.kernel import CHAINS, KERNELS, LATER, ROWS, SHIPPED, TRIED, Kernel, kernel, text
from benchmarks.models import DIGITS
from benchmarks.peers.node import register
from benchmarks.results import RESULTS

IDS = [" ".join(map(str, tried)) for tried in TRIED]


def on_a_sphere(count: int, dim: int = 64) -> Tensor:
    """Samples that lie equally far from their mean, in opposite pairs."""
    drawn = torch.randn(count // 2, dim, generator=torch.Generator().manual_seed(0))
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    return torch.cat([drawn, -drawn])


def radius_and_p(host, samples: Tensor) -> tuple[float, float]:
    """What the pack makes of these samples: the radius, and P in their mean."""
    memory, repulsion = (host.pack(f"guidance.{name}") for name in ("novelty_memory", "repulsion"))
    radius = memory.fitted_radius(samples, memory.FITS[memory.LATENT])
    exact = repulsion.ExactKernel(samples, torch.zeros(len(samples)), radius)
    return radius, exact(samples.mean(dim=0, keepdim=True)).probability.item()


@pytest.mark.parametrize("tried", TRIED, ids=IDS)
def test_a_row_is_what_it_says(fresh_host, tried):
    """P is a half at the radius from a lone sample; the radius is what the row says."""
    sharpness, of_nearest, in_mean = tried
    samples = on_a_sphere(2000)
    nearest = torch.cdist(samples, samples).fill_diagonal_(math.inf).amin(dim=1).median().item()
    shipped = radius_and_p(fresh_host, samples)
    with Kernel(what="", values=kernel(*tried)).applied(fresh_host):
        radius, probability = radius_and_p(fresh_host, samples)
        repulsion = fresh_host.pack("guidance.repulsion")
        lone = repulsion.ExactKernel(samples[:1], torch.zeros(1), radius)
        beside = lone(samples[:1] + radius * samples[1:2]).probability.item()
    assert beside == pytest.approx(0.5, abs=1e-3)
    assert radius == pytest.approx(of_nearest * nearest, rel=1e-3) or (
        radius < of_nearest * nearest and (
            probability == pytest.approx(in_mean, rel=0.02) if in_mean
            else radius == pytest.approx(0.5, rel=1e-3)))
    assert (tried == SHIPPED) == ((radius, probability) == pytest.approx(shipped, rel=1e-6))
    assert radius_and_p(fresh_host, samples) == shipped


def test_another_kernel_draws_other_images(fresh_host, tmp_path, monkeypatch):
    monkeypatch.setattr(chains, "WORK", tmp_path)
    register(fresh_host)
    fresh_host.load_extra("nodes_preview_any")
    defaults = guidance_defaults(fresh_host)

    def drawn(one: Kernel) -> Tensor:
        chain = replace(one.chains(defaults)[0], sampler=Sampler("euler", 3), count=4)
        with one.applied(fresh_host):
            return draw(fresh_host, chain).images

    shipped, other = (Kernel(what="", values=values) for values in ({}, kernel(2, 0.7, 0.05)))
    images = drawn(shipped)
    assert not torch.equal(drawn(other), images)
    assert torch.equal(drawn(shipped), images)


def test_each_row_has_chains_of_its_own():
    defaults = {"radius": 0.0, "cfg_start_percent": 0.35, "early_push": "auto",
                "repulsion": "net"}
    files = [chain.file for one in KERNELS for chain in one.chains(defaults)]
    assert len(set(files)) == len(files)
    shipped = next(one for one in KERNELS if not one.values and not one.plain)
    assert shipped.model == DIGITS and not shipped.changes
    assert len(files) == 2 * (3 * len(ROWS) - len(LATER))
    assert set(CHAINS) == {one.model for one in KERNELS}


def test_the_committed_report_is_that_of_the_committed_figures():
    found = json.loads((RESULTS / "kernel.json").read_text("utf-8"))
    assert text(found["rows"]) == (RESULTS / "kernel.md").read_text("utf-8")
