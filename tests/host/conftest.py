"""What the tests in the host share."""

from __future__ import annotations

import pytest


@pytest.fixture
def page_with_texts(host, monkeypatch):
    """What the server shows on nodes goes where the tests' page keeps its events."""
    monkeypatch.setattr(host.pack("nodes._host"), "show_on_node",
                        lambda node_id, text: host._page.send_sync("progress_text",
                                                                   (node_id, text)))
