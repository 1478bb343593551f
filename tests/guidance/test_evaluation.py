"""What the guidance of several nodes shares of one evaluation."""

from __future__ import annotations

import pytest
import torch

from guidance.evaluation import Evaluation


def test_all_that_guide_see_the_place_of_the_outermost_and_the_answer_of_the_innermost():
    at, x, seen = Evaluation(), torch.zeros(2), []

    def inner():
        denoised = at.answered(torch.ones(2))
        seen.append((at.x, at.plain))
        return denoised + 1

    def outer():
        denoised = at.answered(at.run(x + 5, inner))
        seen.append((at.x, at.plain))
        return denoised + 1

    assert at.run(x, outer).tolist() == [3, 3]
    assert all(place is x and plain.tolist() == [1, 1] for place, plain in seen)
    assert at.previous.tolist() == [3, 3]
    assert at.x is None and at.plain is None


def test_the_evaluation_before_counts_only_for_the_same_shape():
    at, seen = Evaluation(), []
    for frames in (3, 3, 2):
        def answer(frames=frames):
            seen.append(at.previous)
            return torch.full((1, frames), float(frames))
        at.run(torch.zeros(1, frames), answer)
    assert seen[0] is None and seen[1].tolist() == [[3, 3, 3]] and seen[2] is None


def test_what_was_looked_at_is_not_the_answer_of_the_evaluation():
    at, seen = Evaluation(), []

    def guided():
        at.looked(lambda x: at.answered(torch.ones(2)))
        at.answered(torch.full((2,), 3.0))
        seen.append(at.plain)
        return at.plain

    at.run(torch.zeros(2), guided)
    assert seen[0].tolist() == [3, 3]


def test_what_was_looked_at_before_the_run_is_no_evaluation_before():
    at = Evaluation()
    at.before(lambda: at.run(torch.zeros(2), lambda: torch.ones(2)))
    assert at.previous is None and not at.looking


def test_an_interrupt_leaves_nothing_behind():
    at = Evaluation()

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        at.run(torch.zeros(1), stop)
    assert at.x is None and at.previous is None
