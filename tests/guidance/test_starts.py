"""The choice among starting noises, around models that are known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.starts import (
    PREVIEW_STEPS, Model, Start, StartSearch, affordable, another, euler, preview_levels)

from .test_novelty import SETTINGS, SPACE, noise, remembered, start

SIGMAS = torch.tensor([14.6, 6.0, 3.0, 1.5, 0.7, 0.3, 0.1, 0.0])


class Watched:
    """A model that counts its evaluations."""

    def __init__(self, model: Model):
        self.model = model
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.sigmas.append(float(sigma))
        return self.model(x, sigma)


def settled(x: Tensor, sigma: Tensor) -> Tensor:
    """What noise stands for is decided at once."""
    return x / (1 + sigma ** 2).sqrt()


def undecided(x: Tensor, sigma: Tensor) -> Tensor:
    """The model of data x0 ~ N(0, I)."""
    return x / (1 + sigma ** 2)


def scaled(one: Tensor) -> Tensor:
    return one * (1 + SIGMAS[0] ** 2).sqrt()


def choose(given: Tensor, memory: Tensor | None, model: Model = settled, candidates: int = 6,
           seed: int = 7, batch: float = 1.0, sigmas: Tensor = SIGMAS, looks_only: bool = False
           ) -> Start:
    search = StartSearch(space=SPACE, radius=SETTINGS.radius, batch=batch, candidates=candidates,
                         repulsion=None if memory is None else remembered(memory),
                         looks_only=looks_only)
    return search.choose(given, seed, scaled, model, sigmas)


def everyone(given: Tensor, candidates: int = 6, seed: int = 7) -> list[Tensor]:
    return [given, *(another(given, seed, number) for number in range(1, candidates))]


@pytest.mark.parametrize("model", [settled, undecided])
@pytest.mark.parametrize("new", range(6))
def test_goes_on_with_the_first_that_is_near_nothing(model, new):
    given = noise(1, seed=100)
    watched = Watched(model)
    start = choose(given, torch.cat(everyone(given)[:new] + [noise(8, seed=1)]), watched)
    assert start.chosen == [new] and start.candidates == new + 1
    assert torch.equal(start.noise, everyone(given)[new])
    assert len(watched.sigmas) == start.candidates * start.steps


def test_goes_on_with_the_least_near_where_all_are_near():
    given = noise(1)
    memory = torch.cat(everyone(given))
    memory[4] += 0.2 * noise(1, seed=1)[0]
    assert choose(given, memory).chosen == [4]


def test_one_look_where_it_shows_the_image_else_previews():
    given = noise(1)
    memory = torch.cat([*everyone(given), noise(8, seed=1)])
    quick, slow = Watched(settled), Watched(undecided)
    assert choose(given, memory, quick, candidates=3).steps == 1
    assert quick.sigmas == pytest.approx([14.6] * 3)
    assert choose(given, memory, slow, candidates=3).steps == PREVIEW_STEPS
    assert slow.sigmas == pytest.approx([14.6, 6.0, 1.5, 0.3] * 3)


def test_a_single_remembered_image_does_not_tell_what_is_settled():
    assert choose(noise(1), noise(1, seed=1)).steps == PREVIEW_STEPS


def test_levels_of_a_preview_come_from_the_schedule():
    assert preview_levels(SIGMAS).tolist() == SIGMAS[[0, 1, 3, 5]].tolist()
    assert preview_levels(SIGMAS[-3:]).tolist() == SIGMAS[[5, 6]].tolist()


def test_a_preview_is_a_run_of_eulers_method():
    x = scaled(noise(1))
    *_, seen = euler(undecided, x, SIGMAS[:-1])
    expected = x
    for sigma, following in zip(SIGMAS[:-2], SIGMAS[1:-1], strict=True):
        slope = (expected - undecided(expected, sigma)) / sigma
        expected = expected + slope * (following - sigma)
    torch.testing.assert_close(seen, undecided(expected, SIGMAS[-2]))


def test_images_of_a_batch_start_apart_and_the_first_as_it_would_alone():
    given, memory = noise(1).repeat(3, 1, 1, 1), noise(4, seed=1)
    together, alone = choose(given, memory), choose(given[:1], memory)
    assert len({*together.chosen}) > 1
    assert torch.equal(together.noise[:1], alone.noise)
    assert choose(given, None).chosen[0] == 0


def test_without_repulsion_in_the_batch_each_is_chosen_by_the_memory_alone():
    given = noise(1).repeat(3, 1, 1, 1)
    assert choose(given, noise(4, seed=1), batch=0.0).chosen == [0, 0, 0]


def test_a_run_starts_its_batch_apart_as_much_as_it_pushes_it_apart():
    given = noise(1).repeat(3, 1, 1, 1)
    alike, apart = (start(remembered(noise(4, seed=1)), batch=batch).choose_start(
        6, given, 7, scaled, settled, SIGMAS) for batch in (0.0, 1.0))
    assert torch.equal(alike, given) and not torch.equal(apart, given)


def test_tries_on_until_every_image_of_a_batch_is_far():
    given = noise(2, seed=100)
    found = choose(given, torch.cat([given[:1], noise(8, seed=1)]))
    assert found.chosen == [1, 0] and found.candidates == 2


def test_what_is_not_finite_is_not_chosen():
    given = noise(1)
    memory = torch.cat(everyone(given, 3) + [noise(8, seed=1)])

    def broken(x: Tensor, sigma: Tensor) -> Tensor:
        denoised = settled(x, sigma)
        return denoised * torch.nan if torch.equal(x, scaled(given)) else denoised

    assert choose(given, memory, broken, candidates=3).chosen in ([1], [2])


def test_depends_on_the_seed_alone_and_leaves_the_global_random_state():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, second = (choose(noise(1), noise(1), seed=seed) for seed in (7, 7))
    assert first.chosen == [1] and torch.equal(first.noise, second.noise)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(another(noise(1), 7, 1), another(noise(1), 8, 1))


def test_no_candidate_is_the_noise_of_a_seed_nearby():
    nearby = [noise(1, seed) for seed in range(20)]
    for candidate in everyone(noise(1), candidates=9)[1:]:
        assert not any(torch.equal(candidate, one) for one in nearby)


def test_candidates_are_standard_normal_and_unlike_one_another():
    many = torch.cat([another(torch.empty(4, 3, 32, 32), 5, number) for number in range(1, 9)])
    assert many.mean().abs() < 0.01 and (many.std() - 1).abs() < 0.01
    likeness = torch.corrcoef(many.flatten(1)) - torch.eye(len(many))
    assert likeness.abs().max() < 0.1


def test_looks_only_never_previews():
    given, others = noise(1, seed=100), noise(8, seed=1)
    memory = torch.cat([given, others])
    watched = Watched(undecided)
    assert choose(given, memory, watched, looks_only=True).steps == 1
    assert {*watched.sigmas} == {float(SIGMAS[0])}
    first = choose(given, memory, settled, looks_only=True)
    assert first.chosen == choose(given, memory, settled).chosen == [1]


def test_a_run_can_afford_a_fifth_of_its_steps():
    assert [affordable(steps) for steps in (1, 4, 9, 10, 15, 20, 30, 100)] == [
        1, 1, 1, 2, 3, 4, 4, 4]
