"""The set-up: which ComfyUI it takes, what it repeats, and what it says when it fails."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest

import dev


def checkout_in(folder: Path) -> Path:
    """As much of a checkout as the set-up needs."""
    folder.mkdir(parents=True)
    for name in ("dev.py", "pyproject.toml"):
        shutil.copy(dev.ROOT / name, folder)
    return folder


def host_in(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


def run_dev(checkout: Path, *arguments: str, cwd: Path | None = None,
            **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if "COMFYUI" not in name}
    return subprocess.run([sys.executable, checkout / "dev.py", *arguments], text=True,
                          capture_output=True, cwd=cwd, env={**inherited, **environment})


def test_takes_the_comfyui_around_it(tmp_path):
    host = host_in(tmp_path / "ComfyUI")
    checkout = checkout_in(host / "custom_nodes" / "uncommon")
    result = run_dev(checkout, "host")
    assert result.returncode == 0, result.stderr
    assert f"ComfyUI: {host}\n" in result.stdout


def test_takes_the_comfyui_it_is_told(tmp_path):
    host = host_in(tmp_path / "elsewhere")
    result = run_dev(checkout_in(tmp_path / "uncommon"), "host", COMFYUI_PATH=str(host),
                     COMFYUI_PYTHON=sys.executable)
    assert result.stdout == f"ComfyUI: {host}\nPython:  {sys.executable}\n"


def test_relative_paths_start_where_it_is_called(tmp_path):
    checkout, caller = checkout_in(tmp_path / "uncommon"), tmp_path / "caller"
    (checkout / "demo").mkdir()
    (checkout / "demo" / "recreate.py").write_text(
        "import sys\nfrom pathlib import Path\nprint(*map(Path.absolute, map(Path, sys.argv[1:])))")
    (caller / "demo").mkdir(parents=True)  # no module of ours
    result = run_dev(checkout, "recreate", "it.png", "made", cwd=caller,
                     COMFYUI_PATH=str(host_in(tmp_path / "ComfyUI")),
                     COMFYUI_PYTHON=os.path.relpath(sys.executable, caller))
    assert result.stdout == f"{caller / 'it.png'} {caller / 'made'}\n", result.stderr


def test_a_wrong_path_says_what_to_do(tmp_path):
    result = run_dev(checkout_in(tmp_path / "uncommon"), "host", COMFYUI_PATH=str(tmp_path))
    assert result.returncode == 1
    assert str(tmp_path) in result.stderr
    assert "main.py" in result.stderr


def test_missing_packages_are_named_not_installed(tmp_path):
    checkout = checkout_in(tmp_path / "uncommon")
    project = checkout / "pyproject.toml"
    project.write_text(project.read_text().replace('"tqdm>=4.67"', '"no-such-package>=3"'))
    host = host_in(tmp_path / "ComfyUI")
    result = run_dev(checkout, "test", COMFYUI_PATH=str(host), COMFYUI_PYTHON=sys.executable)
    assert result.returncode == 1
    assert f'"{sys.executable}" -m pip install "no-such-package>=3"\n' in result.stderr


def test_the_environment_beside_a_host_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    host = host_in(tmp_path / "ComfyUI")
    assert dev.host_python(host) == Path(sys.executable)
    portable = tmp_path / "python_embeded" / "python.exe"
    portable.parent.mkdir()
    portable.touch()
    assert dev.host_python(host) == portable


def test_an_interrupted_step_is_done_again(tmp_path, monkeypatch):
    actions = []

    def step(name, work=lambda: None):
        def act(*_):
            actions.append(name)
            work()
        return act

    def interrupted():
        raise KeyboardInterrupt

    def make_environment():
        (home / "venv" / "bin").mkdir(parents=True)
        (home / "venv" / "bin" / "python").touch()

    home = tmp_path / ".host"
    for name, path in {"HOME": home, "STAMP": home / "stamp", "PINNED": home / "ComfyUI",
                       "VENV": home / "venv"}.items():
        monkeypatch.setattr(dev, name, path)
    monkeypatch.setattr(dev, "create_environment", step("venv", make_environment))
    monkeypatch.setattr(dev, "download_host", step("host", lambda: host_in(home / "ComfyUI")))
    monkeypatch.setattr(dev, "install", step("install", interrupted))
    with pytest.raises(KeyboardInterrupt):
        dev.set_up_pinned()
    assert actions == ["venv", "host", "install"]

    actions.clear()
    monkeypatch.setattr(dev, "install", step("install"))
    dev.set_up_pinned()
    assert actions == ["install"] * 3

    actions.clear()
    dev.set_up_pinned()
    assert actions == []
    monkeypatch.setattr(dev, "TORCH", ("torch==9.9",))
    dev.set_up_pinned()
    assert actions == ["install"] * 3


def test_unpacking_stays_in_its_folder(tmp_path):
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("package/host/main.py", "package/other.py", "package/host/../../evil.py"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    dev.unpack(archive, PurePosixPath("package/host"), tmp_path / "target")
    assert [file.name for file in tmp_path.rglob("*.py")] == ["main.py"]


def test_a_failed_command_shows_the_end_of_its_output(tmp_path, monkeypatch):
    monkeypatch.setattr(dev, "LOG", tmp_path / "setup.log")
    with pytest.raises(dev.SetupError, match="(?s)Painting failed.*no paint left.*Buy some"):
        dev.run_logged([sys.executable, "-c", "raise SystemExit('no paint left')"], "Painting",
                       "Buy some.")


def test_pip_does_it_where_uv_cannot(monkeypatch):
    commands = []

    def without_uv(command):
        commands.append(command[1:])
        return "uv" not in command

    monkeypatch.setattr(dev, "environment_python", lambda folder: "python")
    monkeypatch.setattr(dev, "run_quietly", without_uv)
    dev.install(["paint>=2"])
    assert commands[-1] == ["-m", "pip", "install", "paint>=2"]


def test_unknown_commands_and_benchmarks_list_what_there_is(tmp_path):
    checkout = checkout_in(tmp_path / "uncommon")
    result = run_dev(checkout, "paint")
    assert result.returncode == 2
    assert "python dev.py demo" in result.stdout
    result = run_dev(checkout, "bench", "paint")
    assert result.returncode == 1
    assert "'paint'" in result.stderr


def test_a_benchmark_is_a_file_or_a_folder():
    assert dev.benchmark_module("novelty") == "benchmarks.novelty"
    assert dev.benchmark_module("peers") == "benchmarks.peers"
    for helper in ("chains", "results", "work"):
        with pytest.raises(dev.SetupError, match="peers"):
            dev.benchmark_module(helper)
