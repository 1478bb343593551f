"""What goes into a host, and how it can fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Prompt = dict[str, dict[str, Any]]
"""A workflow in ComfyUI's API format: node id -> {"class_type": ..., "inputs": {...}}."""


class HostError(RuntimeError):
    """The host could not be started, or does not answer."""


class PromptRejected(HostError):
    """The host refused the prompt; `node_errors` maps node ids to what is wrong with them."""

    def __init__(self, error: Mapping | str | None, node_errors: Mapping[str, Mapping]):
        self.node_errors = dict(node_errors)
        lines = [f"node {node} ({found['class_type']}): {one['message']}: {one['details']}"
                 for node, found in self.node_errors.items() for one in found["errors"]]
        if isinstance(error, Mapping):
            lines.insert(0, f"{error['message']}: {error['details']}")
        super().__init__("\n".join(lines) or str(error))


class RunFailed(HostError):
    """A node raised an error while the prompt ran."""

    def __init__(self, failure: Mapping):
        self.node_id: str = failure["node_id"]
        self.node_type: str = failure["node_type"]
        self.exception_type: str = failure.get("exception_type", "")
        self.message: str = failure.get("exception_message", "").strip()
        self.traceback: str = "".join(failure.get("traceback", ()))
        what = f"{self.exception_type}: {self.message}" if self.message else "interrupted"
        super().__init__(f"node {self.node_id} ({self.node_type}): {what}\n{self.traceback}")


class Interrupted(RunFailed):
    """Somebody stopped the run."""


def raise_failure(messages: Sequence[Sequence]) -> None:
    """Raises what the status messages of a finished prompt tell, if it failed."""
    kinds = {"execution_error": RunFailed, "execution_interrupted": Interrupted}
    for event, data in messages:
        if event in kinds:
            raise kinds[event](data)
