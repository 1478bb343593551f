"""Minority Score and Select by Minority Score in the host."""

from __future__ import annotations

import copy
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from demo.data import digits
from demo.host import Interrupted, Prompt, PromptRejected, RunFailed
from guidance.distances import BACKBONES, DISTANCES, load_distance
from guidance.minority_score import default_sigma, noise_for


@pytest.fixture(scope="module")
def drawings() -> torch.Tensor:
    """Forty digits as IMAGE `[40, 16, 16, 3]`, in the 8 bits of a file."""
    images, _ = digits()
    return (((images[:40] + 1) / 2).movedim(1, -1) * 255).round() / 255


@pytest.fixture
def folder(tmp_path, drawings):
    """Twelve digits as PNG files."""
    path = tmp_path / "digits"
    path.mkdir()
    for number in range(12):
        save(drawings[number], path / f"{number:02}.png")
    return path


@pytest.fixture(autouse=True)
def own_temp_folder(fresh_host, tmp_path):
    import folder_paths

    before = folder_paths.get_temp_directory()
    (tmp_path / "base" / "temp").mkdir(parents=True)
    folder_paths.set_temp_directory(str(tmp_path / "base" / "temp"))
    yield
    folder_paths.set_temp_directory(before)


def save(image: torch.Tensor, file) -> None:
    Image.fromarray((image.numpy() * 255).round().astype(np.uint8)).save(file)


def graph(label: int | None = None, *, more: dict | None = None, **inputs) -> Prompt:
    nodes = {
        "model": ("UncommonLoadADM", {"model_name": "digits"}),
        "vae": ("VAELoader", {"vae_name": "pixel_space"}),
        "score": ("UncommonMinorityScore", {"model": ["model", 0], "vae": ["vae", 0]} | inputs),
    } | (more or {})
    if label is not None:
        nodes["prompt"] = ("UncommonClassConditioning", {"class_number": label})
        nodes["score"][1]["conditioning"] = ["prompt", 0]
    return {name: {"class_type": kind, "inputs": values} for name, (kind, values) in nodes.items()}


@pytest.fixture
def evaluations(fresh_host, monkeypatch) -> list[int]:
    """The size of each batch that the model was given."""
    seen: list[int] = []
    denoiser = fresh_host.pack("nodes._scorer").HostDenoiser
    call = denoiser.__call__

    def counted(self, latents, noise):
        seen.append(len(latents))
        return call(self, latents, noise)

    monkeypatch.setattr(denoiser, "__call__", counted)
    return seen


@pytest.fixture
def parts(fresh_host):
    """The digits model and its VAE, as they are on a wire."""
    run = fresh_host.run(graph(more={
        "score": ("EmptyLatentImage", {"width": 16, "height": 16, "batch_size": 1}),
        "image": ("VAEDecode", {"samples": ["score", 0], "vae": ["vae", 0]}),
        "out": ("PreviewImage", {"images": ["image", 0]}),
        "model": ("UncommonLoadADM", {"model_name": "digits"}),
        "sampled": ("KSampler", {
            "model": ["model", 0], "positive": ["c", 0], "negative": ["c", 0],
            "latent_image": ["score", 0], "seed": 0, "steps": 1, "cfg": 1.0,
            "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}),
        "c": ("UncommonClassConditioning", {"class_number": -1}),
        "drawn": ("VAEDecode", {"samples": ["sampled", 0], "vae": ["vae", 0]}),
        "kept": ("PreviewImage", {"images": ["drawn", 0]})}))
    return run.outputs["model"][0], run.outputs["vae"][0]


def scored(run, name: str = "score"):
    return run.outputs[name][0]


def by_path(run) -> dict[str, float]:
    images = scored(run)
    return dict(zip(images.paths, images.scores.tolist(), strict=True))


# A folder

def test_a_folder_is_scored_once_and_then_found_again(fresh_host, folder, evaluations):
    first = fresh_host.run(graph(folder=str(folder)))
    assert first.outputs["score"][4].startswith(
        "12 images at 16 x 16, latent_l2, sigma 0.4: 12 new, 0 scored already\nScore: rarest ")
    assert sum(evaluations) == 5 * (1 + 12)
    assert fresh_host.run(graph(folder=str(folder))).executed == []

    fresh_host.restart()
    evaluations.clear()
    again = fresh_host.run(graph(folder=str(folder)))
    assert sum(evaluations) == 5  # the test image that tells the model from others
    assert "0 new, 12 scored already" in again.outputs["score"][4]
    assert by_path(again) == by_path(first)
    assert torch.equal(scored(again).latents(range(12)), scored(first).latents(range(12)))


def test_a_folder_that_comes_by_a_link_is_looked_at_each_time(fresh_host, folder):
    fresh_host.load_extra("nodes_primitive")
    linked = graph(folder=["text", 0], more={"text": ("PrimitiveString", {"value": str(folder)})})
    fresh_host.run(linked)
    Image.new("RGB", (16, 16), "red").save(folder / "new.png")
    assert "1 new, 12 scored already" in fresh_host.run(linked).outputs["score"][4]


def test_what_was_deleted_is_scored_anew(fresh_host, folder):
    prompt = graph(folder=str(folder), more=select(3, "rarest"))
    kept = scored(fresh_host.run(prompt)).kept.path
    for file in kept.parent.iterdir():
        file.unlink()
    prompt["picked"]["inputs"]["count"] = 4
    run = fresh_host.run(prompt)
    assert "12 new, 0 scored already" in run.outputs["score"][4]
    assert len(run.outputs["picked"][1]) == 4
    assert fresh_host.run(prompt).executed == []


def test_known_files_are_not_even_read(fresh_host, folder, monkeypatch):
    fresh_host.run(graph(folder=str(folder), show=1))
    Image.new("RGB", (16, 16), "red").save(folder / "new.png")
    read = []
    module = fresh_host.pack("nodes._image_scorer")
    crop = module.centre_cropped
    monkeypatch.setattr(module, "centre_cropped", lambda *a: read.append(a) or crop(*a))
    run = fresh_host.run(graph(folder=str(folder), show=1))
    assert "1 new, 12 scored already" in run.outputs["score"][4]
    assert len(read) == 1 + 2  # the new one, and the two that are shown


def test_a_changed_file_is_scored_anew_and_a_renamed_one_is_not(fresh_host, folder, evaluations,
                                                               drawings):
    (folder / "00.png").unlink()
    save(drawings[0], folder / "00.bmp")  # of one size, whatever it shows
    fresh_host.run(graph(folder=str(folder)))
    save(drawings[30], folder / "00.bmp")
    (folder / "01.png").rename(folder / "z.png")
    evaluations.clear()
    run = fresh_host.run(graph(folder=str(folder)))
    assert sum(evaluations) == 5 * (1 + 1)
    assert "12 images" in run.outputs["score"][4]
    assert {*by_path(run)} == {str(file) for file in folder.iterdir()}


def test_scores_are_sorted_and_do_not_depend_on_order_or_company(fresh_host, folder, drawings,
                                                                tmp_path):
    run = fresh_host.run(graph(folder=str(folder)))
    scores = run.outputs["score"][1]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 12
    other = tmp_path / "other"
    other.mkdir()
    for number in (11, 3, 7):
        (other / f"{99 - number}.png").write_bytes((folder / f"{number:02}.png").read_bytes())
    with fresh_host.user_directory(tmp_path / "another user"):
        alone = by_path(fresh_host.run(graph(folder=str(other), batch=2)))
    whole = by_path(run)
    for number in (11, 3, 7):
        assert alone[str(other / f"{99 - number}.png")] == pytest.approx(
            whole[str(folder / f"{number:02}.png")], rel=1e-4)


def test_the_score_is_the_closed_form_of_the_model_and_the_noise(fresh_host, folder, parts,
                                                                drawings):
    model, vae = parts
    images = scored(fresh_host.run(graph(folder=str(folder), sigma=2.0, draws=3, seed=7)))
    net = model.model
    x0 = drawings[4].movedim(-1, 0)[None] * 2 - 1
    [index] = [i for i, path in enumerate(images.paths) if path.endswith("04.png")]
    noise = torch.stack([noise_for(images.hashes[index], 7, draw, x0.shape[1:])
                         for draw in range(3)])
    with torch.inference_mode():
        sigma = torch.full((3,), 2.0)
        x_t = x0 + 2.0 * noise
        prediction = net.diffusion_model(
            x_t / (1 + 2.0 ** 2) ** 0.5, net.process_timestep(net.model_sampling.timestep(sigma)),
            y=torch.full((3,), -1))
    expected = 2.0 ** 2 * (prediction - noise).square().mean()
    assert images.scores[index].item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.allclose(images.latents([index]), x0, atol=1e-3)


def test_noise_is_rarer_than_digits(fresh_host, folder):
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / "noise.png")
    run = fresh_host.run(graph(folder=str(folder)))
    assert scored(run).paths[0] == str(folder / "noise.png")
    assert run.outputs["score"][1][0] > 2 * run.outputs["score"][1][1]


@pytest.mark.parametrize("change", [{"label": 3}, {"sigma": 2.0}, {"seed": 1}, {"draws": 2},
                                    {"distance": "l1"}, {"width": 32, "height": 32}])
def test_another_way_of_scoring_is_another_set(fresh_host, folder, change):
    first = fresh_host.run(graph(folder=str(folder)))
    other = fresh_host.run(graph(folder=str(folder), **change))
    assert "12 new, 0 scored already" in other.outputs["score"][4]
    assert scored(other).kept.path != scored(first).kept.path
    assert by_path(other) != by_path(first)
    fresh_host.restart()
    assert by_path(fresh_host.run(graph(folder=str(folder)))) == by_path(first)


def test_a_patched_model_is_another_set(fresh_host, folder):
    fresh_host.load_extra("nodes_model_advanced")
    fresh_host.run(graph(folder=str(folder)))
    run = fresh_host.run(graph(folder=str(folder), model=["patched", 0], more={
        "patched": ("RescaleCFG", {"model": ["model", 0], "multiplier": 0.7}),
        "flow": ("ModelSamplingSD3", {"model": ["model", 0], "shift": 3.0})}))
    assert "0 new, 12 scored already" in run.outputs["score"][4]  # CFG 1: the same answers
    run = fresh_host.run(graph(folder=str(folder), model=["flow", 0], more={
        "flow": ("ModelSamplingSD3", {"model": ["model", 0], "shift": 3.0})}))
    assert "12 new, 0 scored already" in run.outputs["score"][4]


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_ranks(fresh_host, folder, monkeypatch, tmp_path, distance):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    net = distance.removeprefix("lpips_")
    if net in ("vgg", "alex"):
        with pytest.raises(RunFailed) as failed:
            fresh_host.run(graph(folder=str(folder), distance=distance))
        assert failed.value.node_id == "score"
        assert BACKBONES[net].url in failed.value.message
        assert f'into "{fresh_host.directory / "models" / "lpips"}"' in failed.value.message
        return
    if net == "squeeze":
        from torchvision.models import squeezenet1_1

        models = tmp_path / "lpips"
        models.mkdir()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(3)
            torch.save(squeezenet1_1().state_dict(), models / BACKBONES[net].file)
        monkeypatch.setattr(fresh_host.pack("nodes._image_scorer"), "lpips_folders",
                            lambda: [models])
    run = fresh_host.run(graph(folder=str(folder), distance=distance, draws=2))
    assert len(set(run.outputs["score"][1])) == 12
    assert min(run.outputs["score"][1]) > 0


def test_image_distances_compare_decoded_images_in_the_range_of_images(fresh_host, folder, parts,
                                                                      drawings):
    images = scored(fresh_host.run(graph(folder=str(folder), distance="l1", draws=2, sigma=14.0)))
    model, _ = parts
    denoise = fresh_host.pack("nodes._scorer").HostDenoiser(model, None, 14.0)
    [index] = [i for i, path in enumerate(images.paths) if path.endswith("05.png")]
    x0 = (drawings[5].movedim(-1, 0)[None] * 2 - 1).repeat(2, 1, 1, 1)
    noise = torch.stack([noise_for(images.hashes[index], 0, draw, x0.shape[1:])
                         for draw in range(2)])
    with torch.inference_mode():
        restored = denoise(x0, noise)
    assert restored.abs().max() > 1
    expected = load_distance("l1")(x0, restored.clamp(-1, 1)).mean()
    assert images.scores[index].item() == pytest.approx(expected.item(), rel=1e-4)


def test_an_unreadable_file_is_named_and_skipped(fresh_host, folder):
    (folder / "torn.png").write_bytes((folder / "00.png").read_bytes()[:60])
    (folder / "zero.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    report = fresh_host.run(graph(folder=str(folder))).outputs["score"][4]
    assert "12 images" in report
    assert "\n2 skipped:\ntorn.png: " in report
    assert "\nzero.png: " in report
    assert "notes" not in report


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_odd_names_and_broken_notes_of_a_camera_end_nothing(fresh_host, folder):
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "03.png").rename(folder / name)
    cut_off = Image.Exif()
    cut_off[0x0112] = 6
    Image.new("RGB", (16, 16)).save(folder / "!.png", exif=cut_off.tobytes()[:12])
    run = fresh_host.run(graph(folder=str(folder)))
    assert "12 images" in run.outputs["score"][4]
    assert "\n1 skipped:\n!.png: " in run.outputs["score"][4]
    assert str(folder / name) in scored(run).paths
    assert fresh_host.run(graph(folder=str(folder))).executed == []


def test_files_of_16_bits_look_as_those_of_8_and_of_32_are_named(fresh_host, tmp_path, drawings):
    deep = tmp_path / "deep"
    deep.mkdir()
    grey = (drawings[0, ..., 0].numpy() * 255).round()
    Image.fromarray(grey.astype(np.uint16) * 257).save(deep / "16.png")
    Image.fromarray(grey.astype(np.float32) / 255).save(deep / "32.tif")
    run = fresh_host.run(graph(folder=str(deep)))
    assert torch.allclose(run.outputs["score"][2][0], drawings[0], atol=1e-6)
    assert "\n1 skipped:\n32.tif: its pixels are numbers of 32 bits" in run.outputs["score"][4]


def test_copies_count_once(fresh_host, folder):
    (folder / "copy.png").write_bytes((folder / "00.png").read_bytes())
    for report in (fresh_host.run(graph(folder=str(folder), seed=s)).outputs["score"][4]
                   for s in (0, 0, 1)):
        assert report.startswith("12 images")
        assert "1 copies of others count once" in report
        fresh_host.restart()


def test_an_interrupted_folder_keeps_what_was_scored(fresh_host, tmp_path, drawings, evaluations):
    path = tmp_path / "many"
    path.mkdir()
    for number in range(40):
        save(drawings[number], path / f"{number:02}.png")

    def stop(node_id, step, steps):
        assert steps == 40
        if step == 32:
            fresh_host.interrupt()

    with pytest.raises(Interrupted):
        fresh_host.run(graph(folder=str(path), draws=1), on_progress=stop)
    evaluations.clear()
    run = fresh_host.run(graph(folder=str(path), draws=1))
    assert "8 new, 32 scored already" in run.outputs["score"][4]
    assert sum(evaluations) == 1 + 8
    assert len(run.outputs["score"][2]) == 32
    assert len(run.outputs["score"][1]) == 40


def test_no_more_images_are_in_memory_than_are_scored_together(fresh_host, tmp_path, drawings,
                                                               monkeypatch):
    path = tmp_path / "many"
    path.mkdir()
    generator = np.random.default_rng(0)
    for number in range(100):
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(
            path / f"{number:02}.png")
    module = fresh_host.pack("nodes._image_scorer")
    crop, alive, most = module.centre_cropped, [], []

    def counted(*args):
        image = crop(*args)
        alive.append(1)
        weakref.finalize(image, alive.pop)
        most.append(len(alive))
        return image

    monkeypatch.setattr(module, "centre_cropped", counted)
    run = fresh_host.run(graph(folder=str(path), draws=1, show=1))
    assert len(scored(run)) == 100
    assert max(most) <= 16 + 2
    assert len(most) == 100 + 2


def test_only_the_ends_of_a_folder_are_shown(fresh_host, folder, drawings):
    run = fresh_host.run(graph(folder=str(folder), show=2))
    images = scored(run)
    shown = run.outputs["score"][2]
    assert len(shown) == 4
    for image, index in zip(shown, (0, 1, 10, 11), strict=True):
        number = int(images.paths[index][-6:-4])
        assert torch.allclose(image[0], drawings[number], atol=1e-6)


def test_images_are_cropped_as_guided_diffusion_does(fresh_host):
    """Against its center_crop_arr, written out."""
    crop = fresh_host.pack("nodes._images").centre_cropped
    generator = np.random.default_rng(0)
    for width, height in ((16, 16), (50, 37), (64, 32), (31, 95), (9, 12), (129, 200)):
        original = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
        image = original
        while min(*image.size) >= 2 * 16:
            image = image.resize(tuple(x // 2 for x in image.size), Image.Resampling.BOX)
        scale = 16 / min(*image.size)
        image = image.resize(tuple(round(x * scale) for x in image.size), Image.Resampling.BICUBIC)
        array = np.array(image)
        y, x = (array.shape[0] - 16) // 2, (array.shape[1] - 16) // 2
        expected = torch.from_numpy(array[y:y + 16, x:x + 16].astype(np.float32) / 255)
        assert torch.equal(crop(original, (16, 16))[0], expected)
    assert crop(original, (24, 40)).shape == (1, 40, 24, 3)


@pytest.mark.parametrize("orientation", [1, 5, 6])  # as it is stored; turned, mirrored or not
def test_a_size_of_0_is_that_of_the_first_image(fresh_host, tmp_path, orientation):
    size = fresh_host.pack("nodes._image_scorer").chosen_size
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (24, 8) if orientation == 1 else (8, 24)).save(
        tmp_path / "one.png", exif=exif)
    for images, files in (([torch.zeros(2, 8, 24, 3)], []), ([], [tmp_path / "one.png"])):
        assert size(0, 0, images, files) == (24, 8)
        assert size(16, 0, images, files) == (16, 8)
        assert size(0, 16, images, files) == (24, 16)


def test_a_folder_of_several_sizes_and_kinds(fresh_host, tmp_path):
    path = tmp_path / "mixed"
    path.mkdir()
    for number, (mode, size) in enumerate((("RGB", (40, 30)), ("RGBA", (16, 50)), ("L", (8, 8)),
                                           ("P", (33, 21)), ("CMYK", (20, 20)))):
        kind = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, size, 50 * number + 1).save(path / f"{number}.{kind}")
    run = fresh_host.run(graph(folder=str(path), width=16, height=16))
    assert "5 images at 16 x 16" in run.outputs["score"][4]
    assert scored(run).latents(range(5)).shape == (5, 3, 16, 16)


# Images from the wire

@pytest.fixture
def wire(fresh_host, monkeypatch):
    """Makes a prompt whose images are the tensors given, as a list."""
    def prompt(images: list[torch.Tensor], **inputs) -> Prompt:
        from comfy_api.latest import io

        class Source(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                return io.Schema(node_id="TestImages", outputs=[io.Image.Output(
                    is_output_list=True)], not_idempotent=True)

            @classmethod
            def fingerprint_inputs(cls):
                return float("nan")

            @classmethod
            def execute(cls):
                return io.NodeOutput(images)

        import nodes
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "TestImages", Source)
        fresh_host.restart()  # it keeps nodes, and so the one of an earlier prompt
        return graph(image=["source", 0], more=inputs.pop("more", {}) | {
            "source": ("TestImages", {})}, **inputs)
    return prompt


def test_images_from_the_wire_all_come_out_sorted(fresh_host, wire, drawings, evaluations):
    run = fresh_host.run(wire([drawings[:3], drawings[3:4]], show=1))
    scores, images = run.outputs["score"][1], run.outputs["score"][2]
    assert scores == sorted(scores, reverse=True)
    assert len(images) == 4
    found = {tuple(image.flatten().tolist()) for image in images}
    assert found == {tuple(image.flatten().tolist()) for image in drawings[:4]}
    evaluations.clear()
    again = fresh_host.run(wire([drawings[1:5]]))
    assert "1 new, 3 scored already" in again.outputs["score"][4]
    assert sum(evaluations) == 5 * (1 + 1)


def test_sets_of_connected_images_lie_in_the_temp_folder_and_others_do_not(
        fresh_host, wire, drawings, folder, tmp_path):
    run = fresh_host.run(wire([drawings[:2]]))
    assert scored(run).kept.path.is_relative_to(tmp_path / "base" / "temp")
    run = fresh_host.run(graph(folder=str(folder)))
    assert scored(run).kept.path.is_relative_to(tmp_path / "user" / "__uncommon")


def test_connected_images_of_several_sizes_are_cropped_to_the_first(fresh_host, wire, drawings):
    large = drawings[1].repeat_interleave(3, 0).repeat_interleave(2, 1)[None]
    with_alpha = torch.cat([drawings[2], torch.ones(16, 16, 1)], dim=-1)[None]
    run = fresh_host.run(wire([drawings[:1], large, with_alpha]))
    assert [image.shape for image in run.outputs["score"][2]] == [(1, 16, 16, 3)] * 3


def test_images_that_are_not_square_stay_whole(fresh_host, wire, drawings):
    wide = torch.cat([drawings[0], drawings[1]], dim=1)[None]
    run = fresh_host.run(wire([wide]))
    assert torch.equal(run.outputs["score"][2], wide)
    settings = scored(run).settings
    assert settings.size == (32, 16)
    assert settings.sigma == round(default_sigma(16, 32), 4)


def test_an_image_and_a_folder_are_scored_together(fresh_host, wire, drawings, folder):
    run = fresh_host.run(wire([drawings[20:25]], folder=str(folder), show=1))
    assert "17 images" in run.outputs["score"][4]
    shown = {tuple(image.flatten().tolist()) for image in run.outputs["score"][2]}
    assert {tuple(image.flatten().tolist()) for image in drawings[20:25]} < shown
    assert len(shown) == len(run.outputs["score"][2]) == 5 + 2


@pytest.mark.parametrize("count", [1, 3])
def test_few_and_equal_scores_make_a_histogram_too(fresh_host, wire, drawings, count, monkeypatch):
    monkeypatch.setattr(fresh_host.pack("nodes._image_scorer"), "load_distance",
                        lambda *a: lambda x, y: x.flatten(1).sum(1) * 0 + 0.5)
    run = fresh_host.run(wire([drawings[:count]]))
    assert run.outputs["score"][1] == ([0.5] * count if count > 1 else 0.5)
    assert run.outputs["score"][3].shape == (1, 540, 960, 3)
    says = "All scores are equal" if count > 1 else "A single image"
    assert says in run.outputs["score"][4]


def test_scores_that_are_not_finite_are_named_and_left_out(fresh_host, wire, drawings, monkeypatch):
    module = fresh_host.pack("nodes._image_scorer")

    def broken(*args):
        def distance(a, b):
            score = load_distance("latent_l2")(a, b)
            return torch.where(a.flatten(1).mean(1) > 0.99, torch.nan, score)
        return distance

    monkeypatch.setattr(module, "load_distance", broken)
    run = fresh_host.run(wire([drawings[:2], torch.ones(1, 16, 16, 3)]))
    report = run.outputs["score"][4]
    assert report.startswith("2 images")
    assert "\n1 left out, as their score is not a finite number:\nan image from the wire" in report
    with pytest.raises(RunFailed) as failed:
        fresh_host.run(wire([torch.ones(1, 16, 16, 3)]))
    assert "None of the images got a score.\n1 left out" in failed.value.message


# What the node shows

def test_the_node_shows_report_and_histogram(fresh_host, folder):
    run = fresh_host.run(graph(folder=str(folder)))
    shown = run.ui["score"]
    assert shown["text"][0] == run.outputs["score"][4]
    [preview] = shown["images"]
    import folder_paths

    with Image.open(Path(folder_paths.get_temp_directory()) / preview["subfolder"]
                    / preview["filename"]) as image:
        assert image.size == (960, 540)
    picture = run.outputs["score"][3]
    assert 0.02 < (picture < 0.9).any(dim=-1).float().mean() < 0.6  # neither empty nor full


# Errors

@pytest.mark.parametrize(("inputs", "message"), [
    ({}, "Nothing to score. Connect images, or give a folder"),
    ({"folder": "/no/such/folder"}, "is no folder on the computer"),
    ({"folder": "{empty}"}, "holds no images"),
    ({"folder": "{torn}"}, "None of the files can be read"),
    ({"folder": "{torn}", "width": 16, "height": 16}, "None of the images got a score.\n1 skipped"),
    ({"folder": "{digits}", "sigma": 500.0}, "knows noise from 0.02917 to 14.61"),
    ({"folder": "{digits}", "width": 17, "height": 16}, "multiples of"),
])
def test_what_cannot_be_scored_says_why(fresh_host, folder, tmp_path, inputs, message):
    for name in ("empty", "torn"):
        (tmp_path / name).mkdir()
    (tmp_path / "torn" / "a.png").write_bytes(b"no image")
    names = {"empty": tmp_path / "empty", "torn": tmp_path / "torn", "digits": folder}
    inputs = {key: value.format(**names) if isinstance(value, str) else value
              for key, value in inputs.items()}
    with pytest.raises(RunFailed) as failed:
        fresh_host.run(graph(**inputs))
    assert failed.value.node_id == "score"
    assert message in failed.value.message


def test_a_missing_vae_is_refused_at_once(fresh_host, folder):
    prompt = graph(folder=str(folder))
    del prompt["score"]["inputs"]["vae"]
    with pytest.raises(PromptRejected, match="vae"):
        fresh_host.run(prompt)


def test_wrong_channels_and_a_broken_model_are_errors(fresh_host, parts, tmp_path):
    model, vae = parts
    scorer = fresh_host.pack("nodes._image_scorer").ImageScorer
    options = {"distance": "latent_l2", "sigma": 6.4, "draws": 1, "seed": 0, "batch": 4,
               "size": (16, 16), "folder": tmp_path, "count": 1}
    four = copy.copy(vae)
    four.encode = lambda image: torch.ones(1, 4, 2, 2)
    with torch.inference_mode():
        with pytest.raises(ValueError, match="latents of 4 channels.*works with 3 channels"):
            scorer(model, four, None, **options)
        with pytest.raises(ValueError, match="An image has 1 channels; expected 3"):
            scorer(model, vae, None, **options).add_images([torch.ones(1, 16, 16, 1)])
        four.encode = lambda image: torch.full((1, 3, 16, 16), torch.nan)
        with pytest.raises(ValueError, match="not finite"):
            scorer(model, four, None, **options)


# The host's models

def captured(fresh_host, model, sigma: float, x0: torch.Tensor, noise: torch.Tensor):
    """x_t and the host's sigma that the model is asked about, and the answer."""
    from comfy.patcher_extension import WrappersMP

    seen = {}

    def wrapper(executor, x, timestep, *args, **more):
        seen.update(x=x.clone(), sigma=timestep.clone())
        return executor(x, timestep, *args, **more)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", wrapper)
    with torch.inference_mode():
        answer = fresh_host.pack("nodes._scorer").HostDenoiser(patched, None, sigma)(x0, noise)
    return seen["x"], seen["sigma"], answer


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 3, 16, 16, generator=generator)
    return x0, noise


def test_an_eps_model_sees_the_image_at_the_asked_for_level(fresh_host, parts, pair):
    x0, noise = pair
    highest = float(parts[0].get_model_object("model_sampling").sigma_max)
    for sigma in (0.5, 6.4, highest):
        x, level, answer = captured(fresh_host, parts[0], sigma, x0, noise)
        assert torch.allclose(x, x0 + sigma * noise, rtol=1e-5, atol=1e-4)
        assert torch.allclose(level, torch.tensor(sigma))
        assert answer.shape == x0.shape


def test_a_flow_model_sees_the_image_at_the_asked_for_level(fresh_host, parts, pair):
    from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow

    class Flow(ModelSamplingDiscreteFlow, CONST):
        pass

    x0, noise = pair
    for scale in (1.0, 2.0):
        model = parts[0].clone()
        sampling = Flow()
        sampling.noise_scale = scale
        model.add_object_patch("model_sampling", sampling)
        x, level, answer = captured(fresh_host, model, 3.0, x0, noise)
        t = 3.0 / (3.0 + scale)
        assert torch.allclose(level, torch.tensor(t))
        assert torch.allclose(x, (1 - t) * (x0 + 3.0 * noise), atol=1e-5)
        curve = fresh_host.pack("nodes._scorer").log_snr_curve(sampling)
        assert curve[0] == -10
        assert curve[-1] > 6


def test_log_snr_runs_from_noise_to_image(fresh_host, folder):
    settings = scored(fresh_host.run(graph(folder=str(folder)))).settings
    curve = torch.tensor(settings.log_snr)
    assert len(curve) == 65
    assert bool((curve.diff() >= 0).all())
    assert curve[0] < -5
    assert curve[-1] > 5
    assert (settings.space, settings.channels) == ("PixelSpace/3", 3)


def test_an_image_that_is_all_zero_is_shifted_like_others(fresh_host, parts, pair):
    """The host takes an all-zero start for an empty latent."""
    import comfy.latent_formats

    class Shifted(comfy.latent_formats.LatentFormat):
        latent_channels = 3

        def process_in(self, latent):
            return (latent - 0.5) * 2

        def process_out(self, latent):
            return latent / 2 + 0.5

    _, noise = pair
    model = parts[0].clone()
    model.add_object_patch("latent_format", Shifted())
    for value in (-1.0, 0.0):  # on the wire: 0 and 0.5
        x0 = torch.full((2, 3, 16, 16), value)
        x, _, _ = captured(fresh_host, model, 1.0, x0, noise)
        assert torch.allclose(x, x0 + noise, atol=1e-5)


def test_latents_are_scored_in_the_models_own_units_and_given_on_as_on_a_wire(
        fresh_host, parts, drawings, tmp_path):
    import comfy.latent_formats

    class Halved(comfy.latent_formats.LatentFormat):
        latent_channels, scale_factor, spacial_downscale_ratio = 3, 0.5, 4

    model = parts[0].clone()
    model.add_object_patch("latent_format", Halved())
    with torch.inference_mode():
        scorer = fresh_host.pack("nodes._image_scorer").ImageScorer(
            model, parts[1], None, distance="l2", sigma=0, draws=1, seed=0, batch=4,
            size=(16, 16), folder=tmp_path, count=1)
        scorer.add_images([drawings[:1]])
        found = scorer.result()
        on_wire, latents = drawings[:1].movedim(-1, 1) * 2 - 1, found.latents([0])
        assert torch.allclose(latents, on_wire / 2, atol=1e-3)
        assert torch.allclose(found.to_wire(latents), on_wire, atol=2e-3)
        assert torch.allclose(scorer._decode(latents), on_wire, atol=2e-3)
    assert found.settings.sigma == default_sigma(4, 4)  # of the latents, not of the image


def test_a_model_that_needs_a_prompt_says_so(fresh_host, parts, pair, monkeypatch):
    scorer = fresh_host.pack("nodes._scorer")
    monkeypatch.setattr(scorer, "AdmModel", type("Other", (), {}))

    def fails(*args, **more):
        raise TypeError("context is None")

    from comfy.patcher_extension import WrappersMP

    model = parts[0].clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", fails)
    with torch.inference_mode(), pytest.raises(ValueError, match="Connect one, such as an empty"):
        scorer.HostDenoiser(model, None, 1.0)(*pair)
    with torch.inference_mode(), pytest.raises(TypeError, match="context is None"):
        scorer.HostDenoiser(model, [[torch.zeros(1, 1, 4), {}]], 1.0)(*pair)


def test_scoring_teaches_a_novelty_memory_nothing(fresh_host, folder, novelty_graph):
    prompt = novelty_graph()
    prompt = {name: prompt[name] for name in ("model", "memory", "guided", "vae")}
    prompt["score"] = {"class_type": "UncommonMinorityScore", "inputs": {
        "model": ["guided", 0], "vae": ["vae", 0], "folder": str(folder)}}
    run = fresh_host.run(prompt)
    assert run.outputs["memory"][0].log.stats().live_samples == 0


def test_the_global_random_state_is_not_touched(fresh_host, folder):
    before = torch.get_rng_state()
    fresh_host.run(graph(folder=str(folder), distance="lpips_random", draws=1))
    assert torch.equal(torch.get_rng_state(), before)


# Select by Minority Score

def select(count: int, which: str) -> dict:
    return {"picked": ("UncommonSelectByMinorityScore", {
        "scored": ["score", 0], "count": count, "which": which}),
        "out": ("PreviewImage", {"images": ["picked", 0]})}


@pytest.mark.parametrize(("which", "expected"), [("rarest", [0, 1, 2]),
                                                 ("most common", [11, 10, 9])])
def test_select_takes_the_ends_of_a_folder(fresh_host, folder, drawings, which, expected):
    run = fresh_host.run(graph(folder=str(folder), more=select(3, which)))
    images = scored(run)
    pictures, scores, latent = run.outputs["picked"]
    assert scores == images.scores[expected].tolist()
    for picture, values, index in zip(pictures, latent["samples"], expected, strict=True):
        drawing = drawings[int(images.paths[index][-6:-4])]
        assert torch.allclose(picture[0], drawing, atol=1e-6)
        assert torch.allclose(values, drawing.movedim(-1, 0) * 2 - 1, atol=1e-3)


def test_select_takes_images_from_the_wire_and_all_if_there_are_few(fresh_host, wire, drawings):
    run = fresh_host.run(wire([drawings[:5]], more=select(9, "rarest")))
    pictures, scores, latent = run.outputs["picked"]
    assert scores == run.outputs["score"][1]
    assert all(torch.equal(a, b) for a, b in zip(pictures, run.outputs["score"][2], strict=True))
    assert latent["samples"].shape == (5, 3, 16, 16)


def test_select_names_a_file_that_is_gone(fresh_host, folder):
    images = scored(fresh_host.run(graph(folder=str(folder))))
    (folder / images.paths[0].rpartition("/")[2]).unlink()
    node = fresh_host.pack("nodes.minority_score").SelectByMinorityScore
    with pytest.raises(ValueError, match="was scored, but cannot be read now"):
        node.execute(images, 1, "rarest")
    assert len(node.execute(images, 2, "most common").result[0]) == 2
