"""How alike two prompts are."""

from __future__ import annotations

import pytest
import torch

from guidance.adm import class_embedding
from guidance.prompt import PROMPT_DIM, log_similarity, prompt_embedding


def encoded(seed: int, width: int = 768) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 10, PROMPT_DIM, 768, 4096])
def test_any_width_becomes_a_unit_vector(width):
    embedding = prompt_embedding(encoded(0, width))
    assert embedding.shape == (PROMPT_DIM,)
    assert embedding.norm().item() == pytest.approx(1, abs=1e-5)


def test_angles_survive_the_projection():
    a, b = encoded(1), encoded(2)
    for share in (0.0, 0.5, 0.9, 1.0):
        mixed = share * a + (1 - share) * b
        kept = prompt_embedding(a) @ prompt_embedding(mixed)
        assert kept.item() == pytest.approx(torch.cosine_similarity(a, mixed, 0).item(), abs=0.3)


def test_the_same_prompt_counts_fully_and_another_hardly():
    cat, castle = prompt_embedding(encoded(1)), prompt_embedding(encoded(2))
    found = log_similarity(cat, torch.stack([cat, prompt_embedding(encoded(1) * 3), castle]))
    assert found[:2].tolist() == pytest.approx([0, 0], abs=1e-4)
    assert found[2] < -8


def test_more_alike_counts_more():
    a, b = encoded(1), encoded(2)
    prompts = torch.stack([prompt_embedding(share * a + (1 - share) * b)
                           for share in (1.0, 0.9, 0.7, 0.5, 0.2)])
    found = log_similarity(prompt_embedding(a), prompts)
    assert (found.diff() < 0).all()


def test_a_sample_without_a_prompt_counts_for_every_prompt():
    nothing = torch.zeros(1, PROMPT_DIM)
    assert log_similarity(prompt_embedding(encoded(1)), nothing).item() == 0
    assert not prompt_embedding(torch.zeros(768)).any()


@pytest.mark.parametrize(("cosine", "expected"), [(1.0, 0.0), (0.9, -1.6), (0.5, -8.0),
                                                  (0.0, -16.0)])
def test_the_width_of_the_kernel_is_as_documented(cosine, expected):
    prompt, other = torch.eye(PROMPT_DIM)[:2]
    like = cosine * prompt + (1 - cosine ** 2) ** 0.5 * other
    assert log_similarity(prompt, like[None]).item() == pytest.approx(expected, abs=1e-4)


def test_the_classes_of_the_digits_hardly_repel_each_other():
    classes = torch.stack([prompt_embedding(class_embedding(n)) for n in range(10)])
    similarity = torch.stack([log_similarity(one, classes) for one in classes]).exp()
    assert torch.equal(similarity.diagonal(), torch.ones(10))
    assert (similarity - torch.eye(10)).max() < 1e-3
