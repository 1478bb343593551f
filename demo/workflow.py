"""Workflows as the page saves them, turned into what it queues."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from demo.host.outcome import Prompt

BYPASSED = 4  # a node's mode
TEXT_ONLY = ("MarkdownNote", "Note")
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def widget_defaults(info: Mapping) -> dict[str, Any]:
    """The widgets of a node, from its entry in /object_info, in the page's order."""
    return {name: default for name, default, _ in widgets(info)}


def widgets(info: Mapping) -> list[tuple[str, Any, Mapping]]:
    """Name, default and options of each widget of a node, as `widget_defaults`."""
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    specs = [(name, kind, options[0] if options else {})
             for name, (kind, *options) in inputs.items()]
    return [(name, _default(kind, options), options) for name, kind, options in specs
            if (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")]


def _default(kind: Any, options: Mapping) -> Any:
    choices = kind if isinstance(kind, list) else options.get("options")
    return options.get("default", choices[0] if choices else None)


def to_api(workflow: Mapping, object_info: Mapping[str, Mapping]) -> Prompt:
    """A saved workflow in the API format; ValueError for nodes that the host does not have."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {number: (origin, slot, kind)
             for number, origin, slot, _, _, kind in workflow["links"]}

    def source(link: int) -> list:
        origin, slot, kind = links[link]
        node = nodes[origin]
        if node["mode"] != BYPASSED:
            return [str(origin), slot]
        return source(next(into["link"] for into in node["inputs"]
                           if into["type"] == kind and into["link"] is not None))

    prompt = {}
    for number, node in nodes.items():
        kind = node["type"]
        if kind in TEXT_ONLY or node["mode"] == BYPASSED:
            continue
        if kind not in object_info:
            raise ValueError(f"The host has no node {kind}, which node {number} is.")
        linked = {into["name"]: source(into["link"])
                  for into in node.get("inputs", ()) if into.get("link") is not None}
        prompt[str(number)] = {"class_type": kind,
                               "inputs": _widget_values(node, object_info[kind]) | linked}
    return prompt


def _widget_values(node: Mapping, info: Mapping) -> dict[str, Any]:
    """The saved values of a node's widgets by name; optional ones that came since have none."""
    values = list(node.get("widgets_values", ()))
    names = []
    for name, _, options in widgets(info):
        names.append(name)
        if options.get("control_after_generate"):
            names.append("")  # the page's own widget below: fixed, randomize, ...
    while len(names) > len(values) and names[-1] in info["input"].get("optional", {}):
        names.pop()
    if len(names) != len(values):
        raise ValueError(f"Node {node['id']} ({node['type']}) has {len(values)} saved values, but "
                         f"the host's node has {len(names)} widgets. Save the workflow again.")
    return {name: value for name, value in zip(names, values, strict=True) if name}


def bypass(workflow: Mapping, kind: str) -> dict:
    """The workflow with all nodes of one type bypassed."""
    changed = copy.deepcopy(dict(workflow))
    for node in changed["nodes"]:
        if node["type"] == kind:
            node["mode"] = BYPASSED
    return changed


def find(prompt: Prompt, kind: str) -> str:
    """The id of a prompt's only node of one type."""
    [number] = [number for number, node in prompt.items() if node["class_type"] == kind]
    return number
