"""Keep Most Different and Keep Novel in the host."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from demo.data import digits
from demo.host import Prompt, RunFailed

MEMORY = {"name": "test", "mode": "learn", "revision": -1, "max_megabytes": 64}


@pytest.fixture(scope="module")
def drawings() -> Tensor:
    """Twelve digits as IMAGE `[12, 16, 16, 3]`."""
    images, _ = digits()
    return ((images[:12] + 1) / 2).movedim(1, -1)


@pytest.fixture
def keep(fresh_host, monkeypatch):
    """Runs nodes on the IMAGE and LATENT lists given: `source` gives them, `model`, `vae`,
    `memory` and `prompt` are there, and `saved` saves what the node `kept` keeps."""
    def run(nodes_: dict, images=(), latents=()):
        from comfy_api.latest import io

        class Source(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                return io.Schema(node_id="TestSource", outputs=[
                    io.Image.Output(is_output_list=True), io.Latent.Output(is_output_list=True)],
                    not_idempotent=True)

            @classmethod
            def fingerprint_inputs(cls):
                return float("nan")

            @classmethod
            def execute(cls):
                return io.NodeOutput([*images], [*latents])

        import nodes
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestSource", Source)
        fresh_host.restart()  # it keeps nodes, and so the one of an earlier prompt
        whole = {
            "source": ("TestSource", {}),
            "model": ("UncommonLoadADM", {"model_name": "digits"}),
            "vae": ("VAELoader", {"vae_name": "pixel_space"}),
            "memory": ("UncommonNoveltyMemory", MEMORY),
            "prompt": ("UncommonClassConditioning", {"class_number": 3}),
            "other": ("UncommonClassConditioning", {"class_number": 4}),
        } | nodes_
        return fresh_host.run(as_prompt(whole))
    return run


def as_prompt(nodes: dict) -> Prompt:
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def most_different(**inputs) -> tuple[str, dict]:
    return ("UncommonKeepMostDifferent", {"keep": "count", "count": 3, "fraction": 0.5} | inputs)


def keep_novel(**inputs) -> tuple[str, dict]:
    return ("UncommonKeepNovel", {"measure": "distance", "percentile": 10.0, "distance": 0.05}
            | inputs)


def saved(images=("kept", 0)) -> tuple[str, dict]:
    return ("SaveImage", {"images": [*images], "filename_prefix": "kept"})


def remember(**inputs) -> tuple[str, dict]:
    return ("UncommonRememberSamples", {"model": ["model", 0], "memory": ["memory", 0],
                                        "vae": ["vae", 0]} | inputs)


def against_memory(**inputs) -> tuple[str, dict]:
    return keep_novel(**{"image": ["source", 0], "model": ["model", 0], "vae": ["vae", 0],
                         "memory": ["memory", 0]} | inputs)


def outputs(run, name: str = "kept") -> list:
    """The node's outputs; lists as lists also where they hold one thing."""
    schema = ["images", "latents", "indices", "medoids"]
    found = run.outputs[name]
    return [value if isinstance(value, list) or key not in schema else [value]
            for key, value in zip([*schema[:len(found) - 1], "report"], found, strict=True)]


def blocked(value) -> bool:
    return type(value[0]).__name__ == "ExecutionBlocker"


def shown(run, name: str = "kept") -> str:
    return run.ui[name]["text"][0]


# Keep Most Different

def test_keeps_three_of_drawn_digits(fresh_host, novelty_graph):
    run = fresh_host.run(novelty_graph(batch=10, more={
        "guided": ("UncommonLoadADM", {"model_name": "digits"}),
        "kept": most_different(image=["images", 0], latent=["sampled", 0], model=["model", 0]),
        "saved": saved()}))
    images, latents, indices, medoids, report = outputs(run)
    assert len(indices) == 3 and indices == sorted(set(indices))
    assert len(medoids) == 10 and set(medoids) == set(indices)
    drawn, decoded = run.outputs["sampled"][0]["samples"], run.outputs["images"][0]
    for i, image, latent in zip(indices, images, latents, strict=True):
        assert torch.equal(image, decoded[i:i + 1])
        assert torch.equal(latent["samples"], drawn[i:i + 1])
        assert latent["batch_index"] == [i]
    assert len(run.ui["saved"]["images"]) == 3
    assert report.startswith("Kept 3 of 10; each stands for ")
    assert report.endswith("Compared: latents")
    assert shown(run) == report


def test_pixels_of_several_sizes_and_a_fraction(keep, drawings):
    large = drawings[:3].repeat_interleave(2, 1).repeat_interleave(2, 2)
    with_alpha = torch.cat([drawings[3:5], torch.rand(2, 16, 16, 1)], dim=-1)
    grey = drawings[5:6, ..., :1]
    run = keep({"kept": most_different(image=["source", 0], keep="fraction", fraction=0.5)},
               [drawings[:6], large, with_alpha, grey])
    images, latents, indices, medoids, report = outputs(run)
    assert len(indices) == 6
    assert [medoids[i] for i in (6, 7, 8, 9, 10)] == medoids[:5]  # the same, twice as large
    whole = [*drawings[:6].split(1), *large.split(1), *with_alpha.split(1), grey]
    assert all(torch.equal(image, whole[i]) for i, image in zip(indices, images, strict=True))
    assert report.endswith("Compared: pixels")


def test_the_farthest_hold_what_stands_alone(keep, drawings):
    several = torch.cat([drawings, 1 - drawings[:1]])  # a black digit on white
    far = keep({"kept": most_different(image=["source", 0], count=2, choose="farthest apart")},
               [several])
    indices, medoids, report = outputs(far)[2:]
    assert 12 in indices and len(indices) == 2
    assert medoids[12] == 12 and set(medoids) == set(indices)
    assert "The kept ones are at least " in report


def test_what_is_chosen_by_default_is_typical(keep, drawings):
    run = keep({"kept": most_different(image=["source", 0]),
                "same": most_different(image=["source", 0], choose="typical of a group")},
               [drawings])
    assert outputs(run)[2:] == outputs(run, "same")[2:]


def test_a_list_of_latents_without_a_model_keeps_masks_and_places(keep):
    samples = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(4, 1, 64, 64)
    run = keep({"kept": most_different(latent=["source", 1], count=9)}, latents=[
        {"samples": samples, "noise_mask": masks},
        {"samples": torch.ones(2, 4, 6, 10), "noise_mask": masks[:1], "batch_index": [7, 5]}])
    images, latents, indices, medoids, report = outputs(run)
    assert indices == medoids == [*range(6)]
    assert [latent["batch_index"] for latent in latents] == [[0], [1], [2], [3], [7], [5]]
    assert torch.equal(latents[2]["noise_mask"], masks[2:3])
    assert torch.equal(latents[5]["noise_mask"], masks[:1])
    assert latents[5]["samples"].shape == (1, 4, 6, 10)
    assert report.startswith("Kept all 6: 9 were asked for.")


def test_images_of_a_vae_are_compared_as_its_latents(keep, drawings):
    run = keep({"kept": most_different(image=["source", 0], vae=["vae", 0])}, [drawings])
    pixels = keep({"kept": most_different(image=["source", 0])}, [drawings])
    assert outputs(run)[2:4] == outputs(pixels)[2:4]  # this VAE's latents are the pixels
    assert shown(run).endswith("latents") and shown(pixels).endswith("pixels")


def test_an_output_without_its_input_says_so(keep, drawings):
    run = keep({"kept": most_different(latent=["source", 1]), "saved": saved()},
               latents=[{"samples": drawings.movedim(-1, 1)}])
    [error] = [data for event, data in run.events if event == "execution_error"]
    assert error["node_id"] == "saved"
    assert "Keep Most Different got no images to give on" in error["exception_message"]
    assert shown(run).startswith("Kept 3 of 12")


@pytest.mark.parametrize(("inputs", "images", "latents", "message"), [
    ({}, 0, 0, "Nothing to choose from. Connect images or latents."),
    ({"image": ["source", 0], "latent": ["source", 1]}, 3, [torch.ones(2, 3, 8, 8)],
     "There are 3 images but 2 latents"),
    ({"latent": ["source", 1]}, 0, [torch.zeros(2, 3, 8, 8)], "This latent is empty"),
    ({"latent": ["source", 1]}, 0, [torch.ones(2, 3, 8, 8), torch.ones(2, 4, 8, 8)],
     "differ in their number of channels"),
    ({"latent": ["source", 1], "model": ["model", 0]}, 0, [torch.ones(2, 4, 8, 8)],
     "the model works with 3 channels"),
    ({"latent": ["source", 1]}, 0,
     [torch.ones(1, 3, 8, 8), torch.full((1, 3, 8, 8), torch.nan)], "Number 1 .* no numbers"),
])
def test_what_cannot_be_compared_says_why(keep, drawings, inputs, images, latents, message):
    with pytest.raises(RunFailed, match=message) as failed:
        keep({"kept": most_different(**inputs)}, [drawings[:images]] if images else [],
             [{"samples": samples} for samples in latents or []])
    assert failed.value.node_id == "kept"


def test_without_kmedoids_the_error_names_the_command(keep, drawings, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "kmedoids", None)
    with pytest.raises(RunFailed, match="-m pip install"):
        keep({"kept": most_different(image=["source", 0])}, [drawings])


# Keep Novel

def test_without_a_memory_copies_of_one_another_are_dropped(keep, drawings):
    run = keep({"kept": keep_novel(image=["source", 0]), "saved": saved()},
               [drawings[:3], drawings[1:4], drawings[:1]])
    images, latents, indices, report = outputs(run)
    assert indices == [0, 1, 2, 5]
    assert all(torch.equal(image, drawings[i:i + 1]) for i, image in enumerate(images))
    assert report.startswith(
        "Kept 4 of 7; dropped 3 too near to an image that was kept, below 0.05.")


def test_what_is_remembered_is_dropped_and_the_others_are_kept(keep, drawings):
    keep({"remember": remember(image=["source", 0])}, [drawings[2:5]])
    latents = [{"samples": drawings[:8].movedim(-1, 1) * 2 - 1}]
    for inputs in ({}, {"distance": 0.0}, {"latent": ["source", 1]}):
        run = keep({"kept": against_memory(**inputs), "saved": saved()}, [drawings[:8]], latents)
        assert outputs(run)[2] == [0, 1, 5, 6, 7]
        assert "Kept 5 of 8; dropped 3 too near to the memory, below " in shown(run)
        assert "test@3: 3 samples" in shown(run)
        assert len(run.ui["saved"]["images"]) == 5


def test_nothing_new_stops_what_follows_without_an_error(keep, drawings):
    keep({"remember": remember(image=["source", 0])}, [drawings])
    run = keep({"kept": against_memory(), "saved": saved(),
                "rebatch": ("UncommonKeepMostDifferent", most_different(image=["kept", 0])[1])},
               [drawings[:3]])
    images, latents, indices, report = outputs(run)
    assert all(map(blocked, (images, latents, indices)))
    assert report.startswith("Nothing kept, so what follows does not run. Kept 0 of 3;")
    assert shown(run) == report
    assert "saved" not in run.ui and "rebatch" not in run.ui
    assert not [event for event, _ in run.events if event == "execution_error"]


def test_a_percentile_is_one_of_the_memory(keep, drawings, fresh_host):
    keep({"remember": remember(image=["source", 0])}, [drawings[:6]])
    space = fresh_host.pack("guidance.latent_space").LatentSpace("any", 3)
    embedding = space.embed(drawings.movedim(-1, 1) * 2 - 1)
    between = torch.cdist(embedding[:6], embedding[:6]).fill_diagonal_(torch.inf)
    limit = between.min(dim=1).values.quantile(0.6)
    new = [i for i, distance in enumerate(torch.cdist(embedding[6:], embedding[:6]).min(1).values)
           if distance >= limit]
    expected = []
    for i in new:
        if all((embedding[6 + i] - embedding[6 + j]).norm() >= limit for j in expected):
            expected.append(i)
    run = keep({"kept": against_memory(measure="percentile", percentile=60.0)}, [drawings[6:]])
    assert 0 < len(expected) < 6
    assert outputs(run)[2] == expected
    assert f"Percentile 60 in the memory is a distance of {limit:.3g}" in shown(run)


def test_an_empty_memory_takes_the_percentile_among_the_images(keep, drawings):
    run = keep({"kept": against_memory(measure="percentile", percentile=50.0)}, [drawings])
    assert "test@0: 0 samples" in shown(run)
    assert "Percentile 50 among the images is a distance of" in shown(run)
    assert 0 < len(outputs(run)[2]) < 12
    run = keep({"kept": against_memory(measure="percentile", percentile=50.0)}, [drawings[:1]])
    assert "nothing to take a percentile of" in shown(run)
    assert outputs(run)[2] == [0]


def test_a_prompt_lets_only_like_prompts_count(keep, drawings):
    keep({"remember": remember(image=["source", 0], conditioning=["prompt", 0])}, [drawings[:2]])
    for conditioning, kept in ((None, [2]), ("prompt", [2]), ("other", [0, 1, 2])):
        more = {"conditioning": [conditioning, 0]} if conditioning else {}
        run = keep({"kept": against_memory(**more)}, [drawings[:3]])
        assert outputs(run)[2] == kept
        assert ("2 of them have quite different prompts" in shown(run)) == (
            conditioning == "other")


def test_what_this_run_recorded_is_not_compared_with_itself(fresh_host, novelty_graph):
    def graph(seed):
        return novelty_graph(batch=4, seed=seed, more={
            "kept": keep_novel(image=["images", 0], latent=["sampled", 0], model=["model", 0],
                               memory=["memory", 0]),
            "saved": saved()})
    run = fresh_host.run(graph(0))
    assert outputs(run)[2] == [0, 1, 2, 3]
    assert "test@4: 4 samples, of which this run recorded 4, which do not count" in shown(run)
    run = fresh_host.run(graph(1))
    assert "test@8: 8 samples, of which this run recorded 4, which do not count" in shown(run)
    assert outputs(run)[2]
    drawn = run.outputs["sampled"][0]
    bank = fresh_host.pack("guidance.novelty_memory").shared_bank(
        fresh_host.pack("nodes._host").default_database(), "test")
    assert len(bank.at()) == 8 and len(drawn["samples"]) == 4


def test_a_frozen_memory_counts_at_its_revision(keep, drawings):
    keep({"remember": remember(image=["source", 0])}, [drawings[:4]])
    frozen = ("UncommonNoveltyMemory", MEMORY | {"mode": "frozen", "revision": 2})
    run = keep({"memory": frozen, "kept": against_memory()}, [drawings[:5]])
    assert outputs(run)[2] == [2, 3, 4]
    assert "test@2: 2 samples" in shown(run)


@pytest.mark.parametrize(("inputs", "message"), [
    ({"image": ["source", 0], "vae": ["vae", 0]}, "the model that it guides is needed"),
    ({"image": ["source", 0], "model": ["model", 0]}, "the model's VAE is needed"),
])
def test_a_memory_needs_the_model_and_for_images_the_vae(keep, drawings, inputs, message):
    with pytest.raises(RunFailed, match=message) as failed:
        keep({"kept": keep_novel(memory=["memory", 0], **inputs)}, [drawings])
    assert failed.value.node_id == "kept"


def test_a_memory_of_another_space_is_refused(keep, drawings, fresh_host):
    memory = fresh_host.pack("guidance.novelty_memory").NoveltyMemory(
        url=fresh_host.pack("nodes._host").default_database(), name="test")
    memory.record(memory.bank.at(), "latent-8x8/1/Flux/16", hashes=["0" * 64],
                  embedding=torch.zeros(1, 16 * 64), prompt=None, seed=0,
                  settings={}, previews=[None])
    with pytest.raises(RunFailed, match="remembers samples of feature space .*Flux/16") as failed:
        keep({"kept": against_memory()}, [drawings])
    assert failed.value.node_id == "kept"
