"""Errors of nodes that no other test provokes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from demo.host import PromptRejected


def test_a_mode_that_no_memory_has(fresh_host, novelty_graph):
    with pytest.raises(PromptRejected, match="mode"):
        fresh_host.run(novelty_graph(memory={"mode": "forget"}))
    told = fresh_host.pack_nodes["UncommonNoveltyMemory"].validate_inputs("forget", -1)
    assert told == "mode is forget; expected one of learn, frozen."


def test_a_vae_of_another_model_beside_a_memory(fresh_host, novelty_graph):
    run = fresh_host.run(novelty_graph())
    of_another_model = SimpleNamespace(encode=lambda image: torch.zeros(len(image), 4, 2, 2))
    history = fresh_host.pack("nodes._diversity_reader").HistorySearch(
        run.outputs["memory"][0], run.outputs["model"][0], of_another_model)
    with pytest.raises(ValueError, match="does not make latents of 3 channels, which the model"):
        history.add(torch.zeros(1, 16, 16, 3))
