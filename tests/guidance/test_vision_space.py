"""The space of a vision model, and a run in it, around a small one that is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from guidance.noise_level import NoiseLevel
from guidance.novelty import NoveltySettings
from guidance.ordinary_weights import ordinary_state
from guidance.repulsion import ExactKernel
from guidance.step_window import StepWindow
from guidance.vision_novelty import VisionRun
from guidance.vision_space import LENGTH, StraightThrough, VisionError, VisionSpace

SHAPE = (3, 8, 8)
NET = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 32), torch.nn.Tanh(),
                          torch.nn.Linear(32, 12))
SETTINGS = NoveltySettings(strength=0.3, radius=0.15, sigma_start=10.0, sigma_end=0.0)
SCHEDULE = (8.0, 4.0, 2.0, 1.0, 0.5, 0.0)


@pytest.fixture(autouse=True)
def weights():
    generator = torch.Generator().manual_seed(0)
    for weight in NET.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5
        weight.requires_grad_(False)


def noise(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


SPACE = VisionSpace("small/abc", NET)


def test_an_embedding_is_a_direction():
    x = noise(3)
    assert SPACE.id == "vision/1/small/abc"
    seen = SPACE.embed(x)
    assert torch.allclose(seen.norm(dim=1), torch.full((3,), LENGTH))
    assert torch.allclose(seen, LENGTH * torch.nn.functional.normalize(NET(x), dim=1))


def test_tokens_are_averaged():
    tokens = VisionSpace("tokens", lambda x: x.flatten(2))
    averaged = VisionSpace("averaged", lambda x: x.flatten(2).mean(1))
    assert torch.allclose(tokens.embed(noise(2)), averaged.embed(noise(2)), atol=1e-6)


def test_pull_back_against_finite_differences():
    x, away = noise(2).double(), torch.randn(2, 12, generator=torch.Generator().manual_seed(5))
    space = VisionSpace("double", NET.double())
    away = away.double()
    try:
        displacement, seen = space.pulled_back(x, lambda seen: (away, seen))
        assert torch.equal(seen, space.embed(x))
        gradient = torch.zeros_like(x).flatten(1)
        for place in range(gradient.shape[1]):
            step = torch.zeros_like(gradient)
            step[:, place] = 1e-3
            step = step.view_as(x)
            change = (space.embed(x + step) - space.embed(x - step)) / 2e-3
            gradient[:, place] = (change * away).sum(1)
    finally:
        NET.float()
    flat = displacement.flatten(1)
    assert torch.allclose(flat / flat.norm(dim=1, keepdim=True),
                          gradient / gradient.norm(dim=1, keepdim=True), atol=1e-3)
    expected = away.norm(dim=1) / LENGTH * x.flatten(1).norm(dim=1)
    assert torch.allclose(flat.norm(dim=1), expected)


def test_samples_of_a_batch_are_pulled_back_one_by_one():
    x, away = noise(2), torch.randn(2, 12, generator=torch.Generator().manual_seed(5))
    both, _ = SPACE.pulled_back(x, lambda seen: (away, seen))
    one, _ = SPACE.pulled_back(x[:1], lambda seen: (away[:1], seen))
    assert torch.allclose(both[:1], one, atol=1e-5)


def test_no_push_is_no_displacement():
    x = noise(1)
    displacement, _ = SPACE.pulled_back(x, lambda seen: (torch.zeros_like(seen), seen))
    assert torch.equal(displacement, torch.zeros_like(x))


def test_steps_hand_gradients_on_and_do_what_they_do():
    with torch.enable_grad():
        x = torch.tensor([-0.5, 0.302, 1.7], requires_grad=True)
        with StraightThrough():
            y = torch.clip(255 * x, 0, 255).round() / 255
            z = x.clone().mul_(2.0).clamp_(0.0, 1.0)
        assert torch.allclose(y, torch.tensor([0.0, 77 / 255, 1.0]))
        assert torch.allclose(z, torch.tensor([0.0, 0.604, 1.0]))
        gradient, = torch.autograd.grad((y + z).sum(), x)
        assert torch.allclose(gradient, torch.tensor([3.0, 3.0, 3.0]))


def test_a_network_that_adds_in_place():
    """As the host's CLIP does, to what its normalisation has kept for the way back."""
    def clip(x: Tensor) -> Tensor:
        x = x.flatten(1) * 1.0
        x += torch.nn.functional.layer_norm(x, x.shape[1:])
        return x

    x, away = noise(1), noise(1, seed=4).flatten(1)
    space = VisionSpace("in place", clip)
    displacement, _ = space.pulled_back(x, lambda seen: (away, seen))
    step = 1e-2 * displacement / displacement.norm()
    assert float(((space.embed(x + step) - space.embed(x - step)) * away).sum()) > 0


def test_weights_of_inference_mode():
    with torch.inference_mode():
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 12))
        x = noise(1).clone()
    state = ordinary_state(net, torch.device("cpu"))
    assert all(state[name].data_ptr() == weight.data_ptr()
               for name, weight in net.named_parameters())  # nothing is copied
    space = VisionSpace("inference", lambda x: torch.func.functional_call(net, state, (x,)))
    with torch.inference_mode():
        displacement, _ = space.pulled_back(x, lambda seen: (torch.ones_like(seen), seen))
    assert displacement.norm() > 0


def test_what_has_no_gradient_says_so():
    space = VisionSpace("none", lambda x: NET(x.detach()))
    with pytest.raises(VisionError, match="no gradient can be taken through this vision model"):
        space.pulled_back(noise(1), lambda seen: (seen, seen))
    fails = VisionSpace("out of memory", lambda x: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(torch.OutOfMemoryError):
        fails.pulled_back(noise(1), lambda seen: (seen, seen))


# A run

class Counted(VisionSpace):
    """Counts its gradients."""

    def __init__(self):
        super().__init__("small/abc", NET)
        self.at: list[Tensor] = []

    def pulled_back(self, x0, wanted):
        self.at.append(x0)
        return super().pulled_back(x0, wanted)


def start(repulsion=None, space=SPACE, every: int = 1, **settings) -> VisionRun:
    settings = replace(SETTINGS, **settings)
    return VisionRun(space, repulsion, settings, StepWindow(
        schedule=SCHEDULE, every=every, sigma_start=settings.sigma_start,
        sigma_end=settings.sigma_end))


def known(x: Tensor) -> ExactKernel:
    return ExactKernel(SPACE.embed(x), torch.zeros(len(x)), SETTINGS.radius)


def draw(run: VisionRun, target: Tensor, evaluations: int = 1) -> list[Tensor]:
    """What a model that answers with a share of its input makes of the schedule's levels; `target`
    is where it starts from."""
    answers, x = [], target
    for sigma in SCHEDULE[:-1]:
        for _ in range(evaluations):
            level = NoiseLevel.variance_exploding(torch.full((len(x),), sigma))
            answers.append(run.denoise(lambda x: 0.9 * x, x, level.noise, level))
        x = answers[-1] + 0.1 * sigma * noise(len(x), seed=9)
    return answers


def test_a_run_leaves_what_is_remembered():
    x = noise(1)
    plain = draw(start(), x)[-1]
    pushed = draw(start(known(plain + 0.2 * noise(1, seed=1))), x)[-1]
    assert (SPACE.embed(pushed) - SPACE.embed(plain)).norm() > 0.02


@pytest.mark.parametrize(("every", "gradients"), [(1, 4), (2, 2), (3, 2), (9, 1)])
@pytest.mark.parametrize("evaluations", [1, 2])
def test_gradients_at_every_nth_step(every, gradients, evaluations):
    """The first evaluation has none before it; with two a step, both of a step are computed."""
    space, x = Counted(), noise(1)
    run = start(known(0.6 * x + 0.1 * noise(1, seed=1)), space=space, every=every)
    draw(run, x, evaluations)
    first = evaluations == 2  # the second evaluation of the first step has one before it
    steps = range(0 if first else 1, 5)
    due = [step for step in steps if (step - steps[0]) % every == 0]
    expected = sum(1 if step == 0 else evaluations for step in due)
    assert len(space.at) == expected
    assert evaluations == 2 or expected == gradients
    figures = run.figures()
    assert figures.gradients == expected and 0 < figures.gradient_share < 1
    assert figures.evaluations == 5 * evaluations - 1


def test_steps_in_between_go_on_with_the_last_push():
    space, asked = Counted(), []
    run = start(known(0.6 * noise(1) + 0.1 * noise(1, seed=1)), space=space, every=9)
    for sigma in SCHEDULE[:-1]:
        level = NoiseLevel.variance_exploding(torch.full((1,), sigma))
        run.denoise(lambda x: asked.append(x) or 0.9 * x, noise(1), level.noise, level)
    assert len(space.at) == 1
    assert torch.equal(asked[0], noise(1))
    shifts = [x - noise(1) for x in asked[1:]]
    alike = torch.stack([torch.nn.functional.normalize(shift.flatten(), dim=0) for shift in shifts])
    assert torch.allclose(alike, alike[:1].expand_as(alike), atol=1e-4)
    limits = [0.3 * float((noise(1) - 0.9 * x).norm()) for x in asked[:-1]]
    for shift, most in zip(shifts, limits, strict=True):
        assert 0 < float(shift.norm()) <= most * 1.001


def test_outside_the_window_nothing_is_computed():
    space, x = Counted(), noise(1)
    run = start(known(0.6 * x + 0.1 * noise(1, seed=1)), space=space, sigma_start=2.5,
                sigma_end=0.7)
    answers, plain = draw(run, x), draw(start(), x)
    assert len(space.at) == 2
    assert all(torch.equal(a, b) for a, b in zip(answers[:2], plain[:2], strict=True))


def test_neutral_is_the_very_same():
    x, model = noise(2), torch.nn.Identity()
    level = NoiseLevel.variance_exploding(torch.full((2,), 1.0))
    state = torch.get_rng_state()
    for run in (start(known(x), strength=0.0), start(batch=0.0)):
        for _ in range(2):
            assert run.denoise(model, x, level.noise, level) is x
    run = start(known(x), sigma_start=0.5)
    for _ in range(2):
        assert torch.equal(run.denoise(model, x, level.noise, level), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_frames_in_the_middle_of_a_run():
    run, x = start(known(noise(1)), every=9), noise(1)
    draw(run, x)
    level = NoiseLevel.variance_exploding(torch.full((2,), 2.0))
    for _ in range(2):
        assert run.denoise(lambda x: 0.9 * x, noise(2), level.noise, level).isfinite().all()
