"""ComfyUI's page in headless Chromium, driven as a user would."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.host.server import Server
from dev import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120_000  # milliseconds, for machines that do much else
# A class in the page of ComfyUI 0.30, the label in later ones.
TAB = ".uncommon-memory-tab-button, button[aria-label^='Uncommon']"
READY = "!!(window.app?.extensionManager && window.LiteGraph?.registered_node_types" \
        f"?.UncommonNoveltyMemory && document.querySelector(\"{TAB}\"))"


class NoBrowser(RuntimeError):
    """There is no playwright, or no Chromium."""


@contextmanager
def chromium() -> Iterator:
    """playwright's browser. UNCOMMON_CHROMIUM names another than the first on the PATH."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise NoBrowser("playwright is missing: pip install playwright") from error
    found = os.environ.get("UNCOMMON_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)),
                                                        None)
    if not found:
        raise NoBrowser("no Chromium on this machine; install one, or name it in "
                        "UNCOMMON_CHROMIUM")
    with sync_playwright() as running:
        # No sandbox: containers, and their root, cannot have one. The page is our own.
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


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

    def start(self) -> None:
        """Opens the page for the first time: it shows the templates, which Escape closes."""
        self.open()
        self.view.wait_for_timeout(1500)
        self.view.keyboard.press("Escape")

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
            self.view.locator(TAB).click()
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

    def screenshot(self, file: Path) -> None:
        """Once everything stands still."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.view.wait_for_timeout(400)
        self.view.screenshot(path=file)
