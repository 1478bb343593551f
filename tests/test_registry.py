"""What the registry gets: metadata by its rules, and a package that works without the checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from dev import ROOT, locate_host

tomllib = pytest.importorskip("tomllib", reason="reading TOML needs Python 3.11")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
OF_THE_HOST = {"torch", "torchvision", "torchaudio", "numpy", "safetensors", "sqlalchemy",
               "aiohttp", "pillow", "pyyaml", "tqdm", "scipy"}
OPTIONAL = ("kmedoids", "lpips", "matplotlib", "prdc", "sklearn")
COMFY_CLI = "comfy-cli==1.23.0"
CHECKOUT_ONLY = ("benchmarks", "demo", "dev", "tests")
LOAD = """
import asyncio, importlib.util, json, sys
host, folder, blocked, base = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(blocked))  # importing these fails
sys.path.insert(0, host)
from comfy.cli_args import args
args.cpu, args.base_directory = True, base
import nodes
spec = importlib.util.spec_from_file_location("packed", folder + "/__init__.py",
                                              submodule_search_locations=[folder])
pack = sys.modules["packed"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
found = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
print(*(node.GET_SCHEMA().node_id for node in found))
"""


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0].lower() for line in requirements}


def requirement_lines() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def git(*arguments: str, folder: Path = ROOT) -> list[str]:
    found = subprocess.run(["git", *arguments], cwd=folder, text=True, capture_output=True)
    if found.returncode:
        pytest.skip("which files are packed is known only in a git checkout")
    return found.stdout.splitlines()


def packed_files(folder: Path = ROOT) -> list[str]:
    """What `comfy node pack` puts in once all is committed: without what .comfyignore names."""
    which = ("--cached", "--others", "--exclude-standard")
    ignored = {name for kind in ("--cached", "--others") for name in git(
        "ls-files", kind, "--ignored", "--exclude-from=.comfyignore", folder=folder)}
    return [name for name in git("ls-files", *which, folder=folder)
            if name not in ignored and (folder / name).is_file()]


def test_requirements_are_the_dependencies():
    assert requirement_lines() == PROJECT["project"]["dependencies"]


def test_nothing_that_the_host_brings_is_required():
    assert not names(requirement_lines()) & OF_THE_HOST


def test_development_requirements_contain_the_dependencies():
    project = PROJECT["project"]
    assert set(project["dependencies"]) <= set(project["optional-dependencies"]["dev"])


def test_metadata_follows_the_rules_of_the_registry():
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9_-]{0,99}", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert (ROOT / project["license"]["file"]).stat().st_size > 500
    assert project["description"]
    assert comfy["DisplayName"] == "Uncommon"
    assert comfy["requires-comfyui"] == ">=0.30.0"
    assert "web" not in comfy, "the host would load each script of the page twice"


def test_the_changelog_knows_the_version():
    assert f"\n## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize(("name", "size"), [("icon", (400, 400)), ("banner", (1260, 540))])
def test_pictures_have_the_size_that_the_registry_asks_for(name, size):
    assert Image.open(ROOT / "docs" / "art" / f"{name}.png").size == size


def test_the_package_is_small_and_free_of_tests():
    files = packed_files()
    assert sum((ROOT / name).stat().st_size for name in files) < 20 * 2 ** 20
    assert not [name for name in files if name.split("/")[0] in ("tests", "benchmarks", ".ci")]
    assert {"__init__.py", "LICENSE", "requirements.txt", "pyproject.toml",
            "demo/models/digits.safetensors"} <= set(files)


def test_loads_from_the_package_without_any_optional_library(tmp_path):
    """All nodes, from a copy of what is packed, with the optional libraries blocked."""
    for name in packed_files():
        (tmp_path / "packed" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "packed" / name)
    arguments = [str(locate_host()), str(tmp_path / "packed"), [*OPTIONAL, *CHECKOUT_ONLY],
                 str(tmp_path)]
    result = subprocess.run([sys.executable, "-c", LOAD, json.dumps(arguments)], cwd=tmp_path,
                            text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    pages = {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}
    assert set(result.stdout.split()) == pages, result.stderr


@pytest.fixture(scope="module")
def comfy_command(tmp_path_factory) -> str:
    """comfy-cli: the one on the PATH, or the pinned one in a virtual environment of its own."""
    if command := shutil.which("comfy"):
        return command
    if importlib.util.find_spec("uv") is None:
        pytest.skip("comfy-cli is not installed, nor uv, which would install it")
    folder = tmp_path_factory.mktemp("comfy-cli")
    uv = [sys.executable, "-m", "uv", "--quiet"]
    subprocess.run([*uv, "venv", str(folder), "--python", sys.executable], check=True)
    subprocess.run([*uv, "pip", "install", "--python", str(folder), COMFY_CLI], check=True)
    return shutil.which("comfy", path=f"{folder / 'bin'}{os.pathsep}{folder / 'Scripts'}")


@pytest.fixture
def comfy(tmp_path, comfy_command):
    """Runs comfy-cli in a clone of this checkout, with settings of its own."""
    clone = tmp_path / "clone"
    git("clone", "--quiet", str(ROOT), str(clone))
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}

    def run(*arguments: str) -> str:
        subprocess.run([comfy_command, "--skip-prompt", "tracking", "disable"], env=environment,
                       check=True, capture_output=True)
        result = subprocess.run([comfy_command, "--skip-prompt", *arguments], cwd=clone, text=True,
                                capture_output=True, env=environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    return clone, run


def test_comfy_node_validate(comfy):
    _, run = comfy
    told = run("node", "validate")
    assert "error" not in told.lower() and "warning" not in told.lower(), told


def test_comfy_node_pack(comfy):
    clone, run = comfy
    files = packed_files(clone)
    run("node", "pack")
    with zipfile.ZipFile(clone / "node.zip") as package:
        found = {name for name in package.namelist() if not name.endswith("/")}
    assert found == set(files)
