"""The figures of what is drawn so far."""

from __future__ import annotations

from benchmarks.peers.rows import Measured


def write_report(measured: Measured) -> None:
    """To come."""
