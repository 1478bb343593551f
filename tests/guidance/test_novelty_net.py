"""The novelty net against the exact kernel, and its cache."""

import time

import pytest
import torch
from scipy.stats import spearmanr

from demo.data import digits
from guidance.latent_space import LatentSpace
from guidance.memory.bank import Contents, Remembered
from guidance.memory.net_cache import NetCache
from guidance.novelty_net import NoveltyNet
from guidance.prompt import PROMPT_DIM
from guidance.repulsion import ExactKernel, squared_distance

RADIUS = 0.25


def remembered(embedding: torch.Tensor, prompt: torch.Tensor | None = None, *,
               revisions: torch.Tensor | None = None, revision: int = 0) -> Remembered:
    """Samples as a bank gives them; by default those of revisions 1, 2, ..."""
    prompt = torch.zeros(len(embedding), PROMPT_DIM) if prompt is None else prompt
    revisions = torch.arange(1, len(embedding) + 1) if revisions is None else revisions
    return Remembered(revisions, revision or int(revisions[-1]),
                      lambda first, last: Contents(embedding[first:last], prompt[first:last]),
                      lambda index: Contents(embedding[index], prompt[index]),
                      lambda count: torch.zeros(len(embedding))[-count:],
                      lambda: torch.arange(len(embedding)).flip(0))


def first(memory: Remembered, count: int) -> Remembered:
    """The memory when it was so long."""
    return remembered(memory.embedding[:count], memory.prompt[:count])


def real_digits() -> torch.Tensor:
    embedding = LatentSpace("PixelSpace", 3).embed(digits()[0])
    return embedding[torch.randperm(len(embedding), generator=torch.Generator().manual_seed(0))]


def kernel(net: NoveltyNet) -> ExactKernel:
    return ExactKernel(net.centre, net.mass.log(), RADIUS)


def test_is_the_exact_kernel_until_it_is_full():
    memory = remembered(real_digits()[:100])
    net = NoveltyNet(memory.embedding.shape[1], capacity=100)
    net.learn(memory)
    queries = memory.embedding[:20] + 0.05 * torch.randn(
        20, net.dim, generator=torch.Generator().manual_seed(1))
    exact = ExactKernel(memory.embedding, torch.zeros(100), RADIUS)
    for mine, theirs in zip(kernel(net)(queries), exact(queries), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("capacity", [256, 512])
def test_agrees_with_exact_when_it_is_overfull(capacity):
    """On real digits that it has not learnt, and on points from near to far around those it has."""
    embedding = real_digits()
    memory, held_out = remembered(embedding[:1024]), embedding[1024:1124]
    net = NoveltyNet(memory.embedding.shape[1], capacity)
    net.learn(memory)
    assert int(net.mass.sum()) == 1024
    generator = torch.Generator().manual_seed(1)
    distance = 5 * RADIUS * torch.rand(900, 1, generator=generator)
    around = memory.embedding[:900] + distance * torch.nn.functional.normalize(
        torch.randn(900, net.dim, generator=generator))
    queries = torch.cat([held_out, around])

    mine = kernel(net)(queries)
    exact = ExactKernel(memory.embedding, torch.zeros(1024), RADIUS)(queries)
    some = torch.randperm(1024, generator=generator)[:capacity]
    of_some = ExactKernel(memory.embedding[some], torch.full((capacity,), 1024 / capacity).log(),
                          RADIUS)(queries)
    nearest = squared_distance(queries, memory.embedding).min(dim=1).values
    assert -spearmanr(mine.probability, nearest).statistic > 0.95
    sure = exact.probability > 0.2
    agreement, that_of_some = (
        torch.cosine_similarity(found.push[sure], exact.push[sure]).mean().item()
        for found in (mine, of_some))
    assert agreement > 0.7
    assert agreement > that_of_some, "as many samples, taken by chance, would do"


def test_merges_images_of_like_prompts_only():
    embedding = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)) * 0.01
    prompt = torch.zeros(40, PROMPT_DIM)
    prompt[::2, 0], prompt[1::2, 1] = 1, 1
    net = NoveltyNet(12, capacity=10)
    net.learn(remembered(embedding, prompt))
    assert torch.allclose(net.prompt.max(dim=1).values, torch.ones(10), atol=1e-4)
    assert {*net.prompt.argmax(dim=1).tolist()} == {0, 1}


def test_learning_in_parts_or_at_once_is_the_same():
    memory = remembered(real_digits()[:300])
    whole = NoveltyNet(memory.embedding.shape[1], 64)
    whole.learn(memory)
    parts = NoveltyNet(memory.embedding.shape[1], 64)
    for count in (10, 64, 65, 200, 300):
        parts.follow(first(memory, count))
    for name, value in whole.state().items():
        assert torch.equal(value, parts.state()[name]), name


def test_time_does_not_grow_with_history():
    memory = remembered(torch.randn(4000, 48, generator=torch.Generator().manual_seed(0)))
    net = NoveltyNet(48, capacity=256)
    net.learn(first(memory, 300))

    def spent(upto: int) -> float:
        part = first(memory, upto)
        started = time.process_time()
        net.follow(part)
        return time.process_time() - started

    early, _, late = spent(1300), spent(3000), spent(4000)
    assert late < 3 * early
    assert len(net.centre) == 256


def test_forgets_without_learning_again(monkeypatch):
    """What is left is what it would have learnt, but for where merged units lie."""
    memory = remembered(real_digits()[:400])
    net = NoveltyNet(memory.embedding.shape[1], 64)
    net.learn(memory)
    left = torch.ones(400, dtype=torch.bool)
    left[::3] = False
    fewer = remembered(memory.embedding[left], revisions=memory.revisions[left], revision=401)
    afresh = NoveltyNet(net.dim, 64)
    afresh.learn(fewer)
    learnt = []
    monkeypatch.setattr(NoveltyNet, "_absorb", lambda self, *sample: learnt.append(sample))
    assert net.can_follow(fewer)
    net.follow(fewer)
    assert not learnt and net.holds(fewer)
    assert int(net.mass.sum()) == int(left.sum()) and bool((net.mass > 0).all())
    queries = real_digits()[400:600]
    ours, theirs = (kernel(one)(queries).probability for one in (net, afresh))
    assert spearmanr(ours, theirs).statistic > 0.9


def test_a_net_that_was_never_full_forgets_exactly():
    memory = remembered(real_digits()[:50])
    net = NoveltyNet(memory.embedding.shape[1], 64)
    net.learn(memory)
    left = torch.arange(50) % 3 != 1
    fewer = remembered(memory.embedding[left], revisions=memory.revisions[left], revision=51)
    net.follow(fewer)
    assert torch.equal(net.centre, fewer.embedding)
    more = remembered(torch.cat([fewer.embedding, memory.embedding[:1]]),
                      revisions=torch.cat([fewer.revisions, torch.tensor([52])]))
    net.follow(more)
    assert torch.equal(net.centre, more.embedding) and torch.equal(net.learnt, more.revisions)


def test_knows_its_neighbours_after_forgetting_and_learning():
    """The gaps that it keeps are those that the points have."""
    embedding = real_digits()[:300]
    left, revisions = torch.arange(300) % 5 > 0, torch.arange(1, 301)
    net = NoveltyNet(embedding.shape[1], 64)
    net.learn(remembered(embedding[:200]))
    net.follow(remembered(embedding[left], revisions=revisions[left], revision=300))
    points = net._point[:len(net.centre)]
    distance = squared_distance(points, points).fill_diagonal_(torch.inf)
    gap, known = distance.min(dim=1).values, ~net._stale[:len(points)]
    assert torch.allclose(net._gap[:len(points)][known], gap[known], atol=1e-5)
    assert (net._gap[:len(points)] <= gap + 1e-5).all()
    assert abs(float(gap[net._closest()] - gap.min())) < 1e-5
    assert int(net.mass.sum()) == 240


def test_an_earlier_revision_does_not_follow():
    memory = remembered(real_digits()[:100])
    net = NoveltyNet(memory.embedding.shape[1], 64)
    net.learn(memory)
    assert not net.can_follow(first(memory, 99)) and net.can_follow(memory)


class TestCache:
    @pytest.fixture
    def memory(self):
        return remembered(torch.randn(400, 24, generator=torch.Generator().manual_seed(0)))

    def test_reads_what_it_wrote(self, tmp_path, memory, monkeypatch):
        first = NetCache(tmp_path / "net.safetensors", capacity=32).net(memory)
        learnt = []
        monkeypatch.setattr(NoveltyNet, "_absorb", lambda self, *sample: learnt.append(sample))
        again = NetCache(tmp_path / "net.safetensors", capacity=32).net(memory)
        assert not learnt
        assert torch.equal(first.centre, again.centre)

    @pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
    def test_learns_again_what_is_lost(self, tmp_path, memory, damage):
        file = tmp_path / "net.safetensors"
        first = NetCache(file, capacity=32).net(memory)
        stored = file.read_bytes()
        if damage == "missing":
            file.unlink()
        elif damage == "cut":
            file.write_bytes(stored[:len(stored) // 2])
        else:
            file.write_bytes(stored[:-4] + bytes(4))
        again = NetCache(file, capacity=32).net(memory)
        assert torch.equal(first.centre, again.centre)
        assert torch.equal(first.mass, again.mass)

    def test_forgets_with_the_log(self, tmp_path, memory):
        cache = NetCache(tmp_path / "net.safetensors", capacity=32)
        cache.net(memory)
        fewer = remembered(memory.embedding[100:], revisions=memory.revisions[100:], revision=401)
        net = cache.net(fewer)
        assert int(net.mass.sum()) == 300
        again = NetCache(tmp_path / "net.safetensors", capacity=32).net(fewer)  # written at once
        assert torch.equal(net.centre, again.centre)

    def test_keeps_the_revisions_before(self, tmp_path, memory, monkeypatch):
        """A hires pass comes back to what guided the first pass."""
        cache = NetCache(tmp_path / "net.safetensors", capacity=32)
        before = cache.net(first(memory, 399)).centre.clone()
        cache.net(memory)
        learnt = []
        monkeypatch.setattr(NoveltyNet, "_absorb", lambda self, *sample: learnt.append(sample))
        assert torch.equal(cache.net(first(memory, 399)).centre, before) and not learnt

    @pytest.fixture
    def absorbed(self, monkeypatch) -> list:
        """What nets learn from here on, without the samples that become units at once."""
        learnt: list = []
        absorb = NoveltyNet._absorb
        monkeypatch.setattr(NoveltyNet, "_absorb", lambda self, *sample: (
            learnt.append(sample), absorb(self, *sample))[1])
        return learnt

    def test_learning_that_is_ended_goes_on_from_there(self, tmp_path, memory, monkeypatch,
                                                       absorbed):
        monkeypatch.setattr("guidance.memory.net_cache.PAGE", 50)
        told = []

        def tick(done: int, total: int) -> None:
            told.append((done, total))
            if done >= 300:
                raise InterruptedError
        cache = NetCache(tmp_path / "net.safetensors", capacity=32)
        with pytest.raises(InterruptedError):
            cache.net(memory, tick)
        assert told == [(done, 400) for done in range(50, 301, 50)]
        whole = NetCache(None, capacity=32).net(memory)
        absorbed.clear()
        assert torch.equal(cache.net(memory).centre, whole.centre) and len(absorbed) == 100
        absorbed.clear()
        again = NetCache(tmp_path / "net.safetensors", capacity=32).net(memory)
        assert torch.equal(again.centre, whole.centre) and len(absorbed) < 256

    def test_an_earlier_revision_that_took_long_is_kept_too(self, tmp_path, memory, monkeypatch,
                                                            absorbed):
        """A memory that is frozen is not learnt again at each start."""
        monkeypatch.setattr("guidance.memory.net_cache.PAGE", 50)
        file = tmp_path / "net.safetensors"
        NetCache(file, capacity=32).net(memory)
        for count in (60, 100, 150, 200, 250, 40):
            NetCache(file, capacity=32).net(first(memory, count))
        assert {one.name for one in tmp_path.iterdir()} == {
            "net.safetensors", *(f"net@{count}.safetensors" for count in (100, 150, 200, 250))}
        before = NetCache(None, capacity=32).net(first(memory, 250))
        absorbed.clear()
        again = NetCache(file, capacity=32).net(first(memory, 250))
        assert torch.equal(again.centre, before.centre) and not absorbed

    def test_goes_on_from_the_net_that_is_farthest(self, tmp_path, memory, absorbed):
        """Not from that of an early revision because that one was asked for first."""
        file = tmp_path / "net.safetensors"
        NetCache(file, capacity=32).net(memory)
        cache = NetCache(file, capacity=32)
        cache.net(first(memory, 60))
        absorbed.clear()
        cache.net(memory)
        assert not absorbed

    def test_is_not_fooled_by_another_log_with_the_same_revisions(self, tmp_path, memory):
        file = tmp_path / "net.safetensors"
        NetCache(file, capacity=32).net(memory)
        other = remembered(torch.randn(400, 24, generator=torch.Generator().manual_seed(1)))
        fresh = NoveltyNet(24, 32)
        fresh.learn(other)
        assert torch.equal(NetCache(file, capacity=32).net(other).centre, fresh.centre)

    def test_works_where_it_cannot_be_written(self, tmp_path, memory, caplog):
        (tmp_path / "taken").write_text("a file where the folder should be")
        net = NetCache(tmp_path / "taken" / "net.safetensors", capacity=32).net(memory)
        assert int(net.mass.sum()) == 400
        assert "could not be kept" in caplog.text
