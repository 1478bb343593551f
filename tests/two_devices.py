"""Two devices, "twin:0" and "twin:1", on a machine that has none: see two_devices.cpp."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch.utils import cpp_extension

NAME = "twin"


class TwoDevices:
    """Once made, torch knows the devices for as long as the process lives. The first ever takes
    half a minute. RuntimeError or OSError where they cannot be compiled."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._made = cpp_extension.load(
            NAME, [str(Path(__file__).with_suffix(".cpp"))], build_directory=str(folder))
        torch.utils.rename_privateuse1_backend(NAME)
        torch._register_device_module(NAME, self._module())
        self.all = [torch.device(NAME, index) for index in range(2)]

    @property
    def bytes(self) -> int:
        """That tensors hold on both."""
        return self._made.bytes()

    @property
    def reads(self) -> int:
        """How often something was read from one, so far: on a GPU, the CPU waits for each."""
        return self._made.reads()

    def _module(self) -> ModuleType:
        """What torch.cuda is for CUDA."""
        module = ModuleType(f"torch.{NAME}")
        module.is_available = lambda: True
        module._is_in_bad_fork = lambda: False
        module.device_count = lambda: 2
        module.current_device = self._made.current
        module.device = self._current
        module.manual_seed_all = lambda seed: None
        module.get_rng_state = lambda device=None: torch.get_rng_state()
        module.set_rng_state = lambda state, device=None: None
        return module

    @contextmanager
    def _current(self, device: torch.device) -> Iterator[None]:
        before = self._made.current()
        self._made.set_current(torch.device(device).index or 0)
        try:
            yield
        finally:
            self._made.set_current(before)
