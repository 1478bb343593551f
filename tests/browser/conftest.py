"""The real page in headless Chromium, against a server of its own that starts with nothing.

Without Chromium, or without playwright, the tests are skipped. UNCOMMON_CHROMIUM names another
browser. Screenshots go to out/browser.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.host import Server
from demo.host.page import NoBrowser, Page, chromium
from dev import ROOT

OUT = ROOT / "out" / "browser"


# Not for the session: playwright keeps an event loop running, beside which nothing that calls
# asyncio.run, as the in-process host does, can work.
@pytest.fixture(scope="module")
def browser() -> Iterator:
    try:
        with chromium() as found:
            yield found
    except NoBrowser as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One page for all tests, on a server that has never run before."""
    with Server(tmp_path_factory.mktemp("browser")) as server:
        context = browser.new_context(
            viewport={"width": 1280, "height": 800}, locale="en-US",
            permissions=["clipboard-read", "clipboard-write"])
        page = Page(context.new_page(), server)
        page.start()
        yield page
        context.close()


@pytest.fixture
def picture(page):
    """Takes a screenshot with a name."""
    return lambda name: page.screenshot(OUT / f"{name}.png")
