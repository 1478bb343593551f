"""The memory panel and the nodes in the real page. The tests share one page and go on from one
another in this order: run the whole file."""

from __future__ import annotations

import json
import math

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo.host.page import TAB
from demo.workflow import find
from dev import ROOT

TEMPLATES = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
NAME = "digits demo"  # the memory of the template `novelty`
OTHERS = "of others"

# Words that are cut, children that lie on one another or stick out of the panel's sides.
FLAWS = """() => {
    const panel = document.querySelector(".uncommon-panel");
    const box = (one) => one.getBoundingClientRect();
    const name = (one) => `${one.tagName}.${one.className}: ${one.textContent.slice(0, 40)}`;
    const seen = [...panel.children].filter((one) => box(one).height > 0);
    const flaws = [];
    for (const one of seen) {
        const own = panel.getBoundingClientRect();
        if (box(one).left < own.left - 1 || box(one).right > own.right + 1) {
            flaws.push(`sticks out: ${name(one)}`);
        }
    }
    for (let i = 1; i < seen.length; i++) {
        if (box(seen[i]).top < box(seen[i - 1]).bottom - 1) flaws.push(`covered: ${name(seen[i])}`);
    }
    const words = "button, button span, strong, dd, dt, p, .uncommon-caption";
    for (const one of panel.querySelectorAll(words)) {
        if (one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== "inline") {
            flaws.push(`cut: ${name(one)}`);
        }
    }
    for (const button of panel.querySelectorAll("button")) {
        for (const part of button.children) {
            if (box(part).right > box(button).right + 1 || box(part).left < box(button).left - 1) {
                flaws.push(`cut: ${name(button)}`);
            }
        }
    }
    if (box(panel).right > innerWidth + 1) flaws.push("wider than the page");
    return flaws;
}"""

# Contrast of the panel's words with what lies behind them (WCAG 2, relative luminance).
CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = (colour, under = "#000") => {
        canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (colour) => colour.map((c) => c / 255).map(
        (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const panel = document.querySelector(".uncommon-panel");
    const behind = getComputedStyle(panel).backgroundColor;
    const ratios = {};
    for (const one of panel.querySelectorAll("h2, strong, small, p, dt, dd")) {
        if (!one.getBoundingClientRect().height) continue;
        const [a, b] = [rgb(getComputedStyle(one).color, behind), rgb(behind)].map(light)
            .sort((x, y) => y - x);
        ratios[one.tagName] = (a + 0.05) / (b + 0.05);
    }
    return ratios;
}"""


def live(page) -> int:
    """How many samples the server says that the memory holds."""
    return next(one["samples"] for one in page.server.get("/uncommon/memories")
                if one["name"] == NAME)


def readouts(page) -> list[str]:
    """What stands above the workflow's nodes."""
    return page.view.evaluate("""() => app.graph.nodes.flatMap((node) => node.badges.map(
        (badge) => (typeof badge === "function" ? badge() : badge).text))""")


def memory_node(page, name: str):
    """The value of a widget of the workflow's Novelty Memory."""
    return page.view.evaluate(
        """(name) => app.graph.nodes.find((node) => node.type === "UncommonNoveltyMemory")
            .widgets.find((widget) => widget.name === name).value""", name)


def test_the_page_opens_without_errors_of_ours(page, picture):
    assert page.view.locator(TAB).is_visible()
    page.show_panel()
    page.view.get_by_text("No memory yet.").wait_for()
    picture("first_start")
    assert page.view.evaluate(FLAWS) == []
    page.show_panel(False)
    assert page.errors == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_with_all_its_nodes(page, name):
    page.load(name)
    workflow = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text("utf-8"))
    shown = page.view.evaluate("""() => app.graph.nodes.map((node) => [node.type, node.has_errors,
        !node.subgraph && !(node.type in LiteGraph.registered_node_types)])""")
    assert sorted(kind for kind, *_ in shown) == sorted(n["type"] for n in workflow["nodes"])
    assert [kind for kind, wrong, missing in shown if missing] == []
    assert page.errors == []


def test_the_demo_runs_and_the_panel_shows_the_new_sample(page):
    page.load("novelty")
    page.show_panel()
    page.run()
    page.tiles(1)
    page.run()
    page.run()
    page.tiles(3)
    assert live(page) == 3
    page.view.locator(".uncommon-list", has_text=f"{NAME}3 samples").wait_for()
    assert "revision 3 · 3 samples" in readouts(page)
    assert any(text.startswith("novelty ") for text in readouts(page))


def test_a_sample_tells_of_itself(page, picture):
    page.view.locator(".uncommon-tile").nth(1).click()
    details = page.view.locator(".uncommon-details")
    details.get_by_text("Number 2").wait_for()
    [sample] = page.server.get(f"/uncommon/samples?memory={NAME.replace(' ', '%20')}&numbers=2")
    assert sample["seed"] in details.inner_text()
    page.action("copySeed").click()
    page.status("Seed copied.")
    assert page.view.evaluate("navigator.clipboard.readText()") == sample["seed"]
    picture("dark_gallery")
    assert page.view.evaluate(FLAWS) == []


def test_forget_and_undo(page):
    assert page.action("forget").inner_text().strip() == "Forget 1"
    page.action("forget").click()
    page.status("1 forgotten.")
    page.tiles(2)
    assert live(page) == 2
    page.action("undo").click()
    page.status("1 came back.")
    page.tiles(3)
    assert live(page) == 3


def test_a_seed_is_copied_over_plain_http_too(page):
    """There, browsers have no navigator.clipboard."""
    page.view.locator(".uncommon-tile").last.click()
    page.view.evaluate("""() => Object.defineProperty(
        navigator, "clipboard", { value: undefined, configurable: true })""")
    page.action("copySeed").click()
    page.status("Seed copied.")
    page.view.evaluate("() => delete navigator.clipboard")
    seed = page.view.locator(".uncommon-details dt", has_text="Seed").locator("+ dd").inner_text()
    assert page.view.evaluate("navigator.clipboard.readText()") == seed
    page.view.keyboard.press("Escape")  # the button has the keyboard again


def test_the_keyboard_does_it_all(page):
    nodes = page.view.evaluate("app.graph.nodes.length")
    page.view.locator(".uncommon-gallery").focus()
    for key in ("Home", "Space", "ArrowRight", "Space"):
        page.view.keyboard.press(key)
    assert page.view.locator('.uncommon-tile[aria-selected="true"]').count() == 2
    page.view.keyboard.press("Escape")
    assert page.view.locator('.uncommon-tile[aria-selected="true"]').count() == 0
    page.view.keyboard.press("Control+a")
    page.view.keyboard.press("Delete")
    page.status("3 forgotten.")
    page.view.get_by_text("This memory holds no samples.").wait_for()
    page.view.locator(".uncommon-panel .uncommon-tabs button").first.focus()
    page.view.keyboard.press("Control+z")
    page.tiles(3)
    assert live(page) == 3
    assert page.view.evaluate("app.graph.nodes.length") == nodes


def test_the_map_shows_and_selects(page, picture):
    page.view.get_by_role("tab", name="Map").click()
    page.view.locator(".uncommon-map-hint", has_text="% of the variation").wait_for()
    box = page.view.locator(".uncommon-map canvas").bounding_box()
    left, top = box["x"] + 2, box["y"] + 2
    right, bottom = box["x"] + box["width"] - 2, box["y"] + box["height"] - 2
    page.view.mouse.move(left, top)
    page.view.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top + 9)):
        page.view.mouse.move(x, y, steps=3)
    page.view.mouse.up()
    page.tiles(3)
    assert page.action("forget").inner_text().strip() == "Forget 3"

    for i in range(3):  # every dot shows its preview
        x, y = page.view.evaluate("(i) => { const map = document.querySelector('.uncommon-map')"
                                  ".uncommonMap; return [map.x[i], map.y[i]]; }", i)
        page.view.mouse.move(box["x"] + x, box["y"] + y)
        page.view.locator(".uncommon-hover img").wait_for(state="visible")
        page.view.mouse.move(left, top)
        page.view.locator(".uncommon-hover").wait_for(state="hidden")
    picture("dark_map")
    assert page.view.evaluate(FLAWS) == []
    page.view.mouse.click(left, top)  # beside all dots
    assert page.action("forget").is_disabled()
    page.view.get_by_role("tab", name="Gallery").click()


def test_the_map_is_enlarged_moved_and_shown_whole(page, picture):
    page.view.get_by_role("tab", name="Map").click()
    box = page.view.locator(".uncommon-map canvas").bounding_box()

    def dot(i: int = 0) -> list[float]:
        page.view.evaluate("() => new Promise((done) => requestAnimationFrame(() => "
                           "requestAnimationFrame(done)))")
        return page.view.evaluate("(i) => { const map = document.querySelector('.uncommon-map')"
                                  ".uncommonMap; return [map.x[i], map.y[i]]; }", i)

    def apart(zoom: float) -> float:
        page.view.wait_for_function("(zoom) => Math.abs(document.querySelector('.uncommon-map')"
                                    ".uncommonMap.view.zoom / zoom - 1) < 0.05", arg=zoom)
        (x, y), (to_x, to_y) = dot(0), dot(1)
        return math.hypot(x - to_x, y - to_y)

    whole, at = apart(1), dot()
    page.view.mouse.move(box["x"] + at[0], box["y"] + at[1])
    page.view.mouse.wheel(0, -350)
    assert apart(2) == pytest.approx(2 * whole, rel=0.05)
    assert dot() == pytest.approx(at, abs=1)  # what is under the pointer stays there
    picture("dark_map_enlarged")
    assert page.view.evaluate(FLAWS) == []
    page.view.mouse.down(button="middle")
    page.view.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.view.mouse.up(button="middle")
    assert dot() != pytest.approx(at, abs=1)
    assert page.action("forget").is_disabled()  # moving selects nothing
    page.view.get_by_role("button", name="Zoom in").click()
    assert apart(3.2) == pytest.approx(3.2 * whole, rel=0.05)
    page.view.mouse.dblclick(box["x"] + 3, box["y"] + 3)
    assert (apart(1), *dot()) == pytest.approx((whole, *at), abs=0.01)
    page.view.mouse.wheel(0, 500)  # no smaller than the whole
    assert apart(1) == pytest.approx(whole, abs=0.01)
    page.view.get_by_role("tab", name="Gallery").click()


def test_of_the_runs_of_others_only_their_memory_is_shown(page):
    """Of another page, or of a program, whose nodes may have the same ids."""
    before = readouts(page)
    prompt = page.view.evaluate("async () => (await app.graphToPrompt()).output")
    prompt[find(prompt, "UncommonNoveltyMemory")]["inputs"]["name"] = OTHERS
    page.server.run(prompt)
    page.view.locator(".uncommon-list", has_text=f"{OTHERS}1 sample").wait_for()
    assert readouts(page) == before


def test_the_keyboard_stays_in_the_panel(page):
    """Also where what had it is drawn anew, disabled or hidden."""
    def focused() -> str:
        return page.view.evaluate("""() => { const one = document.activeElement;
            return one.value || one.dataset.action || one.getAttribute("role"); }""")

    page.view.locator(f'.uncommon-list [value="{NAME}"]').focus()
    for key, name, count in (("ArrowDown", OTHERS, 1), ("ArrowUp", NAME, 3)):
        page.view.keyboard.press(key)
        page.tiles(count)
        assert focused() == name

    tiles = page.view.locator(".uncommon-tile")
    newest = int(tiles.first.get_attribute("data-number"))
    tiles.last.click()
    page.action("copySeed").evaluate("(button) => { button.title = 'before'; }")
    page.action("copySeed").focus()
    page.server.post("/uncommon/forget", {"memory": NAME, "numbers": [newest]})
    page.view.get_by_title("before").wait_for(state="detached")
    assert focused() == "copySeed"
    page.view.keyboard.press("Control+z")
    page.tiles(3)
    page.view.keyboard.press("Escape")

    tiles.first.click()
    page.action("forget").focus()
    page.view.keyboard.press("Enter")
    page.tiles(2)
    assert focused() == "tab"
    page.view.keyboard.press("Control+z")
    page.tiles(3)

    tiles.first.click()
    page.view.get_by_role("tab", name="Map").click()
    page.view.locator(".uncommon-gallery").focus()
    page.view.keyboard.press("Escape")
    page.view.locator(".uncommon-gallery").wait_for(state="hidden")
    assert focused() == "tab"
    page.view.get_by_role("tab", name="Gallery").click()


def test_freeze_and_learn_again(page):
    revision = next(m["revision"] for m in page.server.get("/uncommon/memories"))
    page.action("freeze").click()
    assert (memory_node(page, "mode"), memory_node(page, "revision")) == ("frozen", revision)
    page.action("freeze").click()
    assert (memory_node(page, "mode"), memory_node(page, "revision")) == ("learn", -1)


def test_the_workflow_of_an_image_comes_back(page):
    page.view.evaluate("app.graph.clear()")
    page.view.locator(".uncommon-tile").last.click()
    page.action("loadWorkflow").click()
    page.status("Loaded, with the memory frozen at revision 0")
    assert (memory_node(page, "mode"), memory_node(page, "revision")) == ("frozen", 0)
    page.view.keyboard.press("Escape")


@pytest.mark.parametrize(("origin", "mode", "says"), [
    (NAME, "frozen", "Loaded, with the memory frozen at revision 0"),
    ("elsewhere", "learn", "Loaded as it was made. Revision 0 of “elsewhere”")])
def test_the_workflow_of_an_imported_image(page, tmp_path, origin, mode, says):
    with page.view.expect_download() as download:
        page.action("export").click()
    file = tmp_path / "drawn.safetensors"
    download.value.save_as(file)
    with safe_open(file, "pt") as exported:
        metadata = exported.metadata()
    save_file(load_file(file), file, metadata | {"memory": origin})
    page.view.locator('.uncommon-panel input[type="file"]').set_input_files(file)
    dialog = page.view.get_by_role("dialog")
    dialog.get_by_role("textbox").fill(f"from {origin}")
    dialog.get_by_role("button", name="Confirm").click()
    page.status("3 samples added, 0 were there already.")
    page.tiles(3)
    page.view.locator(".uncommon-tile").last.click()
    page.action("loadWorkflow").click()
    page.status(says)
    assert (memory_node(page, "name"), memory_node(page, "mode")) == (NAME, mode)
    page.view.keyboard.press("Escape")
    page.view.locator(f'.uncommon-list [value="{NAME}"]').check()
    page.tiles(3)


def test_export_clear_and_import(page, picture, tmp_path):
    with page.view.expect_download() as download:
        page.action("export").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == f"{NAME}.safetensors"
    page.action("clear").click()
    dialog = page.view.get_by_role("dialog")
    dialog.get_by_text("All 3 samples will be forgotten.").wait_for()
    picture("clear")
    dialog.get_by_role("button", name="Delete").click()
    page.status("3 forgotten.")
    assert live(page) == 0
    page.view.locator('.uncommon-panel input[type="file"]').set_input_files(file)
    page.view.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    page.status("3 samples added, 0 were there already.")
    page.tiles(3)
    assert live(page) == 3


def test_reload_keeps_the_state(page):
    page.open()
    page.show_panel()
    page.tiles(3)
    assert page.view.locator(".uncommon-list :checked").get_attribute("value") == NAME


def test_help_opens_from_the_node(page, picture):
    page.load("novelty")
    page.show_panel(False)
    page.view.evaluate("""() => { const node = app.graph.nodes.find(
        (node) => node.type === "UncommonNoveltyGuidance");
        app.canvas.selectNode(node); app.canvas.fitViewToSelectionAnimated?.(); }""")
    page.view.get_by_test_id("info-button").click()
    page.view.get_by_role("heading", name="Novelty Guidance").first.wait_for()
    picture("help")


def test_light_theme_phone_and_french(page, picture):
    page.show_panel()
    page.tiles(3)
    assert min(page.view.evaluate(CONTRAST).values()) > 4.5
    page.setting("Comfy.ColorPalette", "light")
    page.view.locator(".uncommon-tile").first.click()
    page.view.locator(".uncommon-details img").wait_for()
    picture("light_gallery")
    assert page.view.evaluate(FLAWS) == []
    assert min(page.view.evaluate(CONTRAST).values()) > 4.5
    page.view.get_by_role("tab", name="Map").click()
    picture("light_map")
    assert page.view.evaluate(FLAWS) == []

    page.view.set_viewport_size({"width": 390, "height": 844})
    picture("phone_map")
    assert page.view.evaluate(FLAWS) == []
    page.view.get_by_role("tab", name="Gallery").click()
    picture("phone_gallery")
    assert page.view.evaluate(FLAWS) == []

    page.setting("Comfy.ColorPalette", "dark")
    page.setting("Comfy.Locale", "fr")
    page.view.get_by_role("tab", name="Galerie").wait_for()
    page.tiles(3)
    page.view.locator(".uncommon-tile").first.click()
    page.view.locator(".uncommon-details img").wait_for()
    picture("phone_french")
    assert page.view.evaluate(FLAWS) == []
    page.view.set_viewport_size({"width": 1280, "height": 800})
    picture("french")
    assert page.view.evaluate(FLAWS) == []
    page.setting("Comfy.Locale", "en")
    page.view.get_by_role("tab", name="Gallery").wait_for()
    assert page.errors == []


@pytest.mark.parametrize("height", [740, 600, 480])
def test_in_a_low_window_everything_can_be_reached(page, picture, height):
    page.view.locator(".uncommon-tile").first.click()
    page.view.locator(".uncommon-details img").wait_for()
    page.view.set_viewport_size({"width": 1280, "height": height})
    page.view.get_by_role("tab", name="Map").click()
    page.view.locator(".uncommon-details").hover()
    page.view.mouse.wheel(0, 2000)
    picture(f"low_{height}")
    page.view.wait_for_function("""() => {
        const box = (name) => document.querySelector(name).getBoundingClientRect();
        const button = box(".uncommon-panel [data-action=loadWorkflow]");
        return button.height > 0 && button.bottom <= box(".uncommon-panel").bottom; }""")
    page.view.set_viewport_size({"width": 1280, "height": 800})
    page.view.get_by_role("tab", name="Gallery").click()


def test_the_workflow_comes_back_after_a_restart(page):
    """From the saved image, also for samples that were imported since."""
    page.view.goto("about:blank")
    page.server.stop()
    page.server.start()
    page.start()
    page.view.evaluate("app.graph.clear()")
    page.show_panel()
    page.tiles(3)
    page.view.locator(".uncommon-tile").first.click()
    revision = page.server.get("/uncommon/memories")[0]["revision"]
    [newest] = page.server.get(
        f"/uncommon/samples?memory={NAME.replace(' ', '%20')}&numbers={revision}")
    page.action("loadWorkflow").click()
    page.status(f"Loaded, with the memory frozen at revision {newest['guided_at']}")
    assert (memory_node(page, "mode"), memory_node(page, "revision")) == (
        "frozen", newest["guided_at"])

    for image in page.server.output.rglob("*.png"):
        image.unlink()
    page.action("loadWorkflow").click()
    page.status("ComfyUI has this workflow no more")
    assert page.errors == []
