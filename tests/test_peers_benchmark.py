"""The peers: their formulas in closed form, and each in the real host; then the benchmark."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from benchmarks import chains
from benchmarks.avatars_dit_measure import AvatarsDitMeasure
from benchmarks.chains import Chain, Drawn, Sampler, code_hash, draw, guidance_defaults, is_drawn
from benchmarks.models import DIGITS
from benchmarks.peers import antithetic_noise, cads, conditioning_noise, divin, diversity_boost
from benchmarks.peers import particle_guidance, procreate, report, sparke
from benchmarks.peers.bank import Bank, with_mates
from benchmarks.peers.command import chains_of, draw_and_save
from benchmarks.peers.hooks import Run, Step, as_if_moved
from benchmarks.peers.methods import METHODS, OF_BATCHES, OURS, PLAIN, middle
from benchmarks.peers.node import NODE, PEERS, TSR_NODE, register
from benchmarks.peers.plan import CASES, FINAL, SWEPT, Case, Cell, ours
from benchmarks.peers.plan import plain as plain_cell
from benchmarks.peers.rows import Earlier, InBatches, Measured, best_cells, scores
from demo.avatars import avatars
from demo.data import digits

EULER = Sampler("euler", 4)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Formulas


def test_cads_schedule():
    assert [cads.gamma(time) for time in (0, 0.6, 0.75, 0.9, 1)] == pytest.approx([1, 1, 0.5, 0, 0])


def test_cads_keeps_mean_and_spread_and_drops_the_condition():
    y, noise = values(2, 50) * 3 + 1, values(2, 50, seed=1)
    assert cads.annealed(y, noise, 1.0, 0.25) is y
    half = cads.annealed(y, noise, 0.5, 0.25)
    assert half.mean(dim=1).tolist() == pytest.approx(y.mean(dim=1).tolist(), abs=1e-5)
    assert half.std(dim=1).tolist() == pytest.approx(y.std(dim=1).tolist(), abs=1e-5)
    none = cads.annealed(y, noise, 0.0, 0.25)
    assert torch.corrcoef(torch.stack([none[0], noise[0]]))[0, 1] > 0.9999
    raw = cads.annealed(y, noise, 0.5, 0.25, psi=0.0)
    spread = y.std(dim=1, correction=0, keepdim=True)
    torch.testing.assert_close(raw, 0.5 ** 0.5 * (y + 0.25 * spread * noise))


@pytest.mark.parametrize(("batch", "signs"), [(4, [1, -1, 1, -1]), (3, [1, -1, 1]), (1, [1])])
def test_antithetic_noise_negates_every_second(batch, signs):
    noise = values(batch, 5)
    found = antithetic_noise.negated(noise)
    for i, sign in enumerate(signs):
        assert torch.equal(found[i], sign * noise[i - i % 2])


def test_particle_guidance_is_the_gradient_of_its_potential():
    x, others = values(6).double(), values(5, 6, seed=1).double()
    at = x.clone().requires_grad_()
    squared = (at - others).square().sum(dim=1)
    width = squared.detach().median() / math.log(5)
    (-torch.exp(-squared / width).sum()).backward()
    torch.testing.assert_close(particle_guidance.repulsion(x, others), at.grad)


def test_sparke_goes_down_its_similarity():
    z, bank = values(12).double(), values(7, 12, seed=1).double()
    at = z.clone().requires_grad_()
    sparke.similarity(at, bank).backward()
    torch.testing.assert_close(sparke.entropy_direction(z, bank), -at.grad)


def test_procreate_goes_from_the_nearest_reference():
    image = values(3, 8, 8)
    near, far = image + 0.5 * values(3, 8, 8, seed=1), values(3, 8, 8, seed=2)
    both = procreate.energy_gradient(image, torch.stack([far, near]))
    torch.testing.assert_close(both, procreate.energy_gradient(image, near[None]))
    moved = image - 0.1 * both

    def cosine(one):
        return (procreate.features(one[None]) @ procreate.features(near[None]).T).item()

    assert cosine(moved) < cosine(image)
    most = procreate.LENGTH * 100 * (192 / procreate.ELEMENTS) ** 0.5
    assert procreate.limited(1e6 * both, 100).norm().item() == pytest.approx(most, rel=1e-4)
    torch.testing.assert_close(procreate.limited(1e-6 * both, 100), 1e-4 * both)


def test_divin_step():
    noise, fresh = values(2, 3), values(2, 3, seed=1)
    matrix = values(3, 3, seed=2)
    gradient = divin.gap_gradient(lambda x: x @ matrix, noise)
    gap = noise @ matrix
    torch.testing.assert_close(gradient, gap / gap.norm(dim=1, keepdim=True) @ matrix.T)
    torch.testing.assert_close(
        divin.langevin_step(noise, gradient, fresh, tau=0.6, eta=0.02),
        0.98 * noise - 0.012 * gradient + 0.2 * fresh)


def test_diversity_boost_turns_low_frequencies_only():
    image, noise = values(1, 3, 16, 16), values(1, 3, 16, 16, seed=1)
    share = diversity_boost.low_pass(16, 16, 2.0)
    assert share[0, 0] == 0 and share[0, 1] > 0.99 and share[2, 0] == pytest.approx(0.5 ** 0.5)
    assert share[8, 8] < 1e-4
    made = torch.fft.fft2(diversity_boost.composed(image, noise, 2.0))
    torch.testing.assert_close(made.abs(), torch.fft.fft2(image).abs() * share, atol=1e-3, rtol=0)
    same = diversity_boost.composed(image, image, 2.0)
    torch.testing.assert_close(torch.fft.fft2(same), torch.fft.fft2(image) * share, atol=1e-3,
                               rtol=0)


def test_noise_of_a_peer_is_not_that_of_the_image():
    seed, like = 3, torch.zeros(1, 4, 64, 64)
    image = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))
    own = Run.of([1.0, 0.0], seed).noise(like)
    assert abs((image * own).mean()) < 0.05
    assert torch.equal(own, Run.of([1.0, 0.0], seed).noise(like))


def test_an_euler_step_ends_where_it_would_from_the_moved_latent():
    step = Step(index=1, steps=4, sigma=2.0, following=0.5, a=1.0, s=2.0, time=0.5)
    x, moved = values(5), values(5, seed=1)
    denoised = (x + moved) * 0.3

    def euler(x, denoised):
        return x + (x - denoised) / step.sigma * (step.following - step.sigma)

    torch.testing.assert_close(euler(x, as_if_moved(denoised, moved, step)),
                               euler(x + moved, denoised))


def test_bank():
    bank = Bank()
    one, two = values(1, 3, 2, 2), values(2, 3, 2, 2, seed=1)
    assert bank.finished(one).shape == (0, 12)
    bank.add(one, {0: one + 1})
    bank.add(two, {})
    assert torch.equal(bank.finished(one), torch.cat([one, two]).flatten(1)) and len(bank) == 3
    assert torch.equal(bank.noisy(0, one), (one + 1).flatten(1))
    assert bank.noisy(1, one).shape == (0, 12)
    assert torch.equal(with_mates(values(2, 3), values(3, 3, seed=1), 1),
                       torch.cat([values(2, 3), values(3, 3, seed=1)[[0, 2]]]))


# In the host


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder for chains."""
    monkeypatch.setattr(chains, "WORK", tmp_path)


@pytest.fixture
def bench_host(fresh_host):
    fresh_host.load_extra("nodes_preview_any")
    register(fresh_host)
    return fresh_host


def chain(**changes) -> Chain:
    return Chain(**{"sampler": EULER, "cfg": 3.0, "label": 3, "count": 2} | changes)


@pytest.fixture(scope="module")
def plain() -> dict:
    """Plain images, drawn once."""
    return {}


@pytest.mark.parametrize("peer", [name for name in PEERS if name in METHODS])
def test_a_peer_changes_images_and_at_zero_leaves_them(bench_host, work, plain, peer):
    if not plain:
        plain["images"] = draw(bench_host, chain()).images
    setting = middle(peer)
    pushed = draw(bench_host, chain(patches=setting.patches)).images[-1]
    assert torch.isfinite(pushed).all()
    assert not torch.equal(pushed, plain["images"][-1])
    [[node, inputs]] = setting.patches
    off = {"strength": 0.0} if node == NODE else {"tsr_k": 1.0}
    same = draw(bench_host, chain(patches=((node, inputs | off),))).images
    assert torch.equal(same, plain["images"])


def test_antithetic_noise_changes_every_second_of_a_batch(bench_host, work):
    [[node, inputs]] = OF_BATCHES[0].patches
    plain, off, on = (draw(bench_host, chain(patches=patches, batch=2)).images
                      for patches in ((), ((node, inputs | {"strength": 0.0}),), ((node, inputs),)))
    assert torch.equal(off, plain)
    assert torch.allclose(on[0], plain[0], atol=1e-4)
    assert not torch.allclose(on[1], plain[1], atol=0.1)


def test_rescaling_in_batches_is_that_of_the_host(bench_host, work):
    hosts = middle("tsr").patches
    ours = ((NODE, {"peer": "tsr", "strength": hosts[0][1]["tsr_k"], "bank": ""}),)
    torch.testing.assert_close(draw(bench_host, chain(patches=hosts, count=1)).images,
                               draw(bench_host, chain(patches=ours, count=1)).images)


@pytest.mark.parametrize("peer", ["particle guidance", "procreate", "sparke"])
def test_without_a_bank_nothing_pushes_but_the_batch(bench_host, work, peer):
    [[node, inputs]] = middle(peer).patches
    alone = ((node, inputs | {"bank": ""}),)
    assert torch.equal(draw(bench_host, chain(patches=alone)).images,
                       draw(bench_host, chain()).images)
    pushed = draw(bench_host, chain(patches=alone, batch=2)).images
    assert pushed.shape[0] == 2
    assert not torch.equal(pushed, draw(bench_host, chain(batch=2)).images)


def test_a_chain_begins_with_an_empty_bank(bench_host, work):
    patches = middle("sparke").patches
    first = draw(bench_host, chain(patches=patches))
    assert torch.equal(first.images, draw(bench_host, chain(patches=patches)).images)
    assert first.code == code_hash(patches) != code_hash()


@pytest.mark.parametrize("method", [OURS, "ours, features", "ours + tsr", "spell"])
def test_ours_and_its_combinations(bench_host, work, method):
    defaults = guidance_defaults(bench_host)
    cell = Cell(CASES[0], middle(method), 3.0)
    made = draw(bench_host, Chain(**{**vars(cell.chain(defaults, 3, 2)), "sampler": EULER}))
    plain = draw(bench_host, chain())
    assert torch.isfinite(made.images).all()
    assert not torch.equal(made.images[1], plain.images[1])
    batch = Chain(**{**vars(cell.batches(defaults, 3)), "sampler": EULER, "count": 4})
    assert batch.batch == 4 and batch.guidance["record"] is False
    assert draw(bench_host, batch).images.shape[0] == 4


# The benchmark


def test_a_tiny_sweep_goes_on_where_it_stopped(bench_host, work, monkeypatch, tmp_path):
    case = Case(name="tiny", model=DIGITS, sampler=EULER, cfg=3.0, others=(1.5,), labels=(3, 8))
    cell = Cell(case, middle("cads"), 3.0)
    one = cell.chain({}, 3, 2)
    monkeypatch.setattr("benchmarks.peers.command.worker_host", lambda *place: bench_host)
    assert not is_drawn(one)
    assert draw_and_save((tmp_path, 1), one) == 2
    assert is_drawn(one) and not is_drawn(cell.chain({}, 3, SWEPT))
    seen = []
    run = bench_host.run
    bench_host.run = lambda prompt: seen.append(prompt["sampled"]["inputs"]["seed"]) or run(prompt)
    try:
        assert len(draw(bench_host, cell.chain({}, 3, 3)).images) == 3
    finally:
        del bench_host.run
    assert seen == [2]  # CADS needs nothing of the images before


def test_every_case_sweeps_every_method_and_the_digits_stay_affordable():
    class Nothing:
        defaults = {"radius": 0.0}

    drawn = [one for part in ("sweep", "sweep-cfg")
             for one in chains_of(part, CASES[0], Nothing())
             if one.patches or one.guidance]  # plain ones are there from the novelty benchmark
    three_strengths = 3 + 2 * 2 + len(CASES[0].others)  # chains: the middle one, the others, CFGs
    assert len(drawn) <= three_strengths * len(CASES[0].methods())
    assert {one.count for one in drawn} == {SWEPT}
    for case in CASES:
        assert {PLAIN, OURS, "spell", "tsr", *PEERS} - set(case.methods()) <= {
            "interval cfg", "antithetic noise"}
    assert METHODS["tsr"][1].patches == ((TSR_NODE, {"tsr_k": 0.85, "tsr_sigma": 1.0}),)
    assert {*METHODS, *(setting.method for setting in OF_BATCHES)} >= set(PEERS)
    assert conditioning_noise.SHARE == 0.5


def test_the_lead_in_batches_is_over_the_same_batches():
    def of(*each: float) -> InBatches:
        return InBatches(1.0, 1.0, 1.0, 1.0, "code", each)

    mine = {0: of(1.2, 1.4), 1: of(1.3)}
    assert report.lead(mine, {0: of(1.1, 1.2), 2: of(9.0)}) == "+0.150 ± 0.050"
    assert report.lead(mine, {2: of(9.0)}) == report.lead(mine, mine) == ""


def test_best_settings_and_report(work, monkeypatch, tmp_path):
    """Plain: 32 different threes, twice; ours and CADS: 64 different ones, but half of those of
    CADS at strength .25 are noise; particle guidance: 48 different ones."""
    case = CASES[0]
    monkeypatch.setattr(report, "CASES", (case,))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.results.RESULTS", tmp_path)
    images, labels = digits()
    noise = values(32, 3, 16, 16)
    measured = Measured({"radius": 0.0})
    quiet, default = METHODS["cads"][:2]
    particles = middle("particle guidance")

    def save(cell: Cell, label: int, images: torch.Tensor, count: int = SWEPT) -> None:
        Drawn(images, torch.ones(len(images)), "code").save(
            cell.chain(measured.defaults, label, count))

    for label in (3, 8):
        real = images[labels == label][:64]
        save(plain_cell(case), label, real[:32].repeat(2, 1, 1, 1))
        save(ours(case), label, real)
        save(Cell(case, quiet, 3.0), label, real[:40].repeat(2, 1, 1, 1)[:64])
        save(Cell(case, default, 3.0), label, torch.cat([real[:32], noise]))
        save(Cell(case, particles, 3.0), label, torch.cat([real[:48], real[:16]]))
        batch = ours(case).batches(measured.defaults, label)
        Drawn(real[:40].repeat(2, 1, 1, 1), torch.ones(20), "code").save(batch)
    found = scores(measured, case)
    assert {(one.cell.setting.method, one.cell.setting.strength) for one in found} == {
        (PLAIN, None), (OURS, None), ("cads", 0.1), ("cads", 0.25), ("particle guidance", 0.03)}
    lost = {(one.cell.setting.method, one.cell.setting.strength): one.lost for one in found}
    assert lost[OURS, None] == pytest.approx(0, abs=0.05)
    assert lost["cads", 0.25] == pytest.approx(0.5, abs=0.05)
    best = best_cells(case, found)
    assert best[:2] == [plain_cell(case), ours(case)] and Cell(case, quiet, 3.0) in best
    report.write_report(measured)
    summary = json.loads((tmp_path / "peers.json").read_text())["summary"]
    assert summary["digits_images"] == SWEPT and summary["digits_chains"] == 2
    assert summary["digits_best_peer"] == "particle guidance 0.03, CFG 3"
    assert (summary["digits_distinct_ours"] > summary["digits_distinct_best_peer"]
            > summary["digits_distinct_plain"])
    assert summary["digits_batch_vendi_ours"] > 1
    assert summary["digits_batch_vendi_best_peer"] is None
    assert "| ours, CFG 3 | 2 |" in (tmp_path / "peers.md").read_text()
    assert (tmp_path / "peers.png").stat().st_size > 10_000

    long = images[labels == 3][:64].repeat(4, 1, 1, 1)
    for cell in best:
        save(cell, 3, long, FINAL)
    report.write_report(measured)
    summary = json.loads((tmp_path / "peers.json").read_text())["summary"]
    assert summary["digits_images"] == FINAL and summary["digits_chains"] == 1

    for cell in (plain_cell(case), ours(case)):  # more chains than their peers have
        save(cell, 8, images[labels == 8][:64].repeat(4, 1, 1, 1), FINAL)
    more = Measured(measured.defaults)
    report.write_report(more)
    assert json.loads((tmp_path / "peers.json").read_text())["summary"] == summary
    assert "| ours, CFG 3 | 2 |" in (tmp_path / "peers.md").read_text()

    shutil.rmtree(chains.WORK / "novelty")  # figures outlive the images
    assert report.collect(measured, case) is None
    earlier = Earlier(json.loads((tmp_path / "peers.json").read_text())["cases"])
    report.write_report(Measured(measured.defaults, earlier))
    assert json.loads((tmp_path / "peers.json").read_text())["summary"] == summary


def test_measure_of_faces():
    measure = AvatarsDitMeasure(real=60)
    hats = avatars(8, seed=9, rates={"glasses": 0.0, "hat": 1.0, "side": 0.0})[0]
    assert measure.hits(hats, 2).all() and not measure.hits(hats, 0).any()
    assert measure.good(hats, 2).sum() >= 4
    assert not measure.good(values(8, 3, 24, 24), 2).any()
    figures = measure.summary(hats, 2)
    assert 1 <= figures["distinct_good"] <= 8 and figures["vendi"] > 1
    reader = measure.reader
    faces = torch.cat([hats, values(8, 3, 24, 24).clamp(-1, 1)])
    expected = (reader.read(faces) == torch.tensor([False, True, False])).all(dim=1)
    assert torch.equal(measure.hits(faces, 2), expected & reader.is_intact(faces))
