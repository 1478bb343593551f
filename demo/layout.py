"""Graphs in the format that the page saves, from short descriptions of their nodes."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from demo.workflow import TEXT_ONLY, widgets

CONTROL = "control_after_generate"
NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}
GROUP_COLOUR = "#3f789e"
GROUP_SPACE = (20, 75, 20, 20)  # pixels around its nodes: left, above, right, below


@dataclass(frozen=True)
class Box:
    """A node. values: of its widgets, where they are not the defaults; links: input -> (name of
    the node it comes from, number of its output); size: where the page's own will not do."""

    kind: str
    x: int
    y: int
    values: Mapping[str, Any] = field(default_factory=dict)
    links: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    title: str | None = None
    width: int = 280
    height: int | None = None


def page(name: str, boxes: Mapping[str, Box], groups: Mapping[str, Sequence[str]],
         object_info: Mapping[str, Mapping], scale: float = 0.7) -> dict:
    """The graph as the page saves it. groups: title -> names of the boxes that lie in it.

    ValueError for an input or an output that the host's node does not have.
    """
    numbers = {box: number for number, box in enumerate(boxes, start=1)}
    inputs = {box: _inputs(one, object_info) for box, one in boxes.items()}
    outputs = {box: _outputs(one, object_info) for box, one in boxes.items()}
    links = []
    for box, one in boxes.items():
        places = {into["name"]: place for place, into in enumerate(inputs[box])}
        for into, (origin, slot) in one.links.items():
            if into not in places or slot >= len(outputs[origin]):
                raise ValueError(f"{box} cannot have {into} from output {slot} of {origin}.")
            out = outputs[origin][slot]
            links.append([len(links) + 1, numbers[origin], slot, numbers[box], places[into],
                          out["type"]])
            inputs[box][places[into]]["link"] = len(links)
            out["links"] = [*(out["links"] or ()), len(links)]
    nodes = [_node(numbers[box], one, inputs[box], outputs[box], object_info)
             for box, one in boxes.items()]
    return {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"uncommon/{name}")), "revision": 0,
            "last_node_id": len(nodes), "last_link_id": len(links), "nodes": nodes, "links": links,
            "groups": [_group(number, title, [nodes[numbers[box] - 1] for box in inside])
                       for number, (title, inside) in enumerate(groups.items(), start=1)],
            "config": {}, "extra": {"ds": {"scale": scale, "offset": [60, 130]}}, "version": 0.4}


def _inputs(box: Box, object_info: Mapping[str, Mapping]) -> list[dict]:
    """Sockets first, then widgets, as the page has them."""
    if box.kind in TEXT_ONLY:
        return []
    info = object_info[box.kind]
    own = {name for name, _, _ in widgets(info)}
    required, optional = info["input"].get("required", {}), info["input"].get("optional", {})
    found = []
    for name, (kind, *_) in {**required, **optional}.items():
        kind = "COMBO" if isinstance(kind, list) else kind
        found.append({"localized_name": name, "name": name,
                      **({"shape": 7} if name in optional else {}), "type": kind,
                      **({"widget": {"name": name}} if name in own else {}), "link": None})
    return sorted(found, key=lambda into: "widget" in into)


def _outputs(box: Box, object_info: Mapping[str, Mapping]) -> list[dict]:
    if box.kind in TEXT_ONLY:
        return []
    info = object_info[box.kind]
    lists = info.get("output_is_list") or [False] * len(info["output"])
    return [{"localized_name": name, "name": name, **({"shape": 6} if is_list else {}),
             "type": kind, "links": None}
            for name, kind, is_list in zip(info["output_name"], info["output"], lists, strict=True)]


def _node(number: int, box: Box, inputs: list[dict], outputs: list[dict],
          object_info: Mapping[str, Mapping]) -> dict:
    values = _values(box, object_info)
    sockets = max(sum("widget" not in into for into in inputs), len(outputs))
    natural = 20 * sockets + (24 * len(values) + 14 if values else 6)  # as LiteGraph has it
    node = {"id": number, "type": box.kind, "pos": [box.x, box.y],
            "size": [box.width, box.height or natural], "flags": {}, "order": number - 1,
            "mode": 0, "inputs": inputs, "outputs": outputs,
            "properties": {"Node name for S&R": box.kind}, "widgets_values": values}
    if box.title:
        node["title"] = box.title
    return node | (NOTE_COLOURS if box.kind in TEXT_ONLY else {})


def _values(box: Box, object_info: Mapping[str, Mapping]) -> list:
    if box.kind in TEXT_ONLY:
        return [box.values["text"]]
    values, wanted = [], dict(box.values)
    for name, default, options in widgets(object_info[box.kind]):
        values.append(wanted.pop(name, default))
        if options.get(CONTROL):
            values.append(wanted.pop(CONTROL, "fixed"))
    if wanted:
        raise ValueError(f"{box.kind} has no widget {', '.join(wanted)}.")
    return values


def _group(number: int, title: str, nodes: Sequence[Mapping]) -> dict:
    left, above, right, below = GROUP_SPACE
    x0 = min(node["pos"][0] for node in nodes) - left
    y0 = min(node["pos"][1] for node in nodes) - above
    x1 = max(node["pos"][0] + node["size"][0] for node in nodes) + right
    y1 = max(node["pos"][1] + node["size"][1] for node in nodes) + below
    return {"id": number, "title": title, "bounding": [x0, y0, x1 - x0, y1 - y0],
            "color": GROUP_COLOUR, "flags": {}}
