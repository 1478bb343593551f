"""What samplers did in the running prompt, as notes: for the nodes after them, and in saved images.

Saved images carry the prompt, and in it, at `_meta.uncommon` of a node of ours, the notes on each
sampler that it guided; beside them what they were made with.
"""

from __future__ import annotations

import nodes
from comfy_execution.graph_utils import is_link
from comfy_execution.progress import get_progress_state

from . import _host
from ._provenance import made_with

_notes: dict[str, list[tuple[str, str, dict]]] = {}
"""Of the prompt that runs, by its id: node of ours in its metadata, sampler, and note."""


def note(node_id: str, found: dict) -> None:
    """Notes what the sampler that runs does under one of our nodes. A sampler that runs several
    times, as over a list, has a note of each time."""
    prompt_id, sampler_id = _host.running_node()
    if prompt_id not in _notes:
        _notes.clear()
    earlier = _notes.setdefault(prompt_id, [])
    place = _in_metadata(node_id)
    if place is None:
        return
    own = [sampler for node, sampler, _ in earlier if node == place]
    earlier.append((place, sampler_id, found))
    meta = _prompt()[place].setdefault("_meta", {})
    if not own:
        meta["uncommon"] = {}  # what is there comes with a prompt that was loaded from an image
    times = own.count(sampler_id) + 1
    meta["uncommon"][sampler_id if times == 1 else f"{sampler_id} ({times})"] = found
    meta["uncommon_made_with"] = made_with(_prompt())


def note_state(state: str) -> None:
    """Notes the state of a memory, `name@revision`, at the node that runs: for images whose sampler
    does not run, because the host has what it gave last time."""
    place = _in_metadata(_host.running_node()[1])
    if place is not None:
        meta = _prompt()[place].setdefault("_meta", {})
        meta |= {"uncommon_state": state, "uncommon_made_with": made_with(_prompt())}


def upstream(node_id: str, latents_only: bool = False) -> list[dict]:
    """The notes of the running prompt on the samplers upstream of a node; latents_only: of those
    that its latents come from, if it takes latents."""
    found = _notes.get(_host.running_node()[0], [])
    samplers = _upstream(node_id, latents_only) if found else ()
    return [one for _, sampler_id, one in found if sampler_id in samplers]


def _prompt() -> dict:
    dynprompt = get_progress_state().dynprompt
    return dynprompt.get_original_prompt() if dynprompt is not None else {}


def _in_metadata(node_id: str) -> str | None:
    """The node of the queued prompt that a node is, or is part of: loops make nodes as they run."""
    if node_id in _prompt():
        return node_id
    dynprompt = get_progress_state().dynprompt
    shown = dynprompt.get_display_node_id(node_id) if dynprompt and node_id else None
    return shown if shown in _prompt() else None


def _upstream(node_id: str, latents_only: bool) -> set[str]:
    """Ids of all nodes of the running prompt that a node gets its inputs from, near and far."""
    dynprompt = get_progress_state().dynprompt
    first = dynprompt.get_node(node_id)
    inputs = first["inputs"]
    if latents_only:
        inputs = {name: value for name, value in inputs.items()
                  if name in _latent_inputs(first["class_type"])} or inputs
    found: set[str] = set()
    waiting = [inputs]
    while waiting:
        new = {value[0] for value in waiting.pop().values() if is_link(value)} - found
        found |= new
        waiting += [dynprompt.get_node(one)["inputs"] for one in new]
    return found


def _latent_inputs(class_type: str) -> set[str]:
    groups = nodes.NODE_CLASS_MAPPINGS[class_type].INPUT_TYPES().values()
    return {name for group in groups for name, kind in group.items() if kind[0] == "LATENT"}
