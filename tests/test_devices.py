"""The tests on a device, in a process of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from dev import LAUNCHER, ROOT


def test_on_a_device():
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not shutil.which("c++") or not headers.is_file():
        pytest.skip("needs a C++ compiler and Python's headers")
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("PYTEST")}
    ran = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(ROOT), "pytest", "tests/host", "--on-device", "-q"],
        cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
    print(ran.stdout[-20_000:])
    assert ran.returncode == 0
