"""Novelty guidance over HTTP: what a memory is worth after a restart, and what errors say."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from demo.host import PromptRejected, RunFailed


def draw(server, graph: dict) -> bytes:
    """The one image of a graph, as it was saved."""
    [content] = server.images(server.run(graph), "saved")
    return content


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def prompt_of(content: bytes) -> dict:
    """The prompt that a saved image carries."""
    return json.loads(Image.open(io.BytesIO(content)).info["prompt"])


def note_of(content: bytes) -> dict:
    """What the image tells of its guidance."""
    return prompt_of(content)["guided"]["_meta"]["uncommon"]["sampled"]


def frozen(content: bytes) -> dict:
    """The graph of a saved image, its memory frozen at the revision that guided the image."""
    graph = prompt_of(content)
    name, revision = note_of(content)["memory"].split("@")
    graph["memory"]["inputs"] |= {"name": name, "mode": "frozen", "revision": int(revision)}
    return graph


def test_a_memory_outlives_the_server(start_server, novelty_graph):
    server = start_server()
    drawn = [draw(server, novelty_graph()) for _ in range(3)]
    assert [note_of(content)["memory"] for content in drawn] == ["test@0", "test@1", "test@2"]
    server.stop()
    server.start()

    again = draw(server, frozen(drawn[1]))
    assert np.array_equal(pixels(again), pixels(drawn[1]))
    info = {"info": ("UncommonMemoryInfo", {"memory": ["memory", 0], "after": ["sampled", 0]})}
    entry = server.run(novelty_graph(more=info))
    [fourth] = server.images(entry, "saved")
    assert note_of(fourth) == {"memory": "test@3", "strength": 0.5, "seed": 0, "recorded": [4]}
    assert entry["outputs"]["info"]["text"][0].startswith("test@4, learning\n4 samples")
    different = [pixels(content).astype(float) for content in (*drawn, fourth)]
    assert min(np.abs(a - b).mean() for i, a in enumerate(different)
               for b in different[:i]) > 5

    server.kill()  # a crash
    server.start()
    assert note_of(draw(server, novelty_graph()))["memory"] == "test@4"


def test_unknown_revision(server, novelty_graph):
    with pytest.raises(RunFailed) as failed:
        server.run(novelty_graph(memory={"name": "none", "mode": "frozen", "revision": 5}))
    assert failed.value.node_id == "memory"
    assert failed.value.exception_type.endswith("RevisionError")
    assert "it has revisions 0 to 0. Choose one of these" in failed.value.message


def test_learning_from_a_pinned_revision_is_rejected_at_once(server, novelty_graph):
    with pytest.raises(PromptRejected, match="Set revision to -1, or mode to frozen") as rejected:
        server.run(novelty_graph(memory={"mode": "learn", "revision": 5}))
    assert set(rejected.value.node_errors) == {"memory"}


def test_a_damaged_database_is_left_as_it_is(server, novelty_graph, tmp_path):
    file = tmp_path / "damaged.sqlite"
    draw(server, novelty_graph(memory={"database": f"sqlite:///{file}"}))
    content = bytearray(file.read_bytes())
    content[100:4096] = b"\xff" * 3996
    file.write_bytes(content)
    with pytest.raises(RunFailed) as failed:
        server.run(novelty_graph(memory={"database": f"sqlite:///{file}"}))
    assert failed.value.node_id == "memory"
    assert "Restore a backup, or move the file away" in failed.value.message
    assert file.read_bytes() == content


def test_a_full_disk_loses_neither_the_image_nor_the_memory(server, novelty_graph, tmp_path):
    file = tmp_path / "log.sqlite"
    graph = novelty_graph(memory={"database": f"sqlite:///{file}"})
    draw(server, graph)

    def execute(statement: str) -> None:
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute(statement)

    execute("CREATE TRIGGER full BEFORE INSERT ON novelty_entry "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END")
    pushed = draw(server, graph)
    assert note_of(pushed)["memory"] == "test@1"
    log = server.log.read_text("utf-8", errors="replace")
    assert "it is not remembered" in log and "Free some space and try again" in log

    execute("DROP TRIGGER full")
    again = {"max_megabytes": 63, "database": f"sqlite:///{file}"}  # else the result is cached
    assert np.array_equal(pixels(draw(server, novelty_graph(memory=again))), pixels(pushed))
    draw(server, graph)
    assert note_of(draw(server, graph))["memory"] == "test@3"
