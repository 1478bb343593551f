"""Makes the pictures of the example workflows that `demo.templates` writes, and of `minority`.

    python -m demo.pictures [NAME ...]

Where the models ship with the pack the picture is the result, drawn by a real ComfyUI server;
where they do not, it is the graph. The help pages get smaller copies.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import pil_to_tensor

from demo.contact_sheet import BACKGROUND, CAPTION, TEXT, Panel, contact_sheet
from demo.host import Server
from demo.run import ONE_THREAD
from demo.templates import FOLDER, TEMPLATES
from demo.workflow import to_api
from dev import ROOT

HELP, HELP_WIDTH = ROOT / "web" / "docs" / "pictures", 720
HELP_PICTURES = (*(FOLDER / f"{name}.jpg" for name in (
    "novelty", "minority", "train_minority_classifier", "explore_then_keep_8",
    "diversity_report")), ROOT / "benchmarks" / "results" / "minority_front.png")
GRAPH_WIDTH, MARGIN, TITLE = 1200, 40, 30  # pixels; a node's title lies above its position
COLUMNS, TILE, GAP = 8, 120, 20  # of the faces, in pixels
NODE, NODE_TITLE, OTHER_WIRE = "#2b2f38", "#3d4450", "#8bc34a"
WIRES = {"MODEL": "#b39ddb", "CLIP": "#ffd500", "VAE": "#ff6e6e", "CONDITIONING": "#ffa931",
         "LATENT": "#ff9cf9", "IMAGE": "#64b5f6"}


def titled(workflow: Mapping, title: str) -> str:
    """The id of the only node with this title."""
    [number] = [node["id"] for node in workflow["nodes"] if node.get("title") == title]
    return str(number)


def of_type(workflow: Mapping, kind: str) -> str:
    """The id of the only node of this type."""
    [number] = [node["id"] for node in workflow["nodes"] if node["type"] == kind]
    return str(number)


def run(server: Server, workflow: Mapping, title: str) -> list[Image.Image]:
    """What the preview with this title shows after a run."""
    entry = server.run(to_api(workflow, server.object_info()))
    return [Image.open(io.BytesIO(one)) for one in server.images(entry, titled(workflow, title))]


def explore(server: Server, workflow: Mapping) -> Image.Image:
    entry = server.run(to_api(workflow, server.object_info()))
    every, kept = (server.images(entry, titled(workflow, title)) for title in ("All", "Kept"))
    pixels = [pil_to_tensor(Image.open(io.BytesIO(one)).convert("RGB")) for one in every]
    chosen = [pil_to_tensor(Image.open(io.BytesIO(one)).convert("RGB")) for one in kept]
    framed = torch.tensor([any(torch.equal(one, other) for other in chosen) for one in pixels])
    caption = f"in green: the {int(framed.sum())} that Keep Most Different keeps"
    return contact_sheet({(f"{len(pixels)} faces, one seed", caption): Panel(
        torch.stack(pixels).float() / 127.5 - 1, framed)})


def report(server: Server, workflow: Mapping) -> Image.Image:
    return run(server, workflow, "Plots: both")[0]


def paste(picture: Image.Image, faces: Sequence[bytes], side: int, top: int = 0) -> None:
    """Faces in COLUMNS columns, each `side` pixels wide."""
    for number, one in enumerate(faces):
        row, column = divmod(number, COLUMNS)
        face = Image.open(io.BytesIO(one)).resize((side, side), Image.Resampling.NEAREST)
        picture.paste(face, (column * side, row * side + top))


def minority(server: Server, workflow: Mapping) -> Image.Image:
    """Plain faces above, guided ones of the same seeds below."""
    entry = server.run(to_api(workflow, server.object_info()))
    picture = Image.new("RGB", (COLUMNS * TILE, 4 * TILE + GAP), "white")
    for half, title in enumerate(("Plain", "Rare")):
        paste(picture, server.images(entry, titled(workflow, title)), TILE, half * (2 * TILE + GAP))
    return picture


def training(server: Server, workflow: Mapping) -> Image.Image:
    """The faces to learn from, the rarest first; beside them what both nodes show."""
    entry = server.run(to_api(workflow, server.object_info()))
    faces = server.images(entry, titled(workflow, "Sorted: the rarest first"))
    plots = [Image.open(io.BytesIO(server.images(entry, of_type(workflow, kind))[0]))
             for kind in ("UncommonMinorityScore", "UncommonTrainMinorityClassifier")]
    height = sum(plot.height for plot in plots)
    side = height // COLUMNS
    picture = Image.new("RGB", (height + GAP + max(plot.width for plot in plots), height), "white")
    paste(picture, faces, side)
    for number, plot in enumerate(plots):
        picture.paste(plot, (height + GAP, number * plots[0].height))
    picture.thumbnail((GRAPH_WIDTH, height))
    return picture


def graph(workflow: Mapping) -> Image.Image:
    """The nodes as boxes, with their titles, values and wires."""
    nodes = {node["id"]: node for node in workflow["nodes"] if node["outputs"] or node["inputs"]}
    left = min(node["pos"][0] for node in nodes.values())
    top = min(node["pos"][1] for node in nodes.values()) - TITLE
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values())
    bottom = max(node["pos"][1] + node["size"][1] for node in nodes.values())
    scale = (GRAPH_WIDTH - 2 * MARGIN) / (right - left)
    height = round((bottom - top) * scale) + 2 * MARGIN
    picture = Image.new("RGB", (GRAPH_WIDTH, height), BACKGROUND)
    pen = ImageDraw.Draw(picture)

    def place(x: float, y: float) -> tuple[float, float]:
        return MARGIN + (x - left) * scale, MARGIN + (y - top) * scale

    def socket(node: Mapping, number: int, out: bool) -> tuple[float, float]:
        (x, y), (width, _) = node["pos"], node["size"]
        return place(x + width * out, y + 14 + 20 * number)

    for _, origin, out, target, into, kind in workflow["links"]:
        wire = curve(socket(nodes[origin], out, True), socket(nodes[target], into, False))
        pen.line(wire, WIRES.get(kind, OTHER_WIRE), 3, "curve")
    for node in nodes.values():
        (x, y), (width, height) = node["pos"], node["size"]
        pen.rounded_rectangle((*place(x, y - TITLE), *place(x + width, y + height)), 6, NODE)
        pen.rounded_rectangle((*place(x, y - TITLE), *place(x + width, y)), 6, NODE_TITLE)
        title = node.get("title") or node["type"]
        write(pen, place(x + 12, y - TITLE / 2), title, 12, TEXT, (width - 24) * scale)
        sockets = max(len(node["outputs"]), sum("widget" not in one for one in node["inputs"]))
        for line, value in enumerate(node["widgets_values"]):
            write(pen, place(x + 16, y + 22 + 20 * sockets + 24 * line), str(value), 10, CAPTION,
                  (width - 32) * scale)
    for _, origin, out, target, into, kind in workflow["links"]:
        for x, y in (socket(nodes[origin], out, True), socket(nodes[target], into, False)):
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), WIRES.get(kind, OTHER_WIRE))
    return picture


def curve(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """A cubic one that leaves to the right and arrives from the left."""
    (x0, y0), (x1, y1) = start, end
    bend = max(24.0, abs(x1 - x0) / 2)
    return [((1 - t) ** 3 * x0 + 3 * (1 - t) ** 2 * t * (x0 + bend)
             + 3 * (1 - t) * t ** 2 * (x1 - bend) + t ** 3 * x1,
             (1 - t) ** 2 * (1 + 2 * t) * y0 + t ** 2 * (3 - 2 * t) * y1)
            for t in (step / 24 for step in range(25))]


def write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: str,
          room: float) -> None:
    """As much of the text as there is room for."""
    font = ImageFont.load_default(size)
    if font.getlength(text) > room:
        while font.getlength(f"{text}...") > room:
            text = text[:-1]
        text = f"{text}..."
    pen.text(place, text, colour, font, "lm")


def write_help_pictures() -> None:
    """Copies for the help pages, which are narrow."""
    HELP.mkdir(parents=True, exist_ok=True)
    for file in HELP_PICTURES:
        picture = Image.open(file).convert("RGB")
        picture.thumbnail((HELP_WIDTH, picture.height))
        picture.save(HELP / f"{file.stem}.jpg", quality=85, optimize=True)


RESULTS = {"explore_then_keep_8": explore, "diversity_report": report, "minority": minority,
           "train_minority_classifier": training}


def main() -> None:
    names = sys.argv[1:] or [*TEMPLATES, *(RESULTS.keys() - TEMPLATES.keys())]
    read = {name: json.loads((FOLDER / f"{name}.json").read_text("utf-8")) for name in names}
    pictures = {name: graph(read[name]) for name in names if name not in RESULTS}
    if wanted := [name for name in names if name in RESULTS]:
        with tempfile.TemporaryDirectory() as folder, Server(
                Path(folder), report=print, environment=ONE_THREAD) as server:
            pictures |= {name: RESULTS[name](server, read[name]) for name in wanted}
    for name, picture in pictures.items():
        picture.convert("RGB").save(FOLDER / f"{name}.jpg", quality=88, optimize=True)
        print(FOLDER / f"{name}.jpg")
    write_help_pictures()


if __name__ == "__main__":
    main()
