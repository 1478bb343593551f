"""Latents on a wire are not what the sampler sees: the model's own units are what is compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from demo.workflow import widget_defaults
from guidance.latent_space import LatentSpace

from .test_features import sample
from .test_novelty import HIRES, open_memory, shown

pytestmark = pytest.mark.usefixtures("page_with_texts")


class Encoder:
    """A VAE of which every image is the same latents `[1, channels, ...]`, as on a wire."""

    def __init__(self, latents: Tensor):
        self.latents = latents

    def encode(self, image: Tensor) -> Tensor:
        return self.latents


@pytest.fixture(params=["sd15-eps", "flux"])  # a fifth as large; shifted as well
def drawn(request, fresh_host):
    """A model, and two latents as on a wire that Novelty Guidance has recorded in memory `test`."""
    from demo.host.small_models import MODELS

    hooks = fresh_host.pack("nodes._novelty_hooks")
    widgets = widget_defaults(fresh_host.pack_nodes["UncommonNoveltyGuidance"].GET_NODE_INFO_V1())
    guide = hooks.NoveltyHooks(open_memory(fresh_host), hooks.NoveltyOptions(**widgets), "1")
    kind = MODELS[request.param]
    model = kind.load()
    return model, sample(kind, guide.attach(model), batch=2)


def add(host, model, latents: Tensor, name: str = "test"):
    """Adds latents to a memory, as Remember Samples does; what it reports, and the memory."""
    memory = open_memory(host, name)
    importer = host.pack("nodes._importer").Importer(model, memory, None, None)
    importer.add_latents(latents)
    return importer.report(), memory


def test_what_is_remembered_and_compared_is_in_the_models_own_units(fresh_host, drawn):
    model, latents = drawn
    inside = model.get_model_object("latent_format").process_in(latents)
    expected, on_wire = (LatentSpace("any", latents.shape[1]).embed(x) for x in (inside, latents))
    assert not torch.allclose(expected, on_wire, rtol=0.1)
    chosen_from = fresh_host.pack("nodes._selection_inputs").Candidates(
        [], [{"samples": latents}], model, None)
    _, added = add(fresh_host, model, latents, "added")
    for found in (open_memory(fresh_host).bank.at().embedding, added.bank.at().embedding,
                  chosen_from.embedding):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_diversity_report_finds_a_sample_of_the_history_at_no_distance(fresh_host, drawn):
    model, latents = drawn
    search = fresh_host.pack("nodes._diversity_reader").HistorySearch(
        open_memory(fresh_host), model, Encoder(latents[:1]))
    search.add(torch.zeros(1, 64, 64, 3))
    assert search.result().distance.item() == pytest.approx(0, abs=1e-4)


def test_what_guidance_recorded_is_known_by_its_latent_on_the_wire(fresh_host, drawn):
    report, memory = add(fresh_host, *drawn)
    assert "0 new, 2 remembered already" in report
    assert memory.log.stats().live_samples == 2


def test_previews_show_the_latents_as_the_sampler_sees_them(fresh_host, drawn):
    model, latents = drawn
    latent_format = model.get_model_object("latent_format")
    preview = fresh_host.pack("nodes._host").preview
    assert [entry.preview for entry in open_memory(fresh_host).log.samples()] == [
        preview(latent_format, one) for one in latent_format.process_in(latents)]


def test_a_hires_pass_finds_its_first_pass_where_latents_on_a_wire_are_shifted(
        fresh_host, novelty_graph, monkeypatch):
    pixels = fresh_host.pack("nodes._adm_model").PixelSpace
    monkeypatch.setattr(pixels, "process_in", lambda self, latent: latent - 9)
    monkeypatch.setattr(pixels, "process_out", lambda self, latent: latent + 9)
    run = fresh_host.run(novelty_graph(batch=2, more=HIRES))
    assert "in place of 2 from the pass before" in shown(run)
    assert [entry.settings["node"] for entry in open_memory(fresh_host).log.samples()] == [
        "second"] * 2
