"""What guidance costs a run: no wait for the device in a step, and nothing left when it is over."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

STEPS = 6
WAITS = {getattr(torch.ops.aten, name).default  # item is what it is in inference mode
         for name in ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "equal")}
RUNS = 12


class Reads(TorchDispatchMode):
    """Counts how often a number is read out of a tensor, for which a GPU would have to be waited
    for, by what was going on."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()
        self.during = "elsewhere"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITS:
            self.found[self.during] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counted(host, monkeypatch):
    """Runs a graph; how often numbers were read in this pack's wrappers of a step, and how many
    steps there were."""
    def run(graph) -> tuple[int, int]:
        import comfy.samplers

        reads, steps = Reads(), Counter()
        kinds = (host.pack("nodes._novelty_hooks").NoveltyHooks,
                 host.pack("nodes._sampling_hooks").SamplingHooks)

        def during(name, function):
            def called(*args, **kwargs):
                before, reads.during = reads.during, name
                steps[name] += 1
                try:
                    return function(*args, **kwargs)
                finally:
                    reads.during = before
            return called

        with monkeypatch.context() as patch:
            for kind in kinds:
                patch.setattr(kind, "predict_noise", during("ours", kind.predict_noise))
            guider = comfy.samplers.CFGGuider
            patch.setattr(guider, "predict_noise", during("model", guider.predict_noise))
            patch.setattr(comfy.samplers.KSAMPLER, "sample",
                          watching(reads, comfy.samplers.KSAMPLER.sample))
            host.run(graph)
        return reads.found["ours"], steps["ours"]
    return run


def watching(reads, sample):
    def called(*args, **kwargs):
        with reads:
            return sample(*args, **kwargs)
    return called


def minority_graph(graph: dict, *, novelty: bool) -> dict:
    """The graph with the avatars, guided to the rare, and to the new or not."""
    graph = {name: dict(node, inputs=dict(node["inputs"])) for name, node in graph.items()}
    graph["model"]["inputs"]["model_name"] = "avatars"
    graph["latent"]["inputs"].update(width=24, height=24)
    graph["positive"]["inputs"]["class_number"] = -1
    graph["classifier"] = {"class_type": "UncommonLoadMinorityClassifier",
                           "inputs": {"classifier_name": "avatars_minority"}}
    graph["rare"] = {"class_type": "UncommonMinorityGuidance", "inputs": {
        "model": ["guided" if novelty else "model", 0], "classifier": ["classifier", 0],
        "rarity": 99.0, "scale": 1.0, "start_percent": 0.0, "end_percent": 1.0, "mode": "class"}}
    graph["sampled"]["inputs"]["model"] = ["rare", 0]
    return graph


@pytest.mark.parametrize("kind", ["digits", "minority", "both"])
def test_a_step_never_waits_for_the_device(fresh_host, novelty_graph, counted, kind):
    """Minority guidance reads one number an evaluation, the noise level: asked for before the model
    runs and read after, it holds up nothing (see Reading). Its log SNR was never on the device."""
    found = []
    for steps in (2, STEPS):
        graph = novelty_graph(batch=2, steps=steps)
        if kind != "digits":
            graph = minority_graph(graph, novelty=kind == "both")
        fresh_host.run(graph)  # so that there is something to push away from
        fresh_host.restart()  # so that the nodes run again, and set the watched wrappers
        reads, calls = counted(graph)
        assert calls == steps * (2 if kind == "both" else 1)
        found.append(reads)
    assert found[0] <= 1 + (0 if kind == "digits" else 2 * 2)  # novelty: at most once a run
    assert found[1] - found[0] == (0 if kind == "digits" else 2 * (STEPS - 2))


def test_the_counter_counts(fresh_host, novelty_graph, counted, monkeypatch):
    """A step that does wait is seen."""
    run = fresh_host.pack("guidance.novelty").NoveltyRun
    denoise = run.denoise
    monkeypatch.setattr(run, "denoise", lambda self, model, x, *rest: denoise(
        self, model, x * max(float(x.std()), 1) / max(float(x.std()), 1), *rest))
    reads, steps = counted(novelty_graph(steps=STEPS))
    assert steps == STEPS and reads >= 2 * STEPS


@pytest.mark.parametrize("minority", [False, True])
def test_nothing_of_a_run_is_left_after_it(fresh_host, novelty_graph, monkeypatch, minority):
    alive = []

    def remembered(kind):
        made = kind.__init__

        def init(self, *args, **kwargs):
            made(self, *args, **kwargs)
            alive.append(weakref.ref(self))
            alive.extend(weakref.ref(value) for value in vars(self).values()
                         if type(value).__name__ in ("ExactKernel", "MinorityClassifier"))
        return init

    for kind in (fresh_host.pack("guidance.novelty").NoveltyRun,
                 fresh_host.pack("guidance.minority").MinorityRun):
        monkeypatch.setattr(kind, "__init__", remembered(kind))
    graph = novelty_graph(steps=3)
    graph = minority_graph(graph, novelty=True) if minority else graph
    for seed in range(3):
        graph["sampled"]["inputs"]["seed"] = seed
        fresh_host.run(graph)
    gc.collect()
    # Three runs each, their classifiers, and the memory's kernels, which the first run has not.
    assert len(alive) == (3 + 3 + 3 + 2 if minority else 3 + 2)
    assert [ref() for ref in alive if ref() is not None] == []


def test_queued_runs_leave_no_tensors_behind(fresh_host, novelty_graph):
    """What may grow is the memory itself: a kilobyte or so an image."""
    graph = minority_graph(novelty_graph(steps=2), novelty=True)

    def tensors() -> tuple[int, int]:
        gc.collect()
        found = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        return len(found), sum(one.untyped_storage().nbytes() for one in found)

    def run(seeds: range) -> None:
        for seed in seeds:
            graph["sampled"]["inputs"]["seed"] = seed
            fresh_host.run(graph)

    run(range(6))  # by then the cache of nets is full
    count, size = tensors()
    run(range(6, 6 + RUNS))
    after, larger = tensors()
    assert after <= count + 2
    assert larger - size < RUNS * 50_000  # four nets of one more sample each; a run needs megabytes
