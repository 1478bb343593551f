"""Every kind of model, sampler and schedule of the host, around both guidances: pair by pair.

`python dev.py bench matrix` draws all of their product.
"""

from __future__ import annotations

import gc
from collections import Counter

import pytest
import torch

from benchmarks.pairwise import all_pairs, pairs, pairwise

PARTS = 12


@pytest.fixture(scope="module")
def matrix(host, tmp_path_factory):
    from benchmarks.matrix_case import Matrix

    yield Matrix(host, tmp_path_factory.mktemp("matrix"))
    gc.unfreeze()


@pytest.fixture(scope="module")
def rows(host) -> list[dict]:
    from benchmarks.matrix_case import axes

    return pairwise(axes())


@pytest.fixture(scope="module")
def counts() -> Counter:
    return Counter()


@pytest.fixture(scope="module", params=["sd15-eps", "sdxl-v-zsnr", "sdxl-edm", "cascade",
                                        "sd3-flow", "flux", "cosmos-flow", "wan-flow"])
def case(request, host):
    """Makes cases of one kind of model."""
    from benchmarks.matrix_case import Case

    def make(guidance: str, sampler: str = "euler", scheduler: str = "normal", cfg: float = 1.0):
        return Case(model=request.param, sampler=sampler, scheduler=scheduler, cfg=cfg,
                    guidance=guidance)
    return make


@pytest.mark.parametrize("values", [(3, 4, 2), (2, 2, 2, 2, 2), (5, 1, 3, 3)])
def test_few_rows_hold_every_pair(values):
    axes = {str(i): list(range(count)) for i, count in enumerate(values)}
    rows = pairwise(axes)
    assert set().union(*map(pairs, rows)) == all_pairs(axes)
    longest = sorted(values)[-2:]
    assert longest[0] * longest[1] <= len(rows) <= 2 * longest[0] * longest[1]
    assert rows == pairwise(axes) != pairwise(axes, seed=1)


def test_the_rows_hold_every_pair_of_what_the_host_offers(rows):
    import comfy.samplers

    from benchmarks.matrix_case import axes
    assert {row["sampler"] for row in rows} == {*comfy.samplers.KSampler.SAMPLERS}
    assert {row["scheduler"] for row in rows} == {*comfy.samplers.KSampler.SCHEDULERS}
    assert set().union(*map(pairs, rows)) == all_pairs(axes())


def test_the_models_are_of_every_kind_of_prediction(matrix):
    """As the host numbers them; the last three it makes no new images with, or see below."""
    from comfy.model_base import ModelType

    from demo.host.small_models import MODELS
    found = {matrix.model(name).model.model_type for name in MODELS}
    sampling = matrix.model("sd15-v-continuous").get_model_object("model_sampling")
    assert type(sampling).__mro__[1].__name__ == "ModelSamplingContinuousV"
    assert {*ModelType} - found == {
        ModelType.V_PREDICTION_CONTINUOUS,  # sd15-v-continuous, set by a node
        ModelType.IMG_TO_IMG, ModelType.IMG_TO_IMG_FLOW,  # refused: test_compatibility.py
        ModelType.V_PREDICTION_DDPM}  # mixes noise as EPS: test_noise_level_of_every_kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_cases(matrix, rows, counts, part):
    from benchmarks.matrix_case import Case

    failed = []
    for row in rows[part::PARTS]:
        outcome = matrix.check(Case(**row))
        if outcome.failures:
            failed.append((row, outcome.failures))
        counts.update(cases=1, refused=outcome.refused is not None, pushed=outcome.pushed,
                      evaluations=outcome.evaluations, off_grid=outcome.off_grid,
                      outside=outcome.outside, early=outcome.early)
    assert not failed


def test_the_cases_were_not_idle(counts):
    """They pushed, at levels of the schedule and between them, and some lay outside the window."""
    assert counts["refused"] == 0
    assert counts["pushed"] > counts["cases"]
    assert counts["early"] > counts["cases"] / 10
    assert counts["off_grid"] > counts["cases"] / 4
    assert counts["outside"] > counts["cases"] / 4


def test_noise_level_of_every_kind(host):
    """Against the host's own mixing of image and noise."""
    import comfy.model_base
    import comfy.supported_models_base
    from comfy.model_base import ModelType

    from benchmarks.closed_form import signal_and_noise
    config = comfy.supported_models_base.BASE({})
    refused = (ModelType.IMG_TO_IMG, ModelType.IMG_TO_IMG_FLOW)
    for kind in {*ModelType} - {*refused}:
        sampling = comfy.model_base.model_sampling(config, kind)
        for percent in (0.01, 0.3, 0.6, 0.99):
            sigma = torch.tensor([sampling.percent_to_sigma(percent)], dtype=torch.float64)
            level = host.pack("nodes._host").noise_level(sampling, sigma)
            expected = signal_and_noise(sampling, sigma)
            assert torch.allclose(level.signal, expected[0]), kind
            assert torch.allclose(level.noise, expected[1]), kind
    for kind in refused:
        sampling = comfy.model_base.model_sampling(config, kind)
        assert isinstance(sampling, host.pack("nodes._host").NOT_DIFFUSION)


@pytest.mark.parametrize("guidance", ["novelty", "minority"])
def test_stronger_pushes_farther(matrix, case, guidance):
    """In proportion: the first push, before which all runs are one."""
    one, found = case(guidance), []
    for strength in (0.25, 0.5, 1.0, 2.0):
        model, outer, inner = matrix.guided(one, strength)
        matrix.draw(model, one)
        pushes = [((inside.x - outside.x) + (outside.out - inside.out)).flatten(1).norm(dim=1)
                  for outside, inside in zip(outer.seen, inner.seen, strict=True)]
        found.append(next(push for push in pushes if push.any()))
    for weaker, stronger in zip(found, found[1:], strict=False):
        assert torch.allclose(stronger, 2 * weaker, rtol=2e-3)


@pytest.mark.parametrize("guidance", ["novelty", "minority", "novelty+minority"])
def test_each_image_of_a_batch_is_drawn_as_if_alone(matrix, case, guidance):
    from demo.host.small_models import MODELS
    one = case(guidance)
    latent = MODELS[one.model].latent(3)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    model, outer, inner = matrix.guided(one)
    together = matrix.draw(model, one, latent=latent, noise=noise)
    assert any((inside.x != outside.x).any() or (inside.out != outside.out).any()
               for outside, inside in zip(outer.seen, inner.seen, strict=True))
    for i in range(3):
        alone = matrix.draw(model, one, latent=latent[:1], noise=noise[i:i + 1])
        assert torch.allclose(together[i:i + 1], alone, rtol=1e-3, atol=1e-3 * alone.std().item())


@pytest.mark.parametrize("kinds", ["novelty+minority", "minority+minority", "novelty+novelty"])
def test_two_nodes_add_up_in_either_order(matrix, case, kinds):
    """The same sum at every evaluation, to the last: the images are the same."""
    one = case(kinds)
    drawn = []
    for order in (1, -1):
        model = matrix.model(one.model)
        nodes = [("novelty", 0.3), ("novelty", 0.6)] if kinds == "novelty+novelty" else [
            ("minority", 3.0), ("minority", 1.0)] if kinds == "minority+minority" else [
            ("novelty", 0.5), ("minority", 3.0)]
        for kind, strength in nodes[::order]:
            if kind == "novelty":
                matrix.remember(one.model)
                model = matrix.with_novelty(model, one.model, strength=strength)
            else:
                model = matrix.with_minority(model, scale=strength)
        drawn.append(matrix.draw(model, one, steps=4))
    plain = matrix.draw(matrix.model(one.model), one, steps=4)
    rounding = (drawn[0] - drawn[1]).abs().max()
    assert rounding <= 1e-4 * drawn[0].std()
    assert (drawn[0] - plain).abs().max() > 1e-3 * drawn[0].std() + 20 * rounding
