"""The real page in headless Chromium, against a server of its own that starts with nothing.

Without Chromium, or without playwright, the tests are skipped. UNCOMMON_CHROMIUM names another
browser. Screenshots go to out/browser.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.host import Server
from dev import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OUT = ROOT / "out" / "browser"
PATIENCE = 120_000  # milliseconds, for machines that do much else
READY = "!!(window.app?.extensionManager && window.LiteGraph?.registered_node_types" \
        "?.UncommonNoveltyMemory && document.querySelector('.uncommon-memory-tab-button'))"


class Page:
    """The page, and what it complained of. `view` is playwright's page."""

    def __init__(self, view, server: Server):
        self.view = view
        self.server = server
        self.errors: list[str] = []
        view.set_default_timeout(PATIENCE)
        view.on("console", self._console)
        view.on("pageerror", lambda error: self.errors.append(str(error)))

    def _console(self, message) -> None:
        """Keeps errors and warnings that come from our files or speak of us."""
        address = message.location.get("url", "")
        source = f"{message.text} {address}"
        # Of a help page the host asks for the language's own first, whether there is one or not.
        asked = re.search(r"/docs/\w+/[\w-]+\.md$", address)
        if message.type in ("error", "warning") and "uncommon" in source.lower() and not asked:
            self.errors.append(f"{message.type}: {source}")

    def open(self) -> None:
        self.view.goto(self.server.url)
        self.view.wait_for_function(READY)
        self.view.locator("#splash-loader").wait_for(state="detached")

    def load(self, name: str) -> None:
        """Opens one of our templates, as the page's template browser does."""
        self.view.evaluate("""async ([pack, name]) => {
            const answer = await fetch(`/api/workflow_templates/${pack}/${name}.json`);
            await app.loadGraphData(await answer.json(), true, true, name);
        }""", [ROOT.name, name])

    def run(self) -> None:
        """Clicks Run and waits until the queue is empty."""
        self.view.evaluate("""() => { window.ended = new Promise((end) => {
            for (const name of ["execution_success", "execution_error"]) {
                app.api.addEventListener(name, () => end(name), { once: true });
            } }); }""")
        self.view.get_by_test_id("queue-button").first.click()
        assert self.view.evaluate("window.ended") == "execution_success"

    def show_panel(self, shown: bool = True) -> None:
        if self.view.locator(".uncommon-panel").count() != shown:
            self.view.locator(".uncommon-memory-tab-button").click()
        self.view.locator(".uncommon-panel").wait_for(state="visible" if shown else "detached")

    def action(self, name: str):
        """A button of the panel."""
        return self.view.locator(f'.uncommon-panel [data-action="{name}"]')

    def tiles(self, count: int) -> None:
        """Waits until the gallery shows so many samples, with their pictures."""
        self.view.wait_for_function(
            "(n) => document.querySelectorAll('.uncommon-tile').length === n && "
            "document.querySelectorAll('.uncommon-tile img').length === n", arg=count)

    def status(self, words: str) -> None:
        self.view.locator(".uncommon-status", has_text=words).wait_for()

    def setting(self, name: str, value: object) -> None:
        self.view.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)",
                           [name, value])

    def picture(self, name: str) -> Path:
        """A screenshot, once everything stands still."""
        OUT.mkdir(parents=True, exist_ok=True)
        self.view.wait_for_timeout(400)
        self.view.screenshot(path=OUT / f"{name}.png")
        return OUT / f"{name}.png"


# Not for the session: playwright keeps an event loop running, beside which nothing that calls
# asyncio.run, as the in-process host does, can work.
@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: pip install playwright")
    found = os.environ.get("UNCOMMON_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)),
                                                        None)
    if not found:
        pytest.skip("no Chromium on this machine; install one, or name it in UNCOMMON_CHROMIUM")
    with playwright.sync_playwright() as running:
        # No sandbox: containers, and their root, cannot have one. The page is our own.
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One page for all tests, on a server that has never run before."""
    with Server(tmp_path_factory.mktemp("browser")) as server:
        context = browser.new_context(
            viewport={"width": 1280, "height": 800}, locale="en-US",
            permissions=["clipboard-read", "clipboard-write"])
        page = Page(context.new_page(), server)
        page.open()
        # A first start shows the templates; a click beside them, or Escape, closes them.
        page.view.wait_for_timeout(1500)
        page.view.keyboard.press("Escape")
        yield page
        context.close()
