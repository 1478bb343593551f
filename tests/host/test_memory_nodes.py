"""Remember Samples, Forget Samples and Memory Info in the host."""

from __future__ import annotations

import io

import psutil
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

from demo.host import Interrupted, Prompt, RunFailed


@pytest.fixture
def draws(novelty_graph):
    """A graph that draws with guidance, with more nodes after the memory or the sampler."""
    def graph(**more) -> Prompt:
        return novelty_graph(more=more)
    return graph


@pytest.fixture
def memory_only(novelty_graph):
    """A graph without a sampler: the model, its VAE, the prompt, and the memory `memory`."""
    def graph(memory: dict | None = None, **more) -> Prompt:
        whole = novelty_graph(memory=memory, more=more)
        return {name: node for name, node in whole.items()
                if name in ("model", "memory", "vae", "positive", "latent") or name in more}
    return graph


@pytest.fixture
def samples(fresh_host):
    """What the memory remembers now."""
    hooks = fresh_host.pack("guidance.novelty_memory")

    def read() -> list:
        url = fresh_host.pack("nodes._host").default_database()
        return list(hooks.NoveltyMemory(url=url, name="test").log.samples())
    return read


@pytest.fixture
def pictures(tmp_path):
    """A folder of five images of several formats and sizes, and of two files that are none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("b.png", "a.jpg", "d.webp", "e.png", "c.png")):
        Image.new("RGB", (20 + 9 * number, 30), (50 * number, 100, 255)).save(folder / name)
    (folder / "torn.png").write_bytes((folder / "b.png").read_bytes()[:40])
    (folder / "notes.txt").write_text("no image")
    return folder


def remember(**inputs) -> tuple[str, dict]:
    return ("UncommonRememberSamples", {"model": ["model", 0], "memory": ["memory", 0],
                                        "width": 16, "height": 16} | inputs)


def forget(what: str, count: int = 1, number: int = 1, **more) -> tuple[str, dict]:
    return ("UncommonForgetSamples", {"memory": ["memory", 0], "what": what, "count": count,
                                      "number": number} | more)


def info(**inputs) -> tuple[str, dict]:
    return ("UncommonMemoryInfo", {"memory": ["memory", 0]} | inputs)


def image(run, name: str = "info") -> Tensor:
    return run.outputs[name][2]


# Remember Samples

def test_remembers_latents_that_then_push(fresh_host, draws, samples):
    run = fresh_host.run(draws(
        guided=("UncommonNoveltyGuidance", {
            "model": ["model", 0], "memory": ["kept", 0], "strength": 0.5, "start_percent": 0.0,
            "end_percent": 1.0, "repulsion": "exact"}),
        kept=remember(latent=["source", 0]),
        source=("KSampler", {
            "model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0],
            "latent_image": ["latent", 0], "seed": 0, "steps": 6, "cfg": 2.0,
            "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0})))
    assert "1 new, 0 remembered already" in run.ui["kept"]["text"][0]
    source, drawn = (run.outputs[name][0]["samples"] for name in ("source", "sampled"))
    assert not torch.allclose(source, drawn, atol=0.05)
    assert [entry.settings.get("source") for entry in samples()] == ["latent", None]


@pytest.mark.parametrize("half", [False, True])
def test_a_latent_that_guidance_recorded_is_known_already(fresh_host, draws, samples, monkeypatch,
                                                          half):
    """half: as with --fp16-intermediates."""
    import comfy.model_management
    monkeypatch.setattr(comfy.model_management.args, "fp16_intermediates", half)
    run = fresh_host.run(draws(kept=remember(latent=["sampled", 0])))
    assert run.outputs["kept"][1].startswith("test: 0 new, 1 remembered already")
    assert len(samples()) == 1


def test_remembers_images_with_their_prompt(fresh_host, memory_only, samples):
    run = fresh_host.run(memory_only(
        picture=("EmptyImage", {"width": 16, "height": 16, "batch_size": 3, "color": 0xFF0000}),
        kept=remember(image=["picture", 0], vae=["vae", 0], conditioning=["positive", 0])))
    assert run.outputs["kept"][1].startswith("test: 1 new, 2 remembered already")
    [entry] = samples()
    assert entry.prompt_embedding.norm() == pytest.approx(1, abs=1e-3)
    assert entry.settings["source"] == "image"
    assert entry.preview.startswith(b"\x89PNG")


def test_remembers_a_folder_in_order_and_names_what_it_skips(fresh_host, memory_only, samples,
                                                             pictures):
    run = fresh_host.run(memory_only(kept=remember(folder=str(pictures), vae=["vae", 0])))
    report = run.outputs["kept"][1]
    assert report.startswith("test: 5 new, 0 remembered already\n1 skipped:\ntorn.png: ")
    assert "notes" not in report
    green_and_blue = torch.tensor([100 / 255, 1.0]) * 2 - 1
    reds = []
    for entry in samples():
        red, *others = entry.embedding.view(3, -1).mean(1) * (3 * 64) ** 0.5
        assert torch.allclose(torch.stack(others), green_and_blue, atol=0.05)
        reds.append(round((red.item() + 1) / 2 * 255 / 50))
    assert reds == [1, 0, 4, 2, 3]  # a, b, c, d, e


def test_images_of_a_folder_are_upright_and_as_wide_and_high_as_asked(fresh_host, memory_only,
                                                                      samples, tmp_path):
    picture = Image.new("RGB", (64, 32))
    picture.paste("white", (0, 0, 32, 32))  # the left half
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # as a phone held upright writes it
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    fresh_host.run(memory_only(kept=remember(folder=str(tmp_path), vae=["vae", 0], width=32)))
    [entry] = samples()
    with Image.open(io.BytesIO(entry.preview)) as preview:
        assert preview.size == (32, 16)
    grid = entry.embedding.view(3, 8, 8)
    assert grid[..., :4].mean() > 0 > grid[..., 4:].mean()


def test_a_file_that_is_too_large_is_named(fresh_host, memory_only, pictures, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    Image.new("1", (200, 200)).save(pictures / "huge.png")
    run = fresh_host.run(memory_only(kept=remember(folder=str(pictures), vae=["vae", 0])))
    assert run.outputs["kept"][1].startswith("test: 5 new, 0 remembered already\n2 skipped:\nhuge")


def test_a_folder_that_grew_is_read_again_and_only_the_new_is_added(fresh_host, memory_only,
                                                                   samples, pictures):
    graph = memory_only(kept=remember(folder=str(pictures), vae=["vae", 0]))
    fresh_host.run(graph)
    assert "0 new, 5 remembered" in fresh_host.run(graph).outputs["kept"][1]
    assert fresh_host.run(graph).executed == []
    Image.new("RGB", (20, 20), "white").save(pictures / "f.png")
    run = fresh_host.run(graph)
    assert run.executed == ["kept"]
    assert "1 new, 5 remembered already" in run.outputs["kept"][1]
    assert len(samples()) == 6


def test_known_files_are_not_even_decoded(fresh_host, memory_only, pictures, monkeypatch):
    graph = memory_only(kept=remember(folder=str(pictures), vae=["vae", 0]))
    fresh_host.run(graph)
    (pictures / "torn.png").unlink()
    monkeypatch.setattr(fresh_host.pack("nodes._importer"), "load_image", None)
    assert "0 new, 5 remembered already" in fresh_host.run(graph).outputs["kept"][1]


def test_a_folder_inside_the_input_folder(fresh_host, memory_only, samples):
    folder = fresh_host.directory / "input" / "set"
    folder.mkdir()
    Image.new("RGB", (20, 20), "white").save(folder / "one.png")
    fresh_host.run(memory_only(kept=remember(folder="set", vae=["vae", 0])))
    assert len(samples()) == 1


def test_an_interrupted_folder_keeps_what_was_read(fresh_host, memory_only, samples, tmp_path):
    for number in range(40):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    graph = memory_only(kept=remember(folder=str(tmp_path), vae=["vae", 0]))

    def stop(node_id, step, steps):
        assert steps == 40
        if step == 35:
            fresh_host.interrupt()

    with pytest.raises(Interrupted):
        fresh_host.run(graph, on_progress=stop)
    assert len(samples()) == 32
    assert "8 new, 32 remembered already" in fresh_host.run(graph).outputs["kept"][1]


@pytest.mark.parametrize(("inputs", "message"), [
    ({}, "Connect a latent, or an image and the VAE"),
    ({"folder": "/no/such/folder", "vae": ["vae", 0]}, "is no folder on the computer"),
    ({"folder": "{empty}", "vae": ["vae", 0]}, "holds no images"),
    ({"folder": "{pictures}"}, "need the model's VAE"),
    ({"latent": ["latent", 0]}, "This latent is empty"),
])
def test_what_cannot_be_remembered_says_why(fresh_host, memory_only, samples, pictures, tmp_path,
                                            inputs, message):
    (tmp_path / "empty").mkdir()
    inputs = {key: value.format(empty=tmp_path / "empty", pictures=pictures)
              if isinstance(value, str) else value for key, value in inputs.items()}
    with pytest.raises(RunFailed) as failed:
        fresh_host.run(memory_only(kept=remember(**inputs)))
    assert failed.value.node_id == "kept"
    assert message in failed.value.message
    assert samples() == []


def test_latents_of_another_model_are_refused(fresh_host, memory_only):
    run = fresh_host.run(memory_only(info=info(after=["model", 0])))
    importer = fresh_host.pack("nodes._importer").Importer(
        run.outputs["model"][0], run.outputs["memory"][0], None, None)
    with pytest.raises(ValueError, match="the model works with 3 channels"):
        importer.add_latents(torch.ones(1, 4, 2, 2))


@pytest.mark.parametrize("node", [remember(latent=["latent", 0]), forget("all")])
def test_a_frozen_memory_is_refused(fresh_host, memory_only, draws, samples, node):
    fresh_host.run(draws())
    with pytest.raises(RunFailed, match='Memory "test" is frozen.*Set mode to learn') as failed:
        fresh_host.run(memory_only({"mode": "frozen"}, changed=node))
    assert failed.value.node_id == "changed"
    assert len(samples()) == 1


def test_a_large_folder_is_streamed(fresh_host, memory_only, samples, tmp_path):
    """2,000 images in bounded memory, stopped half-way and gone on with; the RAM that the second
    half takes is what its fingerprints take, and some."""
    for number in range(2000):
        Image.new("RGB", (16, 16), (number % 256, number // 256, 0)).save(
            tmp_path / f"{number:04}.png")
    graph = memory_only(kept=remember(folder=str(tmp_path), vae=["vae", 0]))
    used = []

    def watch(node_id, step, steps):
        if step >= 1000 and not used:
            fresh_host.interrupt()
        if step >= 1000:
            used.append(psutil.Process().memory_info().rss)

    with pytest.raises(Interrupted):
        fresh_host.run(graph, on_progress=watch)
    first = len(samples())
    assert 900 < first < 1100
    report = fresh_host.run(graph, on_progress=watch).outputs["kept"][1]
    assert f"{2000 - first} new, {first} remembered already" in report
    assert used[-1] - used[0] < 30 * 2 ** 20


# Forget Samples

def test_forgets_each_time_the_queue_runs(fresh_host, draws, memory_only, samples):
    for _ in range(4):
        fresh_host.run(draws())
    graph = memory_only(gone=forget("last"))
    for left in (3, 2, 1, 0, 0, 0):
        run = fresh_host.run(graph)
        assert "gone" in run.executed
        assert len(samples()) == left
    assert "nothing to forget" in run.ui["gone"]["text"][0]


def test_forgets_one_by_its_number(fresh_host, draws, memory_only, samples):
    for _ in range(3):
        fresh_host.run(draws())
    run = fresh_host.run(memory_only(gone=forget("one", number=2)))
    assert [entry.revision for entry in samples()] == [1, 3]
    assert "forgot 1 of 3 samples" in run.outputs["gone"][1]
    with pytest.raises(RunFailed, match="no live sample at revision 2"):
        fresh_host.run(memory_only(gone=forget("one", number=2)))


def test_forgets_chosen_samples_and_takes_it_back(fresh_host, draws, memory_only, samples):
    for _ in range(3):
        fresh_host.run(draws())
    before = {entry.content_hash for entry in samples()}
    fresh_host.run(memory_only(gone=forget("chosen", numbers="1, 3")))
    assert [entry.revision for entry in samples()] == [2]
    run = fresh_host.run(memory_only(back=forget("undo")))
    assert "2 samples came back, as numbers 5 to 6" in run.outputs["back"][1]
    assert [entry.revision for entry in samples()] == [2, 5, 6]
    assert {entry.content_hash for entry in samples()} == before
    fresh_host.run(draws())  # the guidance works with what came back
    assert len(samples()) == 4
    with pytest.raises(RunFailed, match="No samples are chosen"):
        fresh_host.run(memory_only(gone=forget("chosen")))


def test_two_forget_nodes_alike_both_run(fresh_host, draws, memory_only, samples):
    for _ in range(3):
        fresh_host.run(draws())
    fresh_host.run(memory_only(gone=forget("last"), too=forget("last")))
    assert len(samples()) == 1


def test_a_forgotten_image_may_come_again(fresh_host, draws, novelty_graph, memory_only):
    first = fresh_host.run(draws()).outputs["sampled"][0]["samples"]
    fresh_host.run(memory_only(gone=forget("all")))
    again = fresh_host.run(draws()).outputs["sampled"][0]["samples"]
    assert torch.equal(first, again)


# Options of Novelty Memory

def test_old_samples_fade(fresh_host, novelty_graph):
    """With a half-life the first of ten images, which counts a five-hundredth, hardly pushes its
    own copy any more, and the frozen revision does so again and again, bit for bit."""
    for seed in range(10):
        fresh_host.run(novelty_graph(seed=seed, guidance={"strength": 0.0}))

    def again(**memory) -> Tensor:
        fresh_host.restart()
        return fresh_host.run(novelty_graph(
            seed=0, memory={"mode": "frozen", "revision": 10} | memory)
        ).outputs["sampled"][0]["samples"]

    plain = fresh_host.run(novelty_graph(seed=0, memory={"name": "new"})
                           ).outputs["sampled"][0]["samples"]
    lasting, faded = again(), again(half_life=1)
    assert (faded - plain).norm() < 0.7 * (lasting - plain).norm()
    assert torch.equal(again(half_life=1), faded)
    assert torch.equal(again(half_life=0), lasting)


def test_the_options_reach_the_memory(fresh_host, memory_only):
    for options in ({}, {"when_full": "reservoir", "half_life": 300}):
        memory = fresh_host.run(memory_only(options, info=info())).outputs["memory"][0]
        found = {"when_full": memory.when_full, "half_life": memory.half_life}
        assert found == {"when_full": "oldest", "half_life": 0} | options


# Memory Info

def test_info_after_a_sampler_shows_the_new_samples(fresh_host, draws):
    for count in (1, 2, 3):
        run = fresh_host.run(draws(info=info(after=["sampled", 0])))
        report, revision, previews = run.outputs["info"]
        assert revision == count
        assert previews.shape == (count, 64, 64, 3)
        assert f"Number {count}: seed 0" in report
        assert run.ui["info"]["text"] == [report]
        assert len(run.ui["info"]["images"]) == count
    newest_first = image(run)
    assert torch.equal(image(fresh_host.run(draws(
        memory=("UncommonNoveltyMemory", {"name": "test", "mode": "frozen", "revision": 3,
                                          "max_megabytes": 64}),
        info=info(newest=1)))), newest_first[:1])


def test_two_alike_both_show_their_report(fresh_host, memory_only):
    run = fresh_host.run(memory_only(info=info(), other=info()))
    assert run.ui["info"]["text"] == run.ui["other"]["text"]
    assert {"info", "other"} <= set(run.executed)


def test_info_of_an_empty_memory(fresh_host, memory_only):
    run = fresh_host.run(memory_only(info=info()))
    report, revision, previews = run.outputs["info"]
    assert report.startswith("test@0, learning\n0 samples")
    assert revision == 0
    assert torch.equal(previews, torch.zeros(1, 64, 64, 3))


def test_info_tells_of_an_older_revision(fresh_host, draws, memory_only):
    for _ in range(3):
        fresh_host.run(draws())
    run = fresh_host.run(memory_only({"mode": "frozen", "revision": 2}, info=info(newest=0)))
    assert run.outputs["info"][0].startswith("test@2, frozen; the latest revision is 3")
    assert run.outputs["info"][1] == 2
