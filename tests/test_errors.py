"""docs/errors.md tells of every error that the code can raise, and a test quotes each of them."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections import Counter

from dev import ROOT

PAGE = (ROOT / "docs" / "errors.md").read_text("utf-8")
ROWS = [[cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
QUOTED = 10  # letters in a row that no more than two messages share


def finder():
    """tests/error_messages.py, wherever pytest was started."""
    spec = importlib.util.spec_from_file_location("error_messages", ROOT / "tests" /
                                                  "error_messages.py")
    module = sys.modules["error_messages"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FINDER = finder()
MESSAGES = FINDER.messages(ROOT)


def snippets(text: str) -> set[str]:
    return {part[i:i + QUOTED] for part in text.split(FINDER.GAP)
            for i in range(len(part) - QUOTED + 1)}


def test_the_code_was_searched():
    assert len(MESSAGES) > 100


def test_every_message_is_on_the_page():
    known = {row[0] for row in ROWS}
    lacking = [f"{one.place}: {one.first_sentence}" for one in MESSAGES
               if one.first_sentence not in known]
    assert not lacking, "add rows to docs/errors.md:\n" + "\n".join(lacking)


def test_the_page_tells_of_no_message_that_is_gone():
    real = {one.first_sentence for one in MESSAGES}
    assert not [row[0] for row in ROWS if row[0] not in real and row[0] != HEAD]


HEAD = "the message begins with"


def test_every_row_has_cause_and_cure():
    assert not [row for row in ROWS if len(row) != 3 or not all(row)]


def test_the_page_tells_what_a_database_reports():
    from guidance.memory.database import ADVICE

    assert not [found for found in ADVICE if f"*{found}*" not in PAGE]


def test_a_test_quotes_every_message():
    """Not a proof that it is provoked, but no message is forgotten."""
    shared = Counter(one for text in {one.text for one in MESSAGES} for one in snippets(text))
    texts = {re.sub(r"\\(.)", r"\1", node.value) for file in (ROOT / "tests").rglob("test_*.py")
             for node in ast.walk(ast.parse(file.read_text("utf-8")))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    quoted = {one for text in texts for one in snippets(text)}

    def is_quoted(text: str) -> bool:
        if any(part in quoted and shared[part] <= 2 for part in snippets(text)):
            return True
        parts = filter(None, (part.strip(" \"'.") for part in text.split(FINDER.GAP)))
        whole = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        return any(whole.search(one) for one in texts)

    lacking = [f"{one.place}: {one.text}" for one in MESSAGES if not is_quoted(one.text)]
    assert not lacking, "no test provokes:\n" + "\n".join(lacking)
