"""The pack as a whole: it loads, its nodes explain themselves, its layers stay apart."""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from dev import ROOT

GUIDANCE = sorted((ROOT / "guidance").rglob("*.py"))
NODES = sorted((ROOT / "nodes").glob("[!_]*.py"))
HELP = ROOT / "web" / "docs"
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution",
                "folder_paths", "latent_preview", "node_helpers", "nodes", "server"}
NOT_AT_LOAD = {"demo", "dev", "lpips", "kmedoids", "matplotlib", "prdc", "pytest", "sklearn"}


def path_id(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def absolute_imports(nodes: Iterable[ast.AST]) -> set[str]:
    """The top-level names of the modules that are imported absolutely."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def fresh_python(code: str, arguments: dict) -> subprocess.CompletedProcess:
    """Runs code in a Python that has seen neither the host nor this test session."""
    code = f"import importlib, json, sys\narguments = json.loads(sys.argv[1])\n{code}"
    return subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], cwd=ROOT.parent,
                          text=True, capture_output=True)


def test_entry_point_names_every_module_of_nodes(host):
    assert {file.stem for file in NODES} <= set(host.pack().MODULES)


@pytest.mark.parametrize("file", NODES, ids=path_id)
def test_every_node_is_registered(host, file):
    for node in host.pack(f"nodes.{file.stem}").NODES:
        assert host.pack_nodes[node.GET_SCHEMA().node_id] is node


def test_a_module_that_fails_does_not_lose_the_others(host, caplog):
    modules = [file.stem for file in NODES]
    with caplog.at_level(logging.ERROR, "uncommon"):
        found = host.pack().load_nodes(["not_there", *modules])
    assert found == [node for module in modules for node in host.pack(f"nodes.{module}").NODES]
    assert "nodes/not_there.py" in caplog.text
    assert "ModuleNotFoundError" in caplog.text


def test_nodes_explain_themselves(host):
    lacking = []
    for node_id, node in host.pack_nodes.items():
        schema = node.GET_SCHEMA()
        if not node_id.startswith("Uncommon"):
            lacking.append(f"{node_id}: the prefix Uncommon")
        lacking += [f"{node_id}: {name}" for name in ("display_name", "description", "category")
                    if not getattr(schema, name)]
        lacking += [f"{node_id}: tooltip of {socket.id or socket.display_name}"
                    for socket in (*schema.inputs, *schema.outputs) if not socket.tooltip]
    assert not lacking


def test_what_users_search_for_finds_a_node(host):
    found = {}
    for node_id, node in host.pack_nodes.items():
        aliases = node.GET_SCHEMA().search_aliases
        assert len(aliases) >= 2, node_id
        found |= dict.fromkeys(aliases, node_id)
    assert {"diversity", "variation", "same face", "seed variance", "CADS", "novelty"} <= set(found)
    assert {"rare", "deduplicate", "precision recall"} <= set(found)


def test_every_node_has_a_help_page(host):
    """When to use it, a picture, all inputs, and what to do when it fails or does nothing."""
    lacking = []
    for node_id, node in host.pack_nodes.items():
        schema, page = node.GET_SCHEMA(), (HELP / f"{node_id}.md").read_text("utf-8")
        sections = ["\n## Use it\n", "\n## Inputs\n", "\n## Troubleshooting\n", "\n| input | "]
        if {"MODEL"} == {one.get_io_type() for one in schema.outputs} and any(
                one.get_io_type() == "MODEL" for one in schema.inputs):
            sections.append("\n## Nothing changes?\n")
        if not page.startswith(f"# {schema.display_name}\n"):
            lacking.append(f"{node_id}: its name as the title")
        lacking += [f"{node_id}: {section.strip()}" for section in sections if section not in page]
        rows = "".join(line.split("|")[1].replace("_", " ") + "," for line in page.splitlines()
                       if line.startswith("| "))
        lacking += [f"{node_id}: input {one.id}" for one in schema.inputs
                    if not re.search(rf"\b{one.id.replace('_', ' ')}\b", rows)]
        pictures = re.findall(r"!\[.+?\]\((.+?)\)", page)
        if not pictures:
            lacking.append(f"{node_id}: a picture")
        lacking += [f"{node_id}: {name}" for name in pictures if not (HELP / name).is_file()]
    assert not lacking, "\n".join(lacking)


@pytest.mark.parametrize("file", GUIDANCE, ids=path_id)
def test_guidance_does_not_import_the_host(file):
    assert not absolute_imports(ast.walk(ast.parse(file.read_text("utf-8")))) & HOST_MODULES


@pytest.mark.parametrize("file", [*GUIDANCE, *NODES], ids=path_id)
def test_nothing_optional_is_imported_at_load(file):
    """It is imported where it is used: the host starts faster, and without it too."""
    assert not absolute_imports(ast.parse(file.read_text("utf-8")).body) & NOT_AT_LOAD


def test_guidance_imports_without_the_host():
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
               for file in GUIDANCE]
    result = fresh_python("sys.modules.update(dict.fromkeys(arguments['blocked']))\n"  # None: fails
                          "sys.path.append(arguments['root'])\n"
                          "for module in arguments['modules']: importlib.import_module(module)",
                          {"root": str(ROOT), "modules": modules, "blocked": sorted(HOST_MODULES)})
    assert result.returncode == 0, result.stderr


def test_entry_point_imports_without_the_host():
    result = fresh_python("from importlib.util import module_from_spec, spec_from_file_location\n"
                          "spec = spec_from_file_location('uncommon', arguments['file'])\n"
                          "spec.loader.exec_module(module_from_spec(spec))\n"
                          "assert not {'torch', 'comfy', 'comfy_api'} & set(sys.modules)",
                          {"file": str(ROOT / "__init__.py")})
    assert result.returncode == 0, result.stderr
