"""Makes a saved image again, from what the image itself carries, and tells whether it is the same.

    python dev.py recreate IMAGE.png [--out DIR] [--user DIR] [--url URL]

Each novelty memory is frozen at the revision that guided the image; nothing is remembered. It
runs in a ComfyUI that is started for it, with the models, inputs and memories of yours, and without
other node packs; or, with --url, in one that runs already. Ends with 0 if the image is the same
bit for bit, with 1 if it is not, with 2 if it could not be made.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from demo.host import HostError, Prompt, PromptRejected, RunFailed, Server
from dev import ROOT, locate_host

GUIDANCE, MEMORY = "UncommonNoveltyGuidance", "UncommonNoveltyMemory"
STATE = "uncommon_state"
SHOWS_IMAGES = ("SaveImage", "PreviewImage")
MADE_WITH = {"comfyui": "ComfyUI", "uncommon": "this pack", "torch": "PyTorch",
             "device": "the device"}


class NotRecreatable(Exception):
    """Why, and what to do."""


@dataclass(frozen=True)
class Recreation:
    """image: the one that is nearest; differences: what was different when it was made."""

    image: bytes
    identical: bool
    largest: int = 0
    share: float = 0.0
    differences: list[str] = field(default_factory=list)


def prompt_of(image: Image.Image, name: str) -> Prompt:
    """The prompt that a saved image carries."""
    try:
        return json.loads(image.info["prompt"])
    except (KeyError, ValueError) as error:
        raise NotRecreatable(
            f"{name} carries no prompt. Give the PNG as ComfyUI saved it: other programs remove "
            "what it carries, and so does ComfyUI with --disable-metadata.") from error


def frozen(prompt: Prompt) -> Prompt:
    """What makes the image again: only what it depends on, without the notes, and each guidance
    with a memory of its own, frozen at the revision that guided the image. Other nodes, such as
    loops, have memories that are frozen as they were when the image was begun."""
    graph = copy.deepcopy(prompt)
    guidances = {number for number, node in graph.items() if node["class_type"] == GUIDANCE}
    for node in graph.values():
        state = node.pop("_meta", {}).get(STATE)
        if node["class_type"] == MEMORY:
            node["inputs"] |= {"mode": "frozen",
                               "revision": int(state.rpartition("@")[2]) if state else -1}
    for number in guidances:
        graph[number]["inputs"]["memory"] = [f"memory of {number}", 0]
    needed = {number: _needed(graph, number) for number, node in graph.items()
              if node["class_type"] in SHOWS_IMAGES}
    if not needed:
        raise NotRecreatable("No node of its prompt is one of " + ", ".join(SHOWS_IMAGES) + ", so "
                             "nothing would come out. Load the workflow in ComfyUI and run it.")
    # What had not run when the image was saved, left no note and has no part in it.
    had_run = [numbers for numbers in needed.values()
               if all(_states(prompt, one) for one in numbers & guidances)]
    found = set().union(*(had_run or needed.values()))
    return {number: node for number, node in graph.items() if number in found} | {
        f"memory of {number}": _memory(prompt, number) for number in sorted(found & guidances)}


def _needed(graph: Prompt, number: str) -> set[str]:
    """A node and all that it gets its inputs from, near and far."""
    found, waiting = set(), [number]
    while waiting:
        number = waiting.pop()
        found.add(number)
        waiting += [value[0] for value in graph[number]["inputs"].values()
                    if isinstance(value, list) and len(value) == 2 and value[0] in graph
                    and value[0] not in found]
    return found


def _states(prompt: Prompt, guidance: str) -> list[str]:
    """Memory and revision, of each state that a guidance pushed away from. Where its sampler did
    not run again, the memory tells."""
    notes = prompt[guidance].get("_meta", {}).get("uncommon", {}).values()
    states = sorted({note["memory"] for note in notes if "memory" in note})
    state = prompt[_memory_node(prompt, guidance)].get("_meta", {}).get(STATE)
    return states or ([state] if state else [])


def _memory_node(prompt: Prompt, guidance: str) -> str:
    number = guidance
    while prompt[number]["class_type"] != MEMORY:
        number = prompt[number]["inputs"]["memory"][0]
    return number


def _memory(prompt: Prompt, guidance: str) -> dict:
    """The memory node of a guidance, frozen; nodes between the two, which change it, left out."""
    states = _states(prompt, guidance)
    if len(states) != 1:
        raise NotRecreatable(
            f"The image tells of {len(states)} states of the memory for node {guidance}"
            f"{': ' if states else ''}{', '.join(states)}; expected one. It was made by an older "
            "release, or several samplers share one Novelty Guidance: give each its own.")
    name, _, revision = states[0].rpartition("@")
    inputs = {**prompt[_memory_node(prompt, guidance)]["inputs"],
              "name": name, "mode": "frozen", "revision": int(revision)}
    return {"class_type": MEMORY, "inputs": inputs}


def recreate(server: Server, image: Image.Image, name: str) -> Recreation:
    """Raises NotRecreatable."""
    prompt = prompt_of(image, name)
    graph = frozen(prompt)
    try:
        entry = server.run(graph, timeout=math.inf)
    except PromptRejected as error:
        raise NotRecreatable(f"This ComfyUI cannot run its prompt:\n{error}\nInstall the node "
                             "packs and models that it names, or use --url with a ComfyUI that "
                             "has them.") from error
    except RunFailed as error:
        raise NotRecreatable(f"Node {error.node_id} ({error.node_type}) failed: {error.message}"
                             ) from error
    made = [one for number, node in graph.items() if node["class_type"] in SHOWS_IMAGES
            and number in entry["outputs"] for one in server.images(entry, number)]
    return _compare(image, made, prompt)


def _compare(image: Image.Image, made: list[bytes], prompt: Prompt) -> Recreation:
    pixels = np.asarray(image).astype(int)
    found = []
    for content in made:
        other = Image.open(io.BytesIO(content))
        again = np.asarray(other).astype(int)
        if again.shape == pixels.shape:
            apart = np.abs(again - pixels)
            found.append((float((apart > 0).mean()), int(apart.max()), content, other))
    if not found:
        sizes = {Image.open(io.BytesIO(content)).size for content in made}
        raise NotRecreatable(f"The image is {image.size}, but what came out is {sorted(sizes)}. It "
                             "was scaled or cut after ComfyUI had saved it.")
    share, largest, content, other = min(found, key=lambda one: one[:2])
    now = json.loads(other.info.get("prompt", "{}"))
    return Recreation(content, largest == 0, largest, share,
                      differences(_made_with(prompt), _made_with(now)))


def _made_with(prompt: Prompt) -> Mapping:
    notes = (node.get("_meta", {}).get("uncommon_made_with") for node in prompt.values())
    return next(filter(None, notes), {})


def differences(then: Mapping, now: Mapping) -> list[str]:
    """What is not as it was when the image was made."""
    if not then:
        return ["The image does not tell what it was made with: none of the nodes of this pack "
                "that write it down was in its graph, or it was made by an older release."]
    found = [f"{label} was {then[key]}, and is {now.get(key, 'unknown')}"
             for key, label in MADE_WITH.items() if key in then and then[key] != now.get(key)]
    files, present = then.get("files", {}), now.get("files", {})
    found += [f"the model file {name} is another one" for name, value in files.items()
              if name in present and present[name] != value]
    return found + [f"the model file {name} is not here" for name in files if name not in present]


@contextmanager
def own_server(user: Path, out: Path, cpu: bool) -> Iterator[Server]:
    """A ComfyUI with the models, inputs and memories of the one that `dev.py` works with."""
    host = locate_host()
    with tempfile.TemporaryDirectory(prefix="uncommon-") as folder:
        models = Path(folder) / "models.yaml"
        models.write_text(json.dumps({"host": {  # JSON is YAML
            place.name: str(place) for place in sorted((host / "models").iterdir())
            if place.is_dir()} if (host / "models").is_dir() else {}}), "utf-8")
        with Server(Path(folder) / "comfyui", user=user, output=out, cpu=cpu, report=print,
                    arguments=["--extra-model-paths-config", str(models), "--input-directory",
                               str(host / "input")]) as server:
            yield server


@contextmanager
def running_server(url: str) -> Iterator[Server]:
    server = Server(Path(tempfile.gettempdir()))
    server.url = url.rstrip("/")
    try:
        server.get("/queue")
    except HostError as error:
        raise NotRecreatable(
            f"No ComfyUI answers at {url}. Start it, or leave --url out.") from error
    yield server


def main() -> int:
    parser = argparse.ArgumentParser(prog="python dev.py recreate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, metavar="IMAGE.png")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "recreate", metavar="DIR")
    parser.add_argument("--user", type=Path, default=locate_host() / "user", metavar="DIR",
                        help="the user folder that holds the memories (%(default)s)")
    parser.add_argument("--url", help="of a ComfyUI that runs, e.g. http://127.0.0.1:8188")
    parser.add_argument("--cpu", action="store_true", help="compute on the CPU")
    options = parser.parse_args()
    file = options.out / options.image.name
    if file.exists() and file.samefile(options.image):
        parser.error(f"--out {options.out} is the folder of the image itself, which would be "
                     "replaced: give another one")
    cpu = options.cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    try:
        with Image.open(options.image) as image:
            frozen(prompt_of(image, options.image.name))  # before a server is started for it
            with (running_server(options.url) if options.url
                  else own_server(options.user, options.out / "comfyui", cpu)) as server:
                found = recreate(server, image, options.image.name)
    except (NotRecreatable, HostError, OSError, UnidentifiedImageError) as error:
        print(f"{options.image} could not be made again. {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    file.write_bytes(found.image)
    if found.identical:
        print(f"The same, bit for bit: {file}")
    else:
        print(f"Not the same: {file}\n{found.share:.2%} of its values differ, by {found.largest} "
              "of 255 at most.")
    for line in found.differences:
        print(f"- {line}")
    if not (found.identical or found.differences):
        print("- nothing that the image tells of is different: another pack, or an input image, "
              "may have changed")
    return 0 if found.identical else 1


if __name__ == "__main__":
    sys.exit(main())
