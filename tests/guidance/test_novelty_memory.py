"""A memory as nodes use it: its bank in RAM, what a run records, and the work by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guidance.curation import Remembering, describe, forget
from guidance.fitted_radius import ACTIVATIONS, FITTED, LATENTS, UNKNOWN, fitted_radius
from guidance.memory import FeatureSpaceError, MemoryLogError, RevisionError, RevisionGoneError
from guidance.memory.bank import GrowingTensor
from guidance.memory.net_cache import NetCache
from guidance.novelty import PushFigures
from guidance.novelty_memory import (
    NoveltyMemory,
    Recorded,
    content_hashes,
    novelty_percentile,
    shared_bank,
    shared_nets,
)
from guidance.overfull_net import evenly
from guidance.prompt import PROMPT_DIM
from guidance.report import novelty_report
from guidance.repulsion import REPULSIONS

SPACE = "latent/1/Test/3"
DIM = 4


@pytest.fixture
def memory(tmp_path) -> NoveltyMemory:
    shared_bank.cache_clear()
    return NoveltyMemory(url=f"sqlite:///{tmp_path / 'log.sqlite'}", name="test")


def at(*places: float) -> Tensor:
    """`[n, DIM]`: points of the first axis."""
    points = torch.zeros(len(places), DIM)
    points[:, 0] = torch.tensor(places)
    return points


def record(memory: NoveltyMemory, *places: float, **changes) -> Recorded:
    """Records a batch of samples that lie at these places and whose content is their place."""
    embedding = at(*places)
    arguments = {"hashes": content_hashes(embedding), "embedding": embedding,
                 "prompt": torch.ones(PROMPT_DIM) / 8, "seed": 7,
                 "settings": {"strength": 0.3}, "previews": [b"png"] * len(places)}
    return memory.record(memory.bank.at(), SPACE, **arguments | changes)


def places(memory: NoveltyMemory, revision: int | None = None) -> list[float]:
    return [point[0] for point in memory.bank.at(revision).embedding.tolist()]


# The bank

def test_growing_tensor_keeps_what_was_added():
    growing, added = GrowingTensor(), []
    for size in (1, 3, 2, 10, 1):
        rows = torch.randn(size, 5)
        growing.extend(rows)
        added.append(rows)
        assert torch.equal(growing.rows, torch.cat(added))


def test_bank_follows_the_log(memory):
    assert len(memory.bank.at()) == 0
    for count in range(1, 8):
        record(memory, float(count))
        assert places(memory) == [float(n) for n in range(1, count + 1)]
    found = memory.bank.at()
    assert found.revisions.tolist() == list(range(1, 8))
    assert torch.allclose(found.prompt, torch.full((7, PROMPT_DIM), 1 / 8))
    assert found.nearest.tolist() == [torch.inf, *[1.0] * 6]


def test_a_sample_at_the_place_of_another_is_at_distance_zero(memory):
    for _ in range(2):
        record(memory, 1.0, hashes=content_hashes(torch.randn(1, 4)))
    assert memory.bank.at().nearest.tolist() == [torch.inf, 0.0]


def test_bank_follows_another_process(memory):
    record(memory, 1.0)
    assert places(memory) == [1.0]
    own = memory.bank
    shared_bank.cache_clear()  # the memory now has another bank, as another process has
    record(memory, 2.0)
    assert own.at().embedding[:, 0].tolist() == [1.0, 2.0]


def test_older_revisions_stay_what_they_were(memory):
    for place in (1.0, 2.0, 3.0):
        record(memory, place)
    memory.log.forget([2], "test")
    record(memory, 4.0)
    assert [places(memory, revision) for revision in range(6)] == [
        [], [1.0], [1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 3.0], [1.0, 3.0, 4.0]]
    with pytest.raises(RevisionError, match="has revisions 0 to 5"):
        memory.bank.at(6)


def test_a_revision_whose_samples_were_evicted_says_so(memory):
    for place in (1.0, 2.0, 3.0):
        record(memory, place)
    memory.log.forget([1], "test")
    memory.log.compact()
    shared_bank.cache_clear()
    with pytest.raises(RevisionGoneError, match="Choose revision 4 or later"):
        memory.bank.at(3)
    assert places(memory) == [2.0, 3.0]


def test_bank_notices_a_replaced_database(memory, tmp_path):
    for place in (1.0, 2.0, 3.0):
        record(memory, place)
    assert len(memory.bank.at()) == 3
    other = replace(memory, url=f"sqlite:///{tmp_path / 'other.sqlite'}")
    record(other, 9.0)
    Path(tmp_path / "other.sqlite").replace(tmp_path / "log.sqlite")
    for rest in tmp_path.glob("log.sqlite-*"):
        rest.unlink()
    assert places(memory) == [9.0]


def test_what_the_bank_gives_can_be_used_for_gradients(memory):
    with torch.inference_mode():
        record(memory, 1.0)
        found = memory.bank.at()
    assert not found.embedding.is_inference()
    assert not found.prompt.is_inference()


# Recording

def test_a_batch_is_recorded_as_samples_of_their_own(memory):
    recorded = record(memory, 1.0, 2.0, 5.0)
    assert (recorded.first_revision, recorded.last_revision) == (1, 3)
    assert recorded.distance.numel() == recorded.novelty.numel() == 0
    entries = list(memory.log.entries())
    assert [entry.settings["item"] for entry in entries] == [0, 1, 2]
    assert {entry.seed for entry in entries} == {7}
    assert entries[0].preview == b"png"


def test_broken_samples_are_counted_and_left_out(memory):
    recorded = record(memory, 1.0, float("nan"), 2.0, float("inf"))
    assert (recorded.broken, recorded.first_revision, recorded.last_revision) == (2, 1, 2)
    assert places(memory) == [1.0, 2.0]
    assert [entry.settings["item"] for entry in memory.log.samples()] == [0, 2]
    first, _ = memory.log.entries()
    recorded = record(memory, float("nan"), replaced=[first])
    assert recorded.broken == 1 and places(memory) == [1.0, 2.0]


def test_duplicates_are_counted_and_left_out(memory):
    record(memory, 1.0)
    recorded = record(memory, 1.0, 2.0, 2.0)
    assert recorded.duplicates == 2
    assert places(memory) == [1.0, 2.0]


def test_a_content_is_the_same_in_any_precision_that_holds_it():
    latent = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert content_hashes(latent) == content_hashes(latent.float())


def test_novelty_is_the_share_of_the_history_that_was_less_new(memory):
    for place in (0.0, 1.0, 3.0, 7.0):  # these came at distances 1, 2 and 4
        record(memory, place)
    recorded = record(memory, 8.5, 10.0, 20.0)
    assert recorded.distance.tolist() == [1.5, 3.0, 13.0]
    assert recorded.novelty.tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_percentile_without_a_history():
    assert novelty_percentile(torch.ones(2), torch.tensor([torch.inf])).numel() == 0
    assert novelty_percentile(torch.empty(0), torch.ones(3)).numel() == 0


def test_a_later_pass_takes_the_place_of_the_former(memory):
    record(memory, 1.0, 2.0)
    first, _ = memory.log.entries()
    recorded = record(memory, 1.1, replaced=[first])
    assert recorded.replaced == 1
    assert places(memory) == pytest.approx([2.0, 1.1])
    same = record(memory, 2.0, replaced=[entry for entry in memory.log.entries()
                                         if entry.revision == 2])
    assert (same.replaced, same.duplicates) == (0, 1)  # it changed nothing, so it stays
    assert len(memory.bank.at()) == 2


def test_above_the_cap_the_oldest_are_forgotten(memory):
    small = replace(memory, max_megabytes=0.002)
    for place in range(20):
        record(small, float(place))
    assert memory.log.stats().total_bytes <= 0.002 * 2 ** 20
    assert places(memory)[-1] == 19.0
    assert 1 < len(places(memory)) < 20


def test_of_a_revision_what_is_left_can_be_had(memory):
    small = replace(memory, max_megabytes=0.002)
    for place in range(20):
        record(small, float(place))
    live = [entry.revision for entry in memory.log.samples()]
    first = live[1]  # when there were some that the cap has forgotten since
    with pytest.raises(RevisionGoneError):
        memory.bank.at(first)
    left = memory.bank.at(first, left=True)
    assert left.revisions.tolist() == [one for one in live if one <= first]
    assert len(left.embedding) == len(left) > 0


def test_above_the_cap_a_reservoir_keeps_any(memory):
    small = replace(memory, max_megabytes=0.002, when_full="reservoir")
    for place in range(20):
        record(small, float(place))
    assert small.log.stats().total_bytes <= 0.002 * 2 ** 20
    kept = places(memory)
    assert 1 < len(kept) < 20 and kept != [float(n) for n in range(20)][-len(kept):]


def test_what_a_prompt_recorded(memory):
    for place, prompt_id in enumerate("abaa"):
        record(memory, float(place), settings={"prompt_id": prompt_id})
    memory.log.forget_last(1)
    assert [entry.revision for entry in memory.recorded_by("a", range(2, 99))] == [3]
    assert memory.recorded_by("c", [1, 2, 3]) == []


def test_another_feature_space_is_refused_and_both_are_named(memory):
    memory.check_space("anything")
    record(memory, 1.0)
    memory.check_space(SPACE)
    with pytest.raises(FeatureSpaceError) as error:
        memory.check_space("latent/1/Flux/16")
    assert SPACE in str(error.value) and "latent/1/Flux/16" in str(error.value)


@pytest.mark.parametrize("kind", ["net", "exact"])
def test_a_radius_of_the_memorys_own(memory, kind):
    """Samples of another prompt lie ten times as far apart; they do not count for this one."""
    own, other = torch.ones(PROMPT_DIM) / 8, -torch.ones(PROMPT_DIM) / 8
    for i in range(9):
        record(memory, i, prompt=own)
        record(memory, 10.0 * i + 10, prompt=other)

    def radius(prompt, given: float) -> float:
        return memory.repulsion(kind, memory.bank.at(), prompt, given, torch.device("cpu")).radius

    assert radius(own, FITTED) == pytest.approx(LATENTS.of_nearest)
    assert radius(other, FITTED) == pytest.approx(10 * LATENTS.of_nearest)
    assert radius(own, 0.3) == 0.3
    for space, expected in (("features", ACTIVATIONS.of_nearest), ("vision", UNKNOWN)):
        other_space = replace(memory, space=space)
        assert other_space.repulsion(kind, memory.bank.at(), own, FITTED, torch.device("cpu")
                                     ).radius == pytest.approx(expected)


def test_samples_of_other_prompts_do_not_count(memory):
    cat, castle = torch.eye(PROMPT_DIM)[:2]
    record(memory, 1.0, prompt=cat)
    record(memory, 2.0, prompt=castle)
    remembered = memory.bank.at()
    for kind in REPULSIONS:
        found = memory.repulsion(kind, remembered, castle, 0.3, torch.device("cpu"))
        assert torch.equal(found.centres, at(2.0))
        other = torch.eye(PROMPT_DIM)[2]
        assert memory.repulsion(kind, remembered, other, 0.3, torch.device("cpu")) is None
        everything = memory.repulsion(kind, remembered, None, 0.3, torch.device("cpu"))
        assert len(everything.centres) == 2


# Fading

def weights(memory: NoveltyMemory, kind: str, **changes) -> list[float]:
    fading = replace(memory, half_life=2, **changes)
    found = fading.repulsion(kind, memory.bank.at(fading.revision), None, 0.3,
                             torch.device("cpu"))
    return found.log_weight.exp().tolist()


@pytest.mark.parametrize("kind", REPULSIONS)
def test_the_weight_is_halved_by_every_half_life(memory, kind):
    record(memory, *map(float, range(5)))
    assert weights(memory, kind) == pytest.approx([0.25, 2 ** -1.5, 0.5, 2 ** -0.5, 1.0])
    assert weights(memory, kind, revision=3) == pytest.approx([0.5, 2 ** -0.5, 1.0])
    plain = memory.repulsion(kind, memory.bank.at(), None, 0.3, torch.device("cpu"))
    assert not plain.log_weight.any()


@pytest.mark.parametrize("kind", REPULSIONS)
def test_only_recorded_samples_age_and_the_forgotten_count(memory, kind):
    record(memory, 1.0, 2.0, 3.0)
    memory.log.forget([2], "test")  # a row of the log, but no sample
    assert weights(memory, kind) == pytest.approx([0.5, 1.0])
    memory.log.compact()
    shared_bank.cache_clear()  # the dropped sample is known from the log alone
    record(memory, 4.0)
    assert weights(memory, kind) == pytest.approx([2 ** -1.5, 2 ** -0.5, 1.0])


@pytest.mark.parametrize("kind", REPULSIONS)
def test_what_has_faded_away_does_not_count(memory, kind):
    record(memory, *map(float, range(60)))
    assert len(weights(memory, kind)) == 35  # down to e^-12, after 17.3 half-lives
    memory.log.forget(list(range(10, 61)), "test")
    assert replace(memory, half_life=2).repulsion(
        kind, memory.bank.at(), None, 0.3, torch.device("cpu")) is None


def test_what_has_faded_counts_less_for_the_radius(memory):
    """P in their middle is what it shall be with their weights, not with their number."""
    record(memory, *range(40), embedding=torch.eye(40))
    found = replace(memory, half_life=10).repulsion("exact", memory.bank.at(), None, FITTED,
                                                    torch.device("cpu"))
    of_weights = fitted_radius(torch.eye(40), LATENTS, float(found.log_weight.exp().sum()))
    assert found.radius == pytest.approx(of_weights)
    assert found.radius > 1.02 * fitted_radius(torch.eye(40), LATENTS)


def test_a_frozen_revision_fades_the_same_for_ever(memory):
    def pushes() -> list[Tensor]:
        frozen = replace(memory, half_life=3, revision=40, learn=False)
        at_revision = memory.bank.at(40)
        return [frozen.repulsion(kind, at_revision, None, 0.3, torch.device("cpu"))(
            torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))).push
            for kind in REPULSIONS]

    record(memory, *map(float, range(40)))
    before = pushes()
    record(memory, *map(float, range(100, 130)))
    memory.log.forget([45, 50], "test")
    for _ in range(2):
        assert all(map(torch.equal, before, pushes()))
        shared_bank.cache_clear()
        shared_nets.cache_clear()


def test_an_overfull_net_fades_with_its_samples(memory, monkeypatch):
    """Its units weigh what their samples do, and the pushes are those of the exact kernel."""
    shared_nets.cache_clear()
    monkeypatch.setattr("guidance.novelty_memory.NetCache", lambda file: NetCache(file, 32))
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(8, DIM, generator=generator)
    points = centre[torch.arange(200) % 8] + 0.02 * torch.randn(200, DIM, generator=generator)
    for part in points.split(50):
        record(memory, *[0.0] * len(part), hashes=content_hashes(part), embedding=part)
    fading = replace(memory, half_life=20)
    seen = memory.bank.at()
    net, exact = (fading.repulsion(kind, seen, None, 1.0, torch.device("cpu"))
                  for kind in ("net", "exact"))
    assert len(net.centres) <= 32 < len(exact.centres)
    assert net.log_weight.exp().sum().item() == pytest.approx(
        exact.log_weight.exp().sum().item(), rel=1e-4)
    queries = centre + 0.3 * torch.randn(8, DIM, generator=generator)
    mine, theirs = net(queries), exact(queries)
    assert torch.allclose(mine.probability, theirs.probability, atol=0.02)
    assert (torch.cosine_similarity(mine.push, theirs.push) > 0.99).all()
    unfaded = memory.repulsion("net", seen, None, 1.0, torch.device("cpu"))(queries)
    assert (unfaded.probability - theirs.probability).abs().max() > 0.02


def of_prompts(memory: NoveltyMemory, *counts: int):
    """A net of 32 units over so many samples of each prompt, prompt by prompt in turns of 20; what
    is remembered, and the prompts."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.eye(PROMPT_DIM)[:len(counts)]
    left = list(counts)
    while any(left):
        for prompt, _ in enumerate(counts):
            count = min(20, left[prompt])
            left[prompt] -= count
            part = torch.randn(count, DIM, generator=generator)
            if count:
                record(memory, *[0.0] * count, hashes=content_hashes(part), embedding=part,
                       prompt=prompts[prompt])
    return memory.bank.at(), prompts


@pytest.fixture
def small_net(monkeypatch):
    shared_nets.cache_clear()
    monkeypatch.setattr("guidance.novelty_memory.NetCache", lambda file: NetCache(file, 32))
    yield
    shared_nets.cache_clear()


@pytest.mark.parametrize("half_life", [0, 40])
@pytest.mark.parametrize("radius", [FITTED, 0.7])
def test_of_a_prompt_an_overfull_net_has_the_samples_themselves(memory, small_net, half_life,
                                                                radius):
    seen, prompts = of_prompts(memory, 60, 20, 70)
    memory = replace(memory, half_life=half_life)
    net, exact = (memory.repulsion(kind, seen, prompts[1], radius, torch.device("cpu"))
                  for kind in ("net", "exact"))
    assert net.radius == pytest.approx(exact.radius) and len(net.centres) == len(exact.centres)
    queries = torch.randn(50, DIM, generator=torch.Generator().manual_seed(1))
    mine, theirs = net(queries), exact(queries)
    torch.testing.assert_close(mine.probability, theirs.probability)
    torch.testing.assert_close(mine.push, theirs.push)


def test_where_too_few_samples_would_stand_for_all_there_are_units(memory, small_net, monkeypatch):
    monkeypatch.setattr("guidance.overfull_net.SPARSE", 1.5)
    seen, prompts = of_prompts(memory, 60, 20, 70)
    for prompt in (prompts[0], None):
        net = memory.repulsion("net", seen, prompt, 0.7, torch.device("cpu"))
        assert len(net.centres) <= 32
        count = 60 if prompt is not None else 150
        assert float(net.log_weight.exp().sum()) == pytest.approx(count, rel=1e-3)


@pytest.mark.parametrize("others", [5, 31])
def test_a_prompt_that_is_only_similar_to_one_with_very_many_samples(memory, small_net, others):
    """One unit holds more samples than a full net has units, and no prompt is the same."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.zeros(3, PROMPT_DIM)
    prompts[:, :3] = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.0, 0.6], [0.93, 0.3676, 0.0]])
    for count, spread, prompt in ((others, 3.0, prompts[1]), (300, 1e-3, prompts[0])):
        part = 1 + spread * torch.randn(count, DIM, generator=generator)
        record(memory, *[0.0] * count, hashes=content_hashes(part), embedding=part, prompt=prompt)
    seen = memory.bank.at()
    net, exact = (memory.repulsion(kind, seen, prompts[2], 1.0, torch.device("cpu"))
                  for kind in ("net", "exact"))
    queries = torch.ones(1, DIM) + 0.2
    torch.testing.assert_close(net(queries).probability, exact(queries).probability, atol=0.01,
                               rtol=0)


def test_a_net_that_could_not_be_written_is_written_the_next_time(memory, small_net, monkeypatch):
    file = memory.nets.file
    file.parent.mkdir()

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("guidance.memory.net_cache.save_file", full)
        of_prompts(memory, 300)
        memory.learn_net()
    assert not list(file.parent.iterdir())
    record(memory, 1.0)
    assert list(file.parent.iterdir()) == [file]


def test_a_prompt_with_many_samples_has_some_of_them(memory, small_net):
    """Evenly spaced over the history, each for several."""
    seen, prompts = of_prompts(memory, 300, 20)
    net = memory.repulsion("net", seen, prompts[0], 0.7, torch.device("cpu"))
    known = {tuple(point) for point in seen.embedding.tolist()}
    assert len(net.centres) == 32 and known.issuperset(map(tuple, net.centres.tolist()))
    assert float(net.log_weight.exp().sum()) == pytest.approx(300)


def record_anywhere(memory: NoveltyMemory, seen) -> tuple[Tensor, Tensor]:
    """The embedding of a sample, `[1, DIM]`, and how far it is said to be from those remembered."""
    new = torch.randn(1, DIM)
    return new, memory.record(seen, SPACE, hashes=content_hashes(new), embedding=new, prompt=None,
                              seed=0, settings={}, previews=[None]).distance


def test_the_distance_is_to_a_sample_where_units_are_means_of_several(memory, small_net):
    seen, _ = of_prompts(memory, 60, 20, 70)
    to_units = memory.nets.net(seen).copy().distance
    torch.manual_seed(0)
    off, off_by_units = [], []
    for _ in range(20):
        new, distance = record_anywhere(memory, seen)
        nearest = torch.cdist(new, seen.embedding).amin(dim=1)
        off.append(float(distance - nearest))
        off_by_units.append(float((to_units(new) - nearest).abs()))
    assert sum(abs(one) < 1e-4 for one in off) >= 10 and min(off) > -1e-4
    assert sum(off) < 0.3 * sum(off_by_units)


def test_of_a_unit_with_very_many_samples_some_are_looked_at(memory, small_net, monkeypatch):
    seen, _ = of_prompts(memory, 60, 20, 70)
    monkeypatch.setattr("guidance.overfull_net.LOOKED_AT", 10)
    asked = []
    new, distance = record_anywhere(memory, replace(seen, some=lambda index: (
        asked.append(len(index)), seen.some(index))[1]))
    assert asked == [10] and float(distance) >= float(torch.cdist(new, seen.embedding).min()) - 1e-4


def test_samples_that_are_gone_meanwhile_do_not_keep_it_from_recording(memory, small_net):
    seen, _ = of_prompts(memory, 60, 20, 70)
    to_units = memory.nets.net(seen).copy().distance

    def gone(index):
        raise RevisionGoneError("dropped")
    new, distance = record_anywhere(memory, replace(seen, some=gone))
    assert torch.equal(distance, to_units(new))


def test_evenly_by_weight():
    picked, weight = evenly(torch.ones(12), 4)
    assert picked.tolist() == [1, 4, 7, 10] and weight.tolist() == [3.0] * 4
    picked, weight = evenly(torch.tensor([0.1, 0.1, 0.1, 0.1, 1.6]), 4)
    assert picked.tolist()[-1] == 4 and weight.sum().item() == pytest.approx(2.0)
    assert weight[-1].item() == pytest.approx(1.5)


def test_the_bank_reads_some_samples_without_all(memory, monkeypatch):
    for n in range(40):
        record(memory, float(n))
    shared_bank.cache_clear()
    monkeypatch.setattr("guidance.memory.bank.SMALL", 10)
    monkeypatch.setattr("guidance.memory.fates.AT_ONCE", 3)
    seen = memory.bank.at()
    monkeypatch.setattr(type(memory.bank), "_keep", None)
    for wanted in ([0], [3, 4, 5], [0, 7, 13, 20, 39], [38, 39]):
        assert seen.some(torch.tensor(wanted)).embedding[:, 0].tolist() == wanted


# By hand

def remember(memory: NoveltyMemory, *where: float) -> Remembering:
    remembering = Remembering(memory, SPACE, None)
    embedding = at(*where)
    remembering.add(content_hashes(embedding), embedding, [None] * len(where), "latent")
    return remembering


def test_remembering_again_does_no_harm(memory):
    assert "test: 2 new, 0 remembered already" in remember(memory, 1.0, 2.0).report()
    again = remember(memory, 1.0, 2.0, 3.0)
    assert "test: 1 new, 2 remembered already" in again.report()
    assert places(memory) == [1.0, 2.0, 3.0]
    hashes = content_hashes(at(3.0, 4.0))
    assert again.unknown(hashes) == hashes[1:]


def test_report_tells_what_was_broken(memory):
    remembering = Remembering(memory, SPACE, None)
    points = at(1.0, float("nan"))
    remembering.add(content_hashes(points), points, [None] * 2, "latent")
    assert remembering.report().startswith(
        "test: 1 new, 0 remembered already, left out 1 whose values are no numbers\n")


def test_report_names_what_was_skipped(memory):
    remembering = remember(memory, 1.0)
    text = remembering.report([f"{n}.png: torn" for n in range(12)])
    assert "12 skipped:\n0.png: torn" in text
    assert "9.png" in text and "10.png" not in text and "..." in text


@pytest.mark.parametrize("change", [lambda m: Remembering(m, SPACE, None),
                                    lambda m: forget(m, "all", 1, 1)])
def test_a_frozen_memory_is_not_changed(memory, change):
    record(memory, 1.0)
    with pytest.raises(MemoryLogError, match='Memory "test" is frozen.*mode to learn'):
        change(replace(memory, learn=False))
    assert places(memory) == [1.0]


def test_remembering_checks_the_feature_space(memory):
    record(memory, 1.0)
    with pytest.raises(FeatureSpaceError):
        Remembering(memory, "other", None)


@pytest.mark.parametrize(("what", "left", "told"), [
    ("last", [1.0, 2.0], "forgot 2 of 4 samples"), ("one", [1.0, 3.0, 4.0], "forgot 1 of 4"),
    ("all", [], "forgot 4 of 4 samples")])
def test_forgetting(memory, what, left, told):
    for place in (1.0, 2.0, 3.0, 4.0):
        record(memory, place)
    text = forget(memory, what, count=2, number=2)
    assert places(memory) == left
    assert told in text and "revision 5" in text
    assert places(memory, 4) == [1.0, 2.0, 3.0, 4.0]


def test_forgetting_what_is_not_there(memory):
    assert "nothing to forget" in forget(memory, "all", 1, 1)
    record(memory, 1.0)
    with pytest.raises(RevisionError, match="no live sample at revision 9"):
        forget(memory, "one", 1, 9)
    with pytest.raises(MemoryLogError, match="expected one of last, one, all"):
        forget(memory, "some", 1, 1)
    assert places(memory) == [1.0]


def test_description(memory):
    for place in (0.0, 1.0, 3.0, 7.0):
        record(memory, place)
    memory.log.forget([3], "test")
    found = describe(memory, 5)
    assert found.revision == 5
    assert [entry.revision for entry in found.newest] == [4, 2, 1]
    assert "test@5, learning\n3 samples; 1 forgotten so far" in found.text
    assert SPACE in found.text
    assert "Number 4: seed 7, novelty 50% (nearest 4.000)" in found.text
    assert [entry.revision for entry in describe(memory, 1).newest] == [4]
    assert describe(memory, 0).newest == []


def test_description_of_an_older_revision(memory):
    for place in (0.0, 1.0, 3.0):
        record(memory, place)
    found = describe(replace(memory, revision=2, learn=False), 5)
    assert found.text.startswith("test@2, frozen; the latest revision is 3\n2 samples")
    assert [entry.revision for entry in found.newest] == [2, 1]
    with pytest.raises(RevisionError):
        describe(replace(memory, revision=9, learn=False), 5)


def test_description_of_an_empty_memory(memory):
    found = describe(memory, 5)
    assert found.text.startswith("test@0, learning\n0 samples")
    assert found.newest == []


# What the node tells

PUSHED = PushFigures(
    possible=True, evaluations=20, within=10, pushed=0.5, mean_push=0.125, dropped=0)


def told(memory: NoveltyMemory, figures: PushFigures = PUSHED, recorded: Recorded | None = None,
         **changes) -> str:
    arguments = {"revision": 0, "remembered": 3, "strength": 0.3, "record": True, "whole": True,
                 "without_cfg": 0}
    return novelty_report(memory, figures=figures, recorded=recorded, **arguments | changes)


NOTHING = replace(PUSHED, possible=False, evaluations=0, within=0, pushed=0.0, mean_push=0.0)


@pytest.mark.parametrize(("figures", "changes", "expected"), [
    (PUSHED, {}, "Pushed in 50% of 10 steps, by 0.125 of the noise removed"),
    (replace(PUSHED, dropped=2), {}, "2 pushes dropped because they were not finite"),
    (NOTHING, {"strength": 0.0}, "Nothing pushed: strength is 0."),
    (NOTHING, {"remembered": 0}, "Nothing pushed: the memory is empty."),
    (NOTHING, {}, "Nothing pushed: no remembered sample has a prompt like this one."),
    (replace(NOTHING, possible=True), {}, "Nothing pushed: the run has a single step"),
    (replace(PUSHED, within=0), {}, "no step lies between start_percent and end_percent"),
    (replace(NOTHING, closed=True), {}, "no step lies between start_percent and end_percent"),
    (replace(PUSHED, pushed=0.0), {}, "no step came near a remembered sample"),
    (PUSHED, {"fitted": UNKNOWN}, "Radius 0.180, until 4 samples of this prompt are remembered"),
    (replace(PUSHED, pushed=0.0), {"remembered": 0}, "near another image of the batch"),
    (replace(PUSHED, fits_batch=True), {"fitted": UNKNOWN},
     "are remembered; in a batch that is settled, from its own distances"),
    (replace(PUSHED, antithetic=True), {}, "started from antithetic noises"),
    (PUSHED, {"fitted": 0.1234}, "Radius 0.123, from the distances in the memory"),
    (PUSHED, {"without_cfg": 3}, "CFG began after 3 evaluations of the model"),
    (PUSHED, {"record": False}, "Nothing recorded: recording is switched off."),
    (PUSHED, {"whole": False}, "Nothing recorded: this pass ends before the last step"),
])
def test_report_gives_the_reason(memory, figures, changes, expected):
    assert expected in told(memory, figures, **changes)


def test_report_of_a_memory_that_fades(memory):
    assert "like this one, or all that have one have faded." in told(
        replace(memory, half_life=9), NOTHING)


def test_report_of_a_frozen_memory(memory):
    frozen = replace(memory, learn=False)
    assert "Nothing recorded: the memory is frozen." in told(frozen)


def test_report_of_what_was_recorded(memory):
    for place in (0.0, 1.0, 3.0):
        record(memory, place)
    recorded = record(memory, 4.5, 1.0)
    text = told(memory, recorded=recorded, revision=3)
    assert text.startswith("test@3: pushed away from 3 samples\n")
    assert "Recorded 1 in " in text and "1 already remembered" in text
    assert "Novelty 50%, 0% (distance to the nearest remembered: 1.500, 0.000)" in text
    assert "Memory now: 4 samples" in text and "revision 4" in text
