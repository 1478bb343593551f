"""Finds the messages of all errors that the code can raise, by its structure."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GAP = "…"  # stands for what is filled in
FOLDERS = ("guidance", "nodes")
ENDS_SENTENCE = re.compile(r"[.;](?=\s|$)")


@dataclass(frozen=True)
class Message:
    """text: with GAP where values are filled in."""

    text: str
    place: str

    @property
    def first_sentence(self) -> str:
        """What is wrong, without what to do."""
        end = ENDS_SENTENCE.search(self.text)
        return self.text[:end.start()] if end and end.start() > 5 else self.text


def messages(root: Path) -> list[Message]:
    """Of all files, in their order."""
    return [message for folder in FOLDERS for file in sorted((root / folder).rglob("*.py"))
            for message in of_file(file, root)]


def of_file(file: Path, root: Path) -> Iterator[Message]:
    """The texts of `raise Error("text")`, and of what functions return whose result is raised or
    given back by `validate_inputs`. Errors raised again, and mere values, have none."""
    tree = ast.parse(file.read_text("utf-8"))
    found, functions = [], {"validate_inputs"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            given = node.exc.args[0]
            found.append(given)
            functions |= _called(given)
        elif isinstance(node, ast.FunctionDef) and node.name == "validate_inputs":
            functions |= _called(node)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            found += [part.value for part in ast.walk(node)
                      if isinstance(part, ast.Return) and part.value is not None]
    for node in found:
        text = " ".join(_text(node).split())
        if len(re.findall(r"[A-Za-z]{2,}", text)) > 1:
            yield Message(text, f"{file.relative_to(root).as_posix()}:{node.lineno}")


def _called(node: ast.AST) -> set[str]:
    """Names of the functions and methods that a piece of code calls."""
    return {part.func.attr if isinstance(part.func, ast.Attribute) else part.func.id
            for part in ast.walk(node) if isinstance(part, ast.Call)
            and isinstance(part.func, ast.Attribute | ast.Name)}


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else GAP
                       for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return GAP
