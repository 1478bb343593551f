"""The minority score of a data set whose denoiser is known in closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from guidance.distances import load_distance
from guidance.minority_score import (
    MinorityScorer,
    default_sigma,
    flow_time,
    noise_for,
    same_answer,
)
from guidance.noise_level import NoiseLevel

SIGMA = 0.5
HASHES = [f"hash {i}" for i in range(7)]


def posterior_mean(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """x0-hat of x = x0 + sigma n for data that is -1 with weight .9 and +1 with weight .1, each
    with standard deviation .1 in every value."""
    variance = 0.1 ** 2 + sigma ** 2
    centres = torch.tensor([-1.0, 1.0])
    squared = torch.stack([(x - c).square().flatten(1).sum(1) for c in centres], dim=1)
    weight = (torch.tensor([0.9, 0.1]).log() - squared / (2 * variance)).softmax(1)
    means = [c + 0.1 ** 2 / variance * (x - c) for c in centres]
    return sum(weight[:, i].view(-1, 1, 1, 1) * mean for i, mean in enumerate(means))


def scorer(sigma: float = SIGMA, **changes) -> MinorityScorer:
    settings = {"denoise": lambda x0, noise: posterior_mean(x0 + sigma * noise, sigma),
                "view": lambda latents: latents, "distance": load_distance("latent_l2"),
                "draws": 5}
    return MinorityScorer(**settings | changes)


@pytest.fixture
def latents() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 3, 4, 4, generator=generator)


def test_it_is_the_closed_form_of_the_papers_corollary(latents):
    scores = scorer(seed=3).scores(latents, HASHES)
    for i, (x0, content_hash) in enumerate(zip(latents.double(), HASHES, strict=True)):
        noise = torch.stack([noise_for(content_hash, 3, draw, x0.shape) for draw in range(5)])
        x_t = x0 + SIGMA * noise.double()
        epsilon = (x_t - posterior_mean(x_t, SIGMA)) / SIGMA
        expected = SIGMA ** 2 * (epsilon - noise).square().mean()
        assert scores[i].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_rare_cluster_scores_higher_than_the_common_one():
    generator = torch.Generator().manual_seed(2)
    x0 = 0.1 * torch.randn(200, 1, 1, 1, generator=generator)
    x0[:100] -= 1
    x0[100:] += 1
    scores = scorer(1.0).scores(x0, [str(i) for i in range(200)])
    assert scores[100:].mean() > 3 * scores[:100].mean()


def test_a_score_does_not_depend_on_order_batch_or_company(latents):
    scores = scorer().scores(latents, HASHES)
    order = [4, 2, 6, 0]
    assert torch.allclose(scorer(batch=3).scores(latents[order], [HASHES[i] for i in order]),
                          scores[order], rtol=1e-6)


def test_seed_and_content_choose_the_noise(latents):
    same = latents[:1].repeat(2, 1, 1, 1)
    one, other = scorer().scores(same, ["a", "b"])
    assert one != other
    assert scorer(seed=1).scores(same, ["a", "b"])[0] != one
    before = torch.get_rng_state()
    assert torch.equal(scorer().scores(same, ["a", "b"]), torch.stack([one, other]))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_noise_is_standard_normal_and_differs_between_draws():
    noise = torch.stack([noise_for("a", 0, draw, (3, 32, 32)) for draw in range(8)])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert abs(torch.corrcoef(noise.flatten(1)) - torch.eye(8)).max() < 0.07


def test_no_more_evaluations_go_together_than_the_batch(latents):
    sizes = []

    def denoise(x0, noise):
        sizes.append(len(x0))
        return x0

    assert scorer(denoise=denoise, batch=16).scores(latents, HASHES).tolist() == [0] * 7
    assert sizes == [16, 16, 3]


def test_the_distance_compares_what_the_view_shows(latents):
    seen = []

    def distance(original, restored):
        seen.append((original, restored))
        return original.flatten(1).mean(1)

    scores = scorer(view=lambda x: x.flatten(2) + 2, distance=distance,
                    batch=4).scores(latents, HASHES)
    assert torch.allclose(scores, latents.flatten(1).mean(1) + 2)
    assert all(original.ndim == restored.ndim == 3 for original, restored in seen)


def test_a_score_that_is_not_finite_stays_visible(latents):
    latents[2] = torch.nan
    scores = scorer().scores(latents, HASHES)
    assert torch.isfinite(scores).tolist() == [i != 2 for i in range(7)]


@pytest.mark.parametrize("noise_scale", [1.0, 2.5])
@pytest.mark.parametrize("sigma", [0.01, 1.0, 6.4, 1000.0])
def test_flow_time_has_the_asked_for_ratio_of_noise_to_signal(sigma, noise_scale):
    level = NoiseLevel.flow(torch.tensor([flow_time(sigma, noise_scale)], dtype=torch.float64),
                            noise_scale)
    assert (level.noise / level.signal).item() == pytest.approx(sigma)


def test_a_flow_model_and_its_variance_exploding_twin_give_one_score(latents):
    """x_t of flow at the mapped time is a multiple of x0 + sigma n, so x0-hat is the same."""
    t = flow_time(SIGMA)
    flow = scorer(denoise=lambda x0, noise: posterior_mean(
        ((1 - t) * x0 + t * noise) / (1 - t), SIGMA))
    assert torch.allclose(flow.scores(latents, HASHES), scorer().scores(latents, HASHES), rtol=1e-4)


def test_an_answer_tells_denoisers_apart_and_allows_for_rounding(latents):
    answer = scorer().answer(latents)
    assert same_answer(answer, scorer(batch=2).answer(latents))
    assert same_answer(answer, scorer(
        denoise=lambda x0, noise: posterior_mean(x0 + SIGMA * noise, SIGMA) * (1 + 1e-4)
    ).answer(latents))
    other = replace(scorer(), denoise=lambda x0, noise: posterior_mean(
        x0 + SIGMA * noise, SIGMA) + 0.01)
    assert not same_answer(answer, other.answer(latents))
    decoder = replace(scorer(), view=lambda x: x * 1.01)
    assert not same_answer(answer, decoder.answer(latents))
    assert not same_answer(answer, answer[:-1])


def test_an_answer_is_bounded(latents):
    large = torch.zeros(1, 3, 256, 256)
    assert len(scorer().answer(large)) <= 4097


def test_default_noise_follows_the_side():
    assert default_sigma(256, 256) == pytest.approx(6.4)
    assert default_sigma(64, 64) == pytest.approx(1.6)
    assert default_sigma(32, 128) == default_sigma(64, 64)
