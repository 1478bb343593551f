"""What the memory's routes answer to requests that are none."""

from __future__ import annotations

import pytest

from demo.host import HostError


@pytest.mark.parametrize(("path", "told"), [
    ("import?memory=mine", "The request holds no file; expected one as the body"),
    ("undo", "No memory was named; give its name as the text `memory`.")])
def test_wrong_requests(server, path, told):
    with pytest.raises(HostError, match="HTTP 400.*") as caught:
        server.post(f"/uncommon/{path}", {})
    assert told in str(caught.value)
