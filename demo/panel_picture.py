"""Draws docs/panel.png: the memory panel beside a workflow, in ComfyUI's own page.

    python -m demo.panel_picture

Remembers six digits of each class, opens the map, draws a lasso around the dots of the left edge
and points at a dot on the right.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from PIL import Image

from demo.host import Server
from demo.host.page import Page, chromium
from demo.run import ONE_THREAD, WORKFLOW
from demo.workflow import find, to_api
from dev import ROOT

PICTURE = ROOT / "docs" / "panel.png"
NAME = "ten digits"
CLASSES, BATCH, SELECTED = 10, 6, 3
VIEW = {"width": 1180, "height": 760}
CUT = (0, 38, 750, 720)  # without the bars of the page
GUIDED = """([name]) => {
    const node = (type) => app.graph.nodes.find((one) => one.type === type);
    node("UncommonNoveltyMemory").widgets.find((one) => one.name === "name").value = name;
    app.canvas.ds.scale = 0.9;
    const [x, y] = node("UncommonNoveltyGuidance").pos;
    app.canvas.ds.offset = [470 - x, 150 - y];
    app.graph.setDirtyCanvas(true, true);
}"""
DOTS = """() => { const map = document.querySelector(".uncommon-map").uncommonMap;
    return [...map.x].map((x, i) => [x, map.y[i]]); }"""


def remember(server: Server) -> None:
    workflow = to_api(json.loads(WORKFLOW.read_text("utf-8")), server.object_info())
    workflow[find(workflow, "UncommonNoveltyMemory")]["inputs"]["name"] = NAME
    workflow[find(workflow, "EmptyLatentImage")]["inputs"]["batch_size"] = BATCH
    sampler = workflow[find(workflow, "KSampler")]["inputs"]
    for label in range(CLASSES):
        workflow[sampler["positive"][0]]["inputs"]["class_number"] = label
        sampler["seed"] = label
        server.run(workflow)


def show(page: Page) -> None:
    page.start()
    page.load(WORKFLOW.stem)
    page.view.evaluate(GUIDED, [NAME])
    page.run()
    page.show_panel()
    page.view.get_by_role("tab", name="Map").click()
    page.view.locator(".uncommon-map-hint", has_text="% of the variation").wait_for()
    box, dots = map_of(page)
    beside = (dots[SELECTED - 1][0] + dots[SELECTED][0]) / 2
    page.view.mouse.move(box["x"] + 1, box["y"] + 1)
    page.view.mouse.down()
    for x, y in ((beside, 1), (beside, box["height"] - 1), (1, box["height"] - 1), (1, 9)):
        page.view.mouse.move(box["x"] + x, box["y"] + y, steps=3)
    page.view.mouse.up()
    page.tiles(SELECTED)  # below the map, which makes room for them
    box, dots = map_of(page)
    page.view.mouse.move(box["x"] + dots[-1][0], box["y"] + dots[-1][1], steps=3)
    page.view.locator(".uncommon-hover img").wait_for(state="visible")


def map_of(page: Page) -> tuple[dict[str, float], list[list[float]]]:
    """Where the map lies on the page, and the dots on the map, from left to right."""
    box = page.view.locator(".uncommon-map canvas").bounding_box()
    return box, sorted(page.view.evaluate(DOTS))


def main() -> None:
    with (tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
          Server(Path(folder), environment=ONE_THREAD) as server, chromium() as browser):
        remember(server)
        page = Page(browser.new_context(viewport=VIEW, locale="en-US").new_page(), server)
        show(page)
        page.screenshot(PICTURE)
        Image.open(PICTURE).crop(CUT).convert("P", palette=Image.Palette.ADAPTIVE).save(PICTURE)


if __name__ == "__main__":
    main()
