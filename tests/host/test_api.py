"""Node ids, inputs, their order and outputs: what saved workflows rely on. Frozen.

After a change that is allowed (a new node, a new optional input at the end, a new choice):
`UNCOMMON_WRITE_API=1 python dev.py test tests/host/test_api.py` writes it down in tests/api.json.
"""

from __future__ import annotations

import inspect
import json
import os

import pytest

from dev import ROOT

FILE = ROOT / "tests" / "api.json"
FROZEN = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}


def described(node: type) -> dict:
    schema = node.GET_SCHEMA()
    inputs = []
    for one in schema.inputs:
        found = {"name": one.id, "type": one.get_io_type(), "optional": one.optional}
        if getattr(one, "options", None):
            found["options"] = list(one.options)
        inputs.append(found)
    return {"inputs": inputs, "outputs": [{"name": one.display_name, "type": one.get_io_type()}
                                          for one in schema.outputs]}


def breaks(frozen: dict, now: dict) -> list[str]:
    """What a workflow that was saved with a node as it was frozen no longer finds."""
    found = []
    if now["outputs"] != frozen["outputs"]:
        found.append(f"outputs: {frozen['outputs']} became {now['outputs']}")
    for place, was in enumerate(frozen["inputs"]):
        present = now["inputs"][place] if place < len(now["inputs"]) else {}
        if any(present.get(key) != was[key] for key in ("name", "type", "optional")):
            found.append(f"input {place}: {was} became {present}")
        elif lost := [one for one in was.get("options", ()) if one not in present["options"]]:
            found.append(f"input {was['name']} has lost the choices {lost}")
    return found + [f"input {one['name']} is new and not optional"
                    for one in now["inputs"][len(frozen["inputs"]):] if not one["optional"]]


@pytest.fixture(scope="module")
def present(host):
    found = {name: described(node) for name, node in sorted(host.pack_nodes.items())}
    if os.environ.get("UNCOMMON_WRITE_API"):
        for name, was in FROZEN.items():
            assert name in found and not breaks(was, found[name]), name
        FILE.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        FROZEN.update(found)
    return found


@pytest.mark.parametrize("name", FROZEN)
def test_saved_workflows_still_find_what_they_use(present, name):
    assert name in present, "a node is gone"
    assert not breaks(FROZEN[name], present[name])


def test_every_node_is_written_down(present):
    assert set(present) == set(FROZEN), f"not in tests/api.json; {__doc__}"


# Without the newer inputs, Novelty Guidance draws what it drew before there were these.
@pytest.mark.parametrize("name", sorted(FROZEN.keys() - {"UncommonNoveltyGuidance"}))
def test_an_input_that_is_left_out_is_at_its_default(host, name):
    node = host.pack_nodes[name]
    taken = inspect.signature(node.execute).parameters
    for one in node.GET_SCHEMA().inputs:
        if one.optional and one.id in taken and getattr(one, "default", None) is not None:
            found = taken[one.id].default
            assert found in (one.default, (one.default,)), one.id


OLD = {"inputs": [{"name": "a", "type": "INT", "optional": False},
                  {"name": "b", "type": "COMBO", "optional": True, "options": ["x", "y"]}],
       "outputs": [{"name": "out", "type": "MODEL"}]}
NEW_INPUT = {"name": "c", "type": "INT", "optional": True}


@pytest.mark.parametrize(("change", "broken"), [
    ({}, False),
    ({"inputs": [*OLD["inputs"], NEW_INPUT]}, False),
    ({"inputs": [*OLD["inputs"], {**NEW_INPUT, "optional": False}]}, True),
    ({"inputs": [NEW_INPUT, *OLD["inputs"]]}, True),
    ({"inputs": OLD["inputs"][:1]}, True),
    ({"inputs": OLD["inputs"][::-1]}, True),
    ({"inputs": [OLD["inputs"][0], {**OLD["inputs"][1], "options": ["x", "z", "y"]}]}, False),
    ({"inputs": [OLD["inputs"][0], {**OLD["inputs"][1], "options": ["x"]}]}, True),
    ({"outputs": [{"name": "out", "type": "LATENT"}]}, True),
    ({"outputs": []}, True)])
def test_what_counts_as_a_break(change, broken):
    assert bool(breaks(OLD, {**OLD, **change})) == broken
