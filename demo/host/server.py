"""ComfyUI in a process of its own, driven over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.host.outcome import HostError, Prompt, PromptRejected, raise_failure
from dev import ROOT, locate_host


class Server:
    """A ComfyUI server on a free loopback port, with this pack and no other.

    Everything it writes, `server.log` included, lies in `directory`; `user` and `output` can be
    put elsewhere. The pack appears under the checkout's folder name. A `report` function gets a
    line every few seconds while the server starts. Use it with `with`, or start() and stop().
    """

    def __init__(self, directory: Path, *, user: Path | None = None, output: Path | None = None,
                 arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None,
                 cpu: bool = True, report: Callable[[str], None] | None = None):
        self.directory = Path(directory).resolve()
        self.user = Path(user or self.directory / "user").resolve()
        self.output = Path(output or self.directory / "output").resolve()
        self.log = self.directory / "server.log"
        self.url = ""
        self._arguments = [*(["--cpu"] if cpu else []), *arguments]
        self._environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1",
                             **(environment or {})}
        self._report = report or (lambda line: None)
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 300.0) -> Server:
        """Starts the process and waits until it answers; also after a stop()."""
        host = locate_host()
        for folder in (self.directory / "custom_nodes", self.user, self.output):
            folder.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, host / "main.py", "--listen", "127.0.0.1", "--port", str(port),
                   "--base-directory", self.directory, "--user-directory", self.user,
                   "--output-directory", self.output, "--database-url", "sqlite:///:memory:",
                   "--extra-model-paths-config", self._pack_config(), "--disable-api-nodes",
                   "--disable-all-custom-nodes", "--whitelist-custom-nodes", ROOT.name,
                   *self._arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=host, env=self._environment, stdout=log,
                                             stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            self._wait_until_ready(timeout)
        except BaseException:
            self.kill()
            raise
        return self

    def _pack_config(self) -> Path:
        """Makes the folder that holds this checkout a place for custom nodes.

        Needs no symbolic link, which Windows does not grant to everybody. (JSON is YAML.)
        """
        file = self.directory / "pack.yaml"
        file.write_text(json.dumps({"pack": {"custom_nodes": str(ROOT.parent)}}), "utf-8")
        return file

    def _wait_until_ready(self, timeout: float) -> None:
        started = reported = time.monotonic()
        while True:
            try:
                self.get("/queue")
                return
            except HostError:
                self._check_alive()
            now = time.monotonic()
            if now - started > timeout:
                raise HostError(f"ComfyUI did not answer within {timeout:.0f} s. "
                                f"{self._log_tail()}")
            if now - reported > 5:
                self._report(f"starting ComfyUI, {now - started:.0f} s")
                reported = now
            time.sleep(0.25)

    def stop(self) -> None:
        """Ends the process; nothing happens when it has ended already."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends the process without a chance to tidy up, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    # Prompts

    def queue(self, prompt: Prompt, extra_data: Mapping | None = None) -> str:
        """Queues a prompt; returns its id. Raises PromptRejected."""
        payload = {"prompt": prompt, "extra_data": dict(extra_data or {})}
        answer = self.post("/prompt", payload, accept=(200, 400))
        if answer.get("node_errors") or "prompt_id" not in answer:
            raise PromptRejected(answer.get("error"), answer.get("node_errors") or {})
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600.0) -> dict:
        """Waits for the end of a prompt; returns its history entry (outputs, status, ...).

        Raises RunFailed or Interrupted.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if entry := self.history(prompt_id):
                raise_failure(entry["status"]["messages"])
                return entry
            time.sleep(0.05)
        raise HostError(f"The prompt was not done within {timeout:.0f} s. {self._log_tail()}")

    def run(self, prompt: Prompt, extra_data: Mapping | None = None,
            timeout: float = 600.0) -> dict:
        """Queues a prompt and waits for its end."""
        return self.wait(self.queue(prompt, extra_data), timeout)

    def history(self, prompt_id: str) -> dict | None:
        """The history entry of a prompt, None while it waits or runs."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def interrupt(self) -> None:
        """Stops the prompt that runs now."""
        self.post("/interrupt", {})

    def image(self, file: Mapping[str, str]) -> bytes:
        """The content of an image that an output lists: {"filename", "subfolder", "type"}."""
        return self._request(f"/view?{urllib.parse.urlencode(file)}")

    def images(self, entry: Mapping, node_id: str) -> list[bytes]:
        """The images that one node of a finished prompt saved or previewed."""
        return [self.image(file) for file in entry["outputs"][node_id]["images"]]

    def object_info(self) -> dict[str, dict]:
        """All nodes by id, as the page sees them."""
        return self.get("/object_info")

    # HTTP

    def get(self, path: str) -> Any:
        return json.loads(self._request(path))

    def post(self, path: str, payload: Any, accept: Sequence[int] = (200,)) -> Any:
        """Posts JSON; returns the JSON of the answer, None when it is empty."""
        answer = self._request(path, json.dumps(payload).encode(), accept)
        return json.loads(answer) if answer else None

    def _request(self, path: str, body: bytes | None = None,
                 accept: Sequence[int] = (200,)) -> bytes:
        request = urllib.request.Request(self.url + path, body,
                                         {"Content-Type": "application/json"})
        try:
            with _DIRECT.open(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            content = error.read()
            if error.code in accept:
                return content
            raise HostError(f"{path}: HTTP {error.code}: {content.decode(errors='replace')}. "
                            f"{self._log_tail()}") from error
        except OSError as error:
            self._check_alive()
            raise HostError(f"{path}: {error}. {self._log_tail()}") from error

    def _check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise HostError(f"The ComfyUI server has ended. {self._log_tail()}")

    def _log_tail(self, lines: int = 25) -> str:
        text = self.log.read_text("utf-8", errors="replace") if self.log.is_file() else ""
        return "\n".join([f"The end of {self.log}:", *text.splitlines()[-lines:]])


# The loopback server is asked directly, whatever proxy the environment names.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
