"""The pack in a real server."""

from __future__ import annotations

import os
import sys

import pytest
from PIL import Image

from demo.host import HostError, PromptRejected, RunFailed
from dev import ROOT

PICTURE = {"1": {"class_type": "EmptyImage",
                 "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 0xFF0000}},
           "2": {"class_type": "SaveImage",
                 "inputs": {"images": ["1", 0], "filename_prefix": "red"}}}


def with_input(node: str, **inputs):
    """PICTURE with other inputs of one node."""
    changed = {**PICTURE[node], "inputs": {**PICTURE[node]["inputs"], **inputs}}
    return {**PICTURE, node: changed}


def test_lists_our_nodes(server, host):
    info = server.object_info()
    ours = {name for name, node in info.items()
            if node["python_module"] == f"custom_nodes.{ROOT.name}"}
    assert ours == set(host.pack_nodes)


def test_runs_a_prompt_and_gives_its_image(server):
    entry = server.run(PICTURE)
    [image] = server.images(entry, "2")
    assert image.startswith(b"\x89PNG")
    assert (server.output / "red_00001_.png").read_bytes() == image


def test_rejects_a_bad_prompt(server):
    with pytest.raises(PromptRejected, match=r"node 1 \(EmptyImage\).*width"):
        server.run(with_input("1", width=0))


def test_names_the_node_that_failed(server):
    with pytest.raises(RunFailed, match="outside the output folder") as caught:
        server.run(with_input("2", filename_prefix="../outside"))
    assert caught.value.node_id == "2"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_file_names_need_not_be_utf_8(server, tmp_path):
    for name in (b"caf\xe9.png", b"caf\xe8.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / os.fsdecode(name))
    report = {"class_type": "UncommonDiversityReport",
              "inputs": {"folder": str(tmp_path), "features": "pixels"}}
    [text] = server.run({"report": report})["outputs"]["report"]["text"]
    assert "caf\udce8.png and caf\udce9.png: the same picture" in text
    cached = dict(server.run({"report": report})["status"]["messages"])["execution_cached"]
    assert cached["nodes"] == ["report"]


def test_restarts_and_tells_of_its_end(start_server):
    server = start_server()
    server.kill()
    with pytest.raises(HostError, match="has ended"):
        server.object_info()
    server.start()
    assert server.run(PICTURE)["status"]["status_str"] == "success"
    server.stop()


def test_a_start_that_fails_shows_the_log(start_server):
    with pytest.raises(HostError, match="unrecognized arguments: --no-such-option"):
        start_server(arguments=["--no-such-option"])
