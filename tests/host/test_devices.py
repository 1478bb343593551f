"""On a device that torch takes for one of its own: see two_devices.cpp.

It computes by the CPU's kernels, and so each image must be that of the CPU.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from .test_compatibility import case, node

RUNS = 3
pytestmark = pytest.mark.usefixtures("page_with_texts")

RARE = ("UncommonMinorityGuidance", {
    "classifier": ["classifier", 0], "rarity": 99.0, "scale": 3.0, "start_percent": 0.0,
    "end_percent": 1.0, "mode": "class"})
SELF = ("UncommonSelfGuidedMinority", {
    "mode": "free", "scale": 0.4, "start_percent": 0.0, "end_percent": 1.0, "every_n_steps": 2})
BOOST = ("UncommonBoostAndSkip", {"gamma": 2.0, "skip": 1})
CASES = {
    "exact": {}, "net": {"guidance": {"repulsion": "net"}},
    "ball": {"guidance": {"repulsion": "ball"}}, "fading": {"memory": {"half_life": 2}},
    "features": {"memory": {"space": "features"}},
    "without CFG": {"cfg": 1.0, "guidance": {"early_push": "on", "candidates": 3,
                                             "antithetic_noise": True}},
    "late CFG": {"guidance": {"cfg_start_percent": 0.3}},
    "minority": {"other": RARE}, "mixed": {"other": (RARE[0], RARE[1] | {"mode": "mixed"})},
    "free": {"other": SELF}, "backprop": {"other": (SELF[0], SELF[1] | {"mode": "backprop"})},
    "boost": {"other": BOOST},
}
SOME = ("exact", "features", "without CFG", "minority", "free")
PLAIN = "without guidance"


@pytest.fixture
def graph_of(novelty_graph):
    """Makes the graph of a case, or of PLAIN: Novelty Guidance, and another node's guidance before
    it. Minority Guidance draws avatars."""
    def make(name: str, **more) -> dict:
        settings = dict(CASES.get(name, {}))
        kind, inputs = settings.pop("other", (None, {}))
        graph = novelty_graph(**{"batch": 2, "cfg": 2.0} | settings | more)
        if name == PLAIN:
            del graph["guided"], graph["memory"]
            graph["sampled"]["inputs"]["model"] = ["model", 0]
        if kind is None:
            return graph
        graph["other"] = {"class_type": kind, "inputs": {"model": ["model", 0], **inputs}}
        graph["guided"]["inputs"].update(model=["other", 0], radius=1.0)
        if "classifier" in inputs:
            graph["classifier"] = {"class_type": "UncommonLoadMinorityClassifier",
                                   "inputs": {"classifier_name": "avatars_minority"}}
            graph["model"]["inputs"]["model_name"] = "avatars"
            graph["latent"]["inputs"].update(width=24, height=24)
            graph["positive"]["inputs"]["class_number"] = -1
        return graph
    return make


@pytest.fixture
def drawn(fresh_host, graph_of, tmp_path):
    """Draws some batches of a case, each away from those before: their latents as they come, and
    what the nodes told of the last. place: where a node of the host puts the model."""
    def run(name: str, user: str, *, place: str = "", **more
            ) -> tuple[list[Tensor], dict[str, str]]:
        latents: list[Tensor] = []
        with fresh_host.user_directory(tmp_path / user):
            fresh_host.restart()
            for seed in range(RUNS):
                graph = graph_of(name, seed=seed, **more)
                if place:
                    graph["placed"] = graph["model"]
                    graph["model"] = {"class_type": "SelectModelDevice",
                                      "inputs": {"model": ["placed", 0], "device": place}}
                result = fresh_host.run(graph)
                latents.append(result.outputs["sampled"][0]["samples"])
        return latents, {data[0]: data[1] for event, data in result.events
                         if event == "progress_text"}
    return run


@pytest.mark.parametrize(("name", "vram"), [
    *((name, "normal") for name in CASES), *((name, "gpu only") for name in SOME),
    *((name, "none") for name in SOME)])
def test_the_images_are_those_of_the_cpu_and_nothing_stays(
        fresh_host, drawn, onto_device, two_devices, name, vram):
    import comfy.model_management

    expected, told = drawn(name, "cpu")
    assert "Pushed" in told["guided"]
    onto_device(vram)
    found, also = drawn(name, "device")
    assert {one.device.type for one in found} == {"twin" if vram == "gpu only" else "cpu"}
    assert list(also) == list(told)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.cpu(), other, atol=1e-3)
    del found, one
    fresh_host.restart()
    comfy.model_management.unload_all_models()
    gc.collect()
    assert two_devices.bytes == 0


@pytest.mark.parametrize("place", ["cpu", "gpu:1"])
@pytest.mark.parametrize("name", CASES)
def test_a_model_elsewhere_than_the_host_has_models(fresh_host, drawn, onto_device, name, place):
    """By the host's node for it."""
    fresh_host.load_extra("nodes_multigpu")
    expected, _ = drawn(name, "cpu")
    onto_device()
    found, told = drawn(name, "elsewhere", place=place)
    assert "Pushed" in told["guided"]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(("name", "waits"), [("exact", 0), ("net", 0), ("features", 0),
                                             ("minority", 1)])
def test_a_step_reads_nothing_from_the_device(drawn, onto_device, two_devices, name, waits):
    """More than without guidance; but for Minority Guidance, which asks for the noise level before
    the model runs."""
    def reads(name: str, steps: int) -> int:
        before = two_devices.reads
        drawn(name, f"{name} {steps}", steps=steps)
        return two_devices.reads - before

    onto_device()
    few, many = 4, 12
    drawn(PLAIN, "first")
    plain, guided = (reads(one, many) - reads(one, few) for one in (PLAIN, name))
    assert guided - plain == pytest.approx(RUNS * (many - few) * waits, abs=RUNS)


# Several devices, by the host's node for them

@pytest.fixture(scope="module")
def matrix(host, tmp_path_factory):
    from benchmarks.matrix_case import Matrix

    for extra in ("nodes_multigpu", "nodes_cond"):
        host.load_extra(extra)
    yield Matrix(host, tmp_path_factory.mktemp("devices"))
    gc.unfreeze()


def small(name: str):
    """A model of its own, with what the host needs to make another like it."""
    from demo.host.small_models import MODELS

    model = MODELS[name].load()
    model.cached_patcher_init = (MODELS[name].load, ())
    return model


def regions() -> list:
    """Four prompts for the model to answer a step, with the negative one."""
    from demo.host.small_models import prompt

    halves = [node("ConditioningSetArea", conditioning=prompt(3 + half), width=32, height=64,
                   x=32 * half, y=0, strength=1.0)[0] for half in range(2)]
    return prompt(1) + halves[0] + halves[1]


def guidance(matrix, kind: str, name: str):
    """Adds a node's guidance to a MODEL."""
    inputs = {"start_percent": 0.0, "end_percent": 1.0}
    if kind in ("free", "backprop"):
        return lambda model: matrix.node("UncommonSelfGuidedMinority", model=model, mode=kind,
                                         scale=0.4, every_n_steps=1, **inputs)
    if kind == "minority":
        return lambda model: matrix.with_minority(model, **inputs)
    features = kind == "features"
    memory = matrix.host.pack("nodes._novelty_hooks").NoveltyMemory(
        url=f"sqlite:///{(matrix.folder / f'{name} {kind}.sqlite').as_posix()}", name=kind,
        learn=True, space="features" if features else "latent")
    if not memory.log.stats().live_samples:
        model = matrix.with_novelty(small(name), name, memory=memory, record=True, strength=0.0)
        matrix.draw(model, case(name, kind), positive=regions())
    return lambda model: matrix.with_novelty(
        model, name, memory=memory, batch_repulsion=1.0, candidates=1 if features else 2,
        **{} if features else {"early_push": "auto"}, **inputs)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["latent", "features", "minority", "free", "backprop"])
@pytest.mark.parametrize("name", ["sd15-eps", "sdxl-edm", "flux"])
def test_work_split_between_devices(matrix, onto_device, two_devices, name, kind, last):
    """The same as on one; last: the host's node comes after ours."""
    import comfy.model_management as management

    one, guide = case(name, kind), guidance(matrix, kind, name)
    plain, expected = (matrix.draw(model, one, positive=regions())
                       for model in (small(name), guide(small(name))))
    assert not torch.allclose(plain, expected, rtol=1e-2)

    onto_device()
    management.current_loaded_models.clear()  # of models that are gone, which the node minds
    model, = node("MultiGPU_WorkUnits", model=guide(small(name)) if last else small(name),
                  max_gpus=2)
    used = set()

    def seen(apply_model, arguments):
        used.add(arguments["input"].device)
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(seen)
    found = matrix.draw(model if last else guide(model), one, positive=regions())
    assert used == set(two_devices.all)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
