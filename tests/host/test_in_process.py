"""The in-process host does what the server does: validation, cache, errors, interruption."""

from __future__ import annotations

import pytest

from demo.host import Interrupted, PromptRejected, RunFailed

PICTURE = {"1": {"class_type": "EmptyImage",
                 "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 0xFF0000}},
           "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}


def picture(**inputs):
    """PICTURE with other inputs of its first node."""
    changed = {**PICTURE["1"], "inputs": {**PICTURE["1"]["inputs"], **inputs}}
    return {**PICTURE, "1": changed}


def test_outputs_and_what_is_shown(fresh_host):
    run = fresh_host.run(PICTURE)
    assert run.outputs["1"][0].shape == (1, 8, 16, 3)
    file = run.ui["2"]["images"][0]
    assert (fresh_host.directory / "temp" / file["filename"]).is_file()


def test_only_what_changed_runs_again(fresh_host):
    assert fresh_host.run(PICTURE).executed == ["1", "2"]
    assert fresh_host.run(PICTURE).executed == []
    assert fresh_host.run(picture(width=32)).executed == ["1", "2"]
    fresh_host.restart()
    assert fresh_host.run(picture(width=32)).executed == ["1", "2"]


def test_bad_input_is_rejected(fresh_host):
    with pytest.raises(PromptRejected, match=r"node 1 \(EmptyImage\).*width") as caught:
        fresh_host.run(picture(width=0))
    assert set(caught.value.node_errors) == {"1"}
    with pytest.raises(PromptRejected, match="NoSuchNode"):
        fresh_host.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_failure_names_the_node(fresh_host, monkeypatch):
    import nodes

    def fail(*_, **__):
        raise ValueError("no paint left")

    node = nodes.NODE_CLASS_MAPPINGS["EmptyImage"]
    monkeypatch.setattr(node, node.FUNCTION, fail)
    with pytest.raises(RunFailed, match="no paint left") as caught:
        fresh_host.run(PICTURE)
    assert (caught.value.node_id, caught.value.exception_type) == ("1", "ValueError")


def test_progress_and_interruption(fresh_host, monkeypatch):
    import comfy.utils
    import nodes

    def paint(*_, **__):
        bar = comfy.utils.ProgressBar(5)
        for _ in range(5):
            bar.update(1)
        raise AssertionError("not interrupted")

    node = nodes.NODE_CLASS_MAPPINGS["EmptyImage"]
    monkeypatch.setattr(node, node.FUNCTION, paint)
    seen = []

    def stop_at_three(node_id, step, steps):
        seen.append((node_id, step, steps))
        if step == 3:
            fresh_host.interrupt()

    with pytest.raises(Interrupted):
        fresh_host.run(PICTURE, on_progress=stop_at_three)
    assert seen == [("1", 1, 5), ("1", 2, 5), ("1", 3, 5)]
