"""What the linter and the type checker say; their settings are in pyproject.toml."""

from __future__ import annotations

import subprocess
import sys

from dev import ROOT

# What `comfy node validate` refuses: exec, eval, several statements on a line.
REGISTRY_RULES = ("S102", "S307", "E702")


def check(*arguments: str) -> None:
    result = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, text=True,
                            capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_linter():
    check("ruff", "check", "--output-format=concise", ".")


def test_rules_of_the_registry():
    check("ruff", "check", "--isolated", "--select", ",".join(REGISTRY_RULES), "--exclude=.host",
          "--output-format=concise", ".")


def test_types():
    """Half a minute the first time; what did not change since is not checked again."""
    check("mypy")
