"""What the memory panel asks the server, and what it answers to nonsense."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

NAME = "routes"
FILE = "application/octet-stream"


def ask(server, path: str, body: bytes | None = None, kind: str = "application/json"):
    """(status, content, headers) of a request as a page makes it."""
    request = urllib.request.Request(f"{server.url}/uncommon/{path}", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def numbers(server) -> list[int]:
    status, content, _ = ask(server, f"numbers?memory={NAME}")
    assert status == 200
    return np.frombuffer(content, "<i4").tolist()


def post(server, path: str, **body):
    status, content, _ = ask(server, path, json.dumps(body).encode())
    return status, json.loads(content)


@pytest.fixture(scope="module", autouse=True)
def drawn(server, novelty_graph):
    """Four samples in the memory."""
    server.run(novelty_graph(batch=4, memory={"name": NAME}))


def test_lists_the_memories(server):
    [mine] = [one for one in server.get("/uncommon/memories") if one["name"] == NAME]
    assert (mine["revision"], mine["samples"], mine["forgotten"]) == (4, 4, 0)
    assert mine["bytes"] > 4 * 192 * 4


def test_gives_the_map_in_columns(server):
    status, content, headers = ask(server, f"map?memory={NAME}")
    assert status == 200 and len(content) == 4 * 16
    assert np.frombuffer(content[:16], "<i4").tolist() == numbers(server) == [1, 2, 3, 4]
    points = np.frombuffer(content[16:48], "<f4").reshape(4, 2)
    assert np.abs(points.mean(0)).max() < 1e-5 < points.std(0).min()
    assert np.frombuffer(content[48:], "<f4").tolist() == [np.inf] * 4
    assert headers["Uncommon-Revision"] == "4" and 0 < float(headers["Uncommon-Share"]) <= 1


def test_shows_samples(server):
    shown = server.get(f"/uncommon/samples?memory={NAME}&numbers=1,3,77")
    assert [one["number"] for one in shown] == [3, 1]
    assert all(one["preview"].startswith("data:image/png;base64,") for one in shown)
    assert shown[0]["prompt_id"] and shown[0]["guided_at"] == 0


def test_gives_the_workflow_of_a_saved_image(server, novelty_graph):
    """As after a restart, when the host has it no more: from the image."""
    name, workflow = "saved", {"nodes": [], "version": 0.4}
    for seed in (5, 6, 7):
        graph = novelty_graph(seed=seed, memory={"name": name})
        graph["saved"]["inputs"]["filename_prefix"] = f"saved/{seed}"
        server.run(graph, {"extra_pnginfo": {"workflow": workflow | {"seed": seed}}})
    others = server.output / "saved"
    (others / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(others / "plain.png")
    for number, seed in enumerate((5, 6, 7), 1):
        found = server.get(f"/uncommon/workflow?memory={name}&numbers={number}")["workflow"]
        assert found == workflow | {"seed": seed}
    assert post(server, "forget", memory=name, numbers=[2])[0] == 200
    [again] = post(server, "undo", memory=name)[1]["numbers"]
    found = server.get(f"/uncommon/workflow?memory={name}&numbers={again}")["workflow"]
    assert found["seed"] == 6
    next(others.glob("6_*.png")).unlink()
    frozen = novelty_graph(seed=6, memory={"name": name, "mode": "frozen", "revision": 1})
    server.run(frozen, {"extra_pnginfo": {"workflow": workflow}})  # the same, but not remembered
    assert server.get(f"/uncommon/workflow?memory={name}&numbers={again}")["workflow"] is None
    assert server.get(f"/uncommon/workflow?memory={name}&numbers=99")["workflow"] is None


def test_gives_the_workflow_of_an_imported_sample(server, novelty_graph):
    server.run(novelty_graph(memory={"name": "origin"}),
               {"extra_pnginfo": {"workflow": {"nodes": []}}})
    _, content, _ = ask(server, "export?memory=origin")
    assert ask(server, "import?memory=copy", content, FILE)[0] == 200
    [shown] = server.get("/uncommon/samples?memory=copy&numbers=1")
    assert (shown["guided_by"], shown["guided_at"]) == ("origin", 0)
    assert server.get("/uncommon/workflow?memory=copy&numbers=1")["workflow"] == {"nodes": []}


def test_forgets_and_brings_back(server):
    assert post(server, "forget", memory=NAME, numbers=[2, 3]) == (
        200, {"revision": 5, "samples": 2})
    assert numbers(server) == [1, 4]
    assert post(server, "undo", memory=NAME) == (
        200, {"revision": 7, "samples": 4, "numbers": [6, 7], "lost": 0})
    assert post(server, "forget", memory=NAME, numbers="all")[1]["samples"] == 0
    assert len(post(server, "undo", memory=NAME)[1]["numbers"]) == 4
    assert len(np.frombuffer(ask(server, f"map?memory={NAME}")[1], "<i4")) == 4 * 4


def test_exports_and_imports(server):
    status, content, headers = ask(server, f"export?memory={NAME}")
    assert status == 200
    assert headers["Content-Disposition"] == "attachment; filename*=UTF-8''routes.safetensors"
    status, answer, _ = ask(server, f"import?memory={quote('routes again')}",
                            content, FILE)
    assert json.loads(answer) == {"revision": 4, "samples": 4, "new": 4, "duplicates": 0}
    status, answer, _ = ask(server, f"import?memory={NAME}", content, FILE)
    assert json.loads(answer)["duplicates"] == 4
    assert not list(server.directory.rglob("*.partial"))


@pytest.mark.parametrize(("path", "says"), [
    ("numbers", "No memory was named"),
    ("map?memory=", "cannot name a memory"),
    ("map?memory=..%2F..%2Fetc%2Fpasswd", "cannot name a memory"),
    ("export?memory=%00", "cannot name a memory"),
    ("export?memory=nothing", "holds no samples"),
    (f"samples?memory={NAME}", "expected a list of 1 to 200"),
    (f"samples?memory={NAME}&numbers=1,x", "expected a list of 1 to 200"),
    (f"samples?memory={NAME}&numbers=-1", "expected a list of 1 to 200"),
    (f"workflow?memory={NAME}", "expected a list of 1 to 1 "),
    (f"workflow?memory={NAME}&numbers=1,2", "expected a list of 1 to 1 "),
    (f"samples?memory={NAME}&numbers=99999999999", "expected a list of 1 to 200"),
    (f"samples?memory={NAME}&numbers={','.join(['1'] * 201)}", "expected a list of 1 to 200"),
])
def test_nonsense_is_named(server, path, says):
    status, content, _ = ask(server, path)
    assert status == 400
    assert says in json.loads(content)["error"]


@pytest.mark.parametrize(("path", "body", "kind", "says"), [
    ("forget", b"{", "application/json", "no JSON object"),
    ("forget", b"[]", "application/json", "no JSON object"),
    ("forget", b'{"memory": "routes", "numbers": "all"}', "text/plain", "no JSON object"),
    ("undo", b"{}", "application/json", "No memory was named"),
    ("undo", b'{"memory": 5}', "application/json", "No memory was named"),
    ("forget", b'{"memory": "routes"}', "application/json", "no numbers of samples"),
    ("forget", b'{"memory": "routes", "numbers": []}', "application/json", "no numbers of"),
    ("forget", b'{"memory": "routes", "numbers": [true]}', "application/json", "no numbers of"),
    ("forget", b'{"memory": "routes", "numbers": [1.5]}', "application/json", "no numbers of"),
    ("forget", b'{"memory": "routes", "numbers": [1, 99]}', "application/json",
     "no live sample at revision"),
    ("import?memory=routes", b"{}", "application/json", "holds no file"),
    ("import?memory=routes", b"not a file", FILE, "cannot be imported"),
])
def test_a_wrong_change_changes_nothing(server, path, body, kind, says):
    before = numbers(server)
    status, content, _ = ask(server, path, body, kind)
    assert status == 400
    assert says in json.loads(content)["error"]
    assert numbers(server) == before


@pytest.mark.parametrize("path", ["forget", "undo", "import"])
def test_changes_need_a_post(server, path):
    assert ask(server, f"{path}?memory={NAME}")[0] in (404, 405)
