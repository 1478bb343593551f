"""The words of the memory panel: every language has all of them, and all are used."""

from __future__ import annotations

import json
import re

import pytest

from dev import ROOT

LANGUAGES = sorted((ROOT / "locales").glob("*/main.json"))
SOURCES = "\n".join(file.read_text("utf-8") for file in (ROOT / "web").glob("*.js"))


def words(file) -> dict[str, str]:
    return json.loads(file.read_text("utf-8"))["uncommon"]


ENGLISH = words(ROOT / "locales" / "en" / "main.json")


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda file: file.parent.name)
def test_every_language_has_the_same_words_and_places(file):
    own = words(file)
    assert own.keys() == ENGLISH.keys()
    for key, text in own.items():
        assert text.strip() and set(re.findall(r"\{\w+\}", text)) == set(
            re.findall(r"\{\w+\}", ENGLISH[key])), key


def test_every_word_that_is_asked_for_is_there():
    asked = set(re.findall(r'\bt\(\s*"(\w+)"', SOURCES))
    assert len(asked) > 20
    assert asked <= ENGLISH.keys()


def test_every_word_is_used():
    named = set(re.findall(r'"(?:uncommon\.)?(\w+)"', SOURCES))
    named |= {f"{name}Tip" for name in named} | {f"{name}Lost" for name in named}
    assert ENGLISH.keys() <= named
