"""The hosts that tests run in. Tests that need none are plain functions and start at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.host import InProcessHost, Server


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> InProcessHost:
    """ComfyUI inside this process: half a minute, once."""
    return InProcessHost(tmp_path_factory.mktemp("host"))


@pytest.fixture
def fresh_host(host: InProcessHost, tmp_path: Path) -> Iterator[InProcessHost]:
    """The same host with an empty cache and an empty user folder, and so without memories."""
    host.restart()
    with host.user_directory(tmp_path / "user"):
        yield host


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI server that all tests share: half a minute, once. Do not stop it."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own, in its `tmp_path` unless told otherwise: half a minute each.

    Takes what `Server` takes. The servers are ended with the test.
    """
    started: list[Server] = []

    def start(directory: Path = tmp_path / "server", **options) -> Server:
        started.append(Server(directory, **options))
        return started[-1].start()

    yield start
    for one in started:
        one.stop()
