"""What the tests in the host share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture
def page_with_texts(host, monkeypatch):
    """What the server shows on nodes goes where the tests' page keeps its events."""
    monkeypatch.setattr(host.pack("nodes._host"), "show_on_node",
                        lambda node_id, text: host._page.send_sync("progress_text",
                                                                   (node_id, text)))


@pytest.fixture
def first_slopes(host, monkeypatch) -> list[Tensor]:
    """Of the first push of Self-Guided Minority in mode backprop, of one image: how steeply it
    climbs, how steeply other directions do, and how steeply they would by their angle to it. By
    finite differences of the whole of the host's evaluation, CFG and all."""
    hooks = host.pack("nodes._self_guided_hooks").SelfGuidedHooks
    guide, found = hooks._guide, []

    def check(self, run, executor, x, timestep, model_options, seed, denoised, sigma):
        calls = []

        def watched(*args):
            calls.append(args)
            return executor(*args)

        watched.class_obj = executor.class_obj
        pushed = guide(self, run, watched, x, timestep, model_options, seed, denoised, sigma)
        if found or not calls:
            return pushed
        restored = executor(*calls[1])

        def slope(direction: Tensor) -> Tensor:
            near = [(executor(x + step * direction, timestep, model_options, seed) - restored)
                    .norm() for step in (0.02, -0.02)]
            return (near[0] - near[1]) / 0.04

        direction = (pushed - denoised) / (pushed - denoised).norm()
        generator = torch.Generator().manual_seed(0)
        others = torch.randn(6, *x.shape, generator=generator)
        others = [one / one.norm() for one in (others + 10 * direction)]
        steepest = slope(direction)
        found.extend([steepest, torch.stack([slope(one) for one in others]),
                      steepest * torch.stack([(one * direction).sum() for one in others])])
        return pushed

    monkeypatch.setattr(hooks, "_guide", check)
    return found


@pytest.fixture
def onto_device(host, two_devices, monkeypatch) -> Iterator[Callable[..., None]]:
    """Has the host use the first of the two devices from the call on, as it does with DirectML's.
    vram: "normal"; "none", where a layer's weights are there while it runs; "gpu only", where
    latents are there too."""
    import comfy.model_management as management

    def use(vram: str = "normal") -> None:
        management.unload_all_models()
        state = {"normal": management.VRAMState.NORMAL_VRAM, "none": management.VRAMState.NO_VRAM,
                 "gpu only": management.VRAMState.HIGH_VRAM}[vram]
        for name, value in {
                "directml_device": two_devices.all[0], "directml_enabled": True,
                "cpu_state": management.CPUState.GPU, "is_nvidia": lambda: False,
                "get_all_torch_devices": lambda exclude_current=False: two_devices.all,
                "vram_state": state, "lowvram_available": vram == "none",
                "should_use_fp16": lambda *_, **__: False}.items():
            monkeypatch.setattr(management, name, value, raising=name != "directml_device")
        monkeypatch.setattr(management.args, "gpu_only", vram == "gpu only")

    yield use
    management.unload_all_models()
