"""ComfyUI inside this process.

The host's folder goes to the front of `sys.path`, because this checkout has a folder `nodes/` and
the host has a module of that name: whoever imports `nodes` must get the host's.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from demo.host.outcome import HostError, Prompt, PromptRejected, raise_failure
from dev import ROOT, locate_host


@dataclass(frozen=True)
class Run:
    """What a prompt that ran to its end left behind."""

    outputs: dict[str, tuple]
    """Node id -> the values of its output sockets (a list where the node ran over a list)."""
    ui: dict[str, dict]
    """Node id -> what the node shows: texts, saved images."""
    executed: list[str]
    """Ids of the nodes that really ran, in order: not those taken from the cache."""
    events: list[tuple[str, Any]]
    """Everything that was sent to the page."""


class _Page:
    """Stands where the host expects its web server, and notes what is sent to the page."""

    def __init__(self):
        self.client_id: str | None = None
        self.last_node_id: str | None = None
        self.last_prompt_id: str | None = None
        self.sockets_metadata: dict = {}
        self.events: list[tuple[str, Any]] = []

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.events.append((event, data))


class InProcessHost:
    """ComfyUI inside this process, with this pack loaded by the host's own loader.

    Starting takes half a minute and can be done once per process. `directory` becomes the host's
    base folder: its models, input, output, temp and user folders lie there.
    """

    def __init__(self, directory: Path, *, cpu: bool = True):
        self.directory = Path(directory).resolve()
        self._prepare(cpu)
        import comfy.utils
        import execution
        import nodes

        self._execution, self._nodes = execution, nodes
        asyncio.run(nodes.init_public_apis())
        self.load_extra("nodes_custom_sampler")
        before = set(nodes.NODE_CLASS_MAPPINGS)
        if not asyncio.run(nodes.load_custom_node(str(ROOT), before)):
            raise HostError("The host could not load this pack; its log says why.")
        self.pack_nodes: dict[str, type] = {
            name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if name not in before}
        """This pack's nodes by id."""

        self._page = _Page()
        self._on_progress: Callable[[str, int, int], None] | None = None
        comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = 0.0  # so that on_progress sees every step
        comfy.utils.set_progress_bar_global_hook(self._progress)
        self.restart()

    def _prepare(self, cpu: bool) -> None:
        """Settings that count only before the host's modules are imported."""
        if "folder_paths" in sys.modules:
            raise HostError("This process has a host already; use that one.")
        if "nodes" in sys.modules:
            raise HostError("Something imported `nodes` before the host was there; import this "
                            "pack's modules with InProcessHost.pack().")
        host = locate_host()
        sys.path.insert(0, str(host))
        try:
            from comfy.cli_args import args
        except ImportError as error:
            raise HostError(f"No ComfyUI in {host}; `python dev.py host` sets it up.") from error
        args.base_directory = str(self.directory)
        args.cpu = cpu
        args.use_pytorch_cross_attention = True
        for name in ("models", "input", "output", "temp", "user"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)

    def load_extra(self, name: str) -> None:
        """Loads one file of the host's comfy_extras, e.g. "nodes_perpneg"."""
        file = Path(self._nodes.__file__).parent / "comfy_extras" / f"{name}.py"
        if not asyncio.run(self._nodes.load_custom_node(str(file), module_parent="comfy_extras")):
            raise HostError(f"The host could not load {file}; its log says why.")

    def pack(self, module: str = "") -> ModuleType:
        """A module of this pack as the host loaded it, e.g. pack("guidance.limiter").

        `import guidance.limiter` gives a second copy, whose classes and state are not those of
        the nodes.
        """
        name = str(ROOT).replace(".", "_x_")  # as the host's loader names it
        return importlib.import_module(f"{name}.{module}" if module else name)

    def run(self, prompt: Prompt, extra_data: Mapping | None = None, *,
            on_progress: Callable[[str, int, int], None] | None = None) -> Run:
        """Validates and runs a prompt, as the server does with one that was posted.

        `on_progress(node id, step, steps)` is called at each step of a progress bar. Raises
        PromptRejected, RunFailed or Interrupted.
        """
        self._page.events = []
        self._on_progress = on_progress
        return asyncio.run(self._run(copy.deepcopy(prompt), dict(extra_data or {})))

    def validate(self, prompt: Prompt) -> None:
        """Checks a prompt as the server does before it queues one; raises PromptRejected."""
        asyncio.run(self._targets(str(uuid.uuid4()), copy.deepcopy(prompt)))

    async def _targets(self, prompt_id: str, prompt: Prompt) -> list[str]:
        """The nodes of a valid prompt whose outputs are asked for."""
        valid, error, targets, node_errors = await self._execution.validate_prompt(
            prompt_id, prompt, None)
        if not valid or node_errors:
            raise PromptRejected(error, node_errors)
        return targets

    async def _run(self, prompt: Prompt, extra_data: dict) -> Run:
        prompt_id = str(uuid.uuid4())
        targets = await self._targets(prompt_id, prompt)
        self._page.last_prompt_id = prompt_id
        await self._executor.execute_async(
            prompt, prompt_id, {"client_id": "in-process", **extra_data}, targets)
        raise_failure(self._executor.status_messages)

        outputs = {}
        for node in prompt:
            if entry := await self._executor.caches.outputs.get(node):
                outputs[node] = tuple(values[0] if len(values) == 1 else values
                                      for values in entry.outputs)
        events = self._page.events
        return Run(outputs=outputs, ui=self._executor.history_result["outputs"], events=events,
                   executed=[data["node"] for event, data in events if event == "executing"])

    def _progress(self, value: int, total: int, preview: Any, prompt_id: str | None = None,
                  node_id: str | None = None) -> None:
        """What the server does at each step, and the caller's `on_progress` before it."""
        import comfy.model_management
        from comfy_execution.progress import get_progress_state
        from comfy_execution.utils import get_executing_context

        context = get_executing_context()
        node_id = node_id or (context.node_id if context else self._page.last_node_id)
        if self._on_progress is not None:
            self._on_progress(node_id, value, total)
        comfy.model_management.throw_exception_if_processing_interrupted()
        get_progress_state().update_progress(node_id, value, total, preview)

    def interrupt(self) -> None:
        """What the page's stop button does; call it from `on_progress` or another thread."""
        self._nodes.interrupt_processing()

    def restart(self) -> None:
        """Forgets all cached outputs. The pack's modules stay as they are."""
        cache = self._execution.CacheType.RAM_PRESSURE  # what the server uses by default
        # Always drop the results of earlier prompts, never those of the present one.
        headroom = {"lru": 0, "ram": 0.0, "ram_inactive": 2.0 ** 20}
        self._executor = self._execution.PromptExecutor(self._page, cache, headroom)

    @contextmanager
    def user_directory(self, path: Path) -> Iterator[Path]:
        """Another user folder, and so other memories, for a while."""
        import folder_paths

        before = folder_paths.get_user_directory()
        folder_paths.set_user_directory(str(path))
        try:
            yield path
        finally:
            folder_paths.set_user_directory(before)
