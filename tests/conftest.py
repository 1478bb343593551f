"""The hosts that tests run in. Tests that need none are plain functions and start at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported, here and in the servers: models this small gain nothing from more
# threads, and on a busy machine the threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

from demo.host import InProcessHost, Prompt, Server  # noqa: E402
from dev import HOME  # noqa: E402

if TYPE_CHECKING:
    from tests.two_devices import TwoDevices

ON_DEVICE = "--on-device"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(ON_DEVICE, action="store_true", help=(
        "the tests on a device in place of the others; in a process of their own, because torch "
        "counts the devices once (see two_devices.cpp)"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption(ON_DEVICE)
    items[:] = [item for item in items
                if ("two_devices" in getattr(item, "fixturenames", ())) == wanted]


@pytest.fixture(scope="session", autouse=True)
def devices(request: pytest.FixtureRequest) -> TwoDevices | None:
    """Made before anything else is done in the process."""
    if not request.config.getoption(ON_DEVICE):
        return None
    from tests.two_devices import TwoDevices
    return TwoDevices(HOME / "two_devices")


@pytest.fixture
def two_devices(devices: TwoDevices) -> TwoDevices:
    return devices


def _novelty_graph(label: int = 3, *, seed: int = 0, steps: int = 6, cfg: float = 2.0,
                   batch: int = 1, sampler: str = "euler", scheduler: str = "normal",
                   memory: dict | None = None, guidance: dict | None = None,
                   more: dict | None = None) -> Prompt:
    nodes = {
        "model": ("UncommonLoadADM", {"model_name": "digits"}),
        "memory": ("UncommonNoveltyMemory", {
            "name": "test", "mode": "learn", "revision": -1, "max_megabytes": 64}
            | (memory or {})),
        "guided": ("UncommonNoveltyGuidance", {
            "model": ["model", 0], "memory": ["memory", 0], "strength": 0.5, "start_percent": 0.0,
            "end_percent": 1.0, "repulsion": "exact"} | (guidance or {})),
        "positive": ("UncommonClassConditioning", {"class_number": label}),
        "negative": ("UncommonClassConditioning", {"class_number": -1}),
        "latent": ("EmptyLatentImage", {"width": 16, "height": 16, "batch_size": batch}),
        "sampled": ("KSampler", {
            "model": ["guided", 0], "positive": ["positive", 0], "negative": ["negative", 0],
            "latent_image": ["latent", 0], "seed": seed, "steps": steps, "cfg": cfg,
            "sampler_name": sampler, "scheduler": scheduler, "denoise": 1.0}),
        "vae": ("VAELoader", {"vae_name": "pixel_space"}),
        "images": ("VAEDecode", {"samples": ["sampled", 0], "vae": ["vae", 0]}),
        "saved": ("SaveImage", {"images": ["images", 0], "filename_prefix": "novelty"}),
    } | (more or {})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


@pytest.fixture(scope="session")
def novelty_graph() -> Callable[..., Prompt]:
    """Makes graphs that draw digits with novelty guidance.

    memory, guidance: inputs to set on these nodes; more: nodes to add or to replace, as
    id -> (type, inputs).
    """
    return _novelty_graph


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
