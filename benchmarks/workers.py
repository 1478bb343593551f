"""Processes that draw side by side, each with a ComfyUI of its own."""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from benchmarks.chains import Chain, start_host
from demo.host import InProcessHost

Place = tuple[Path, int]
"""Where the hosts of one run of a benchmark have their folders, and how many threads each has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=os.cpu_count(),
                        help="processes that draw at once (default: one per core)")
    parser.add_argument("--report", action="store_true", help="draw nothing, only report")


@contextmanager
def workers(jobs: int) -> Iterator[tuple[ProcessPoolExecutor, Place]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, processes(jobs) as pool:
        yield pool, (Path(folder), max(1, (os.cpu_count() or 1) // jobs))


def processes(jobs: int) -> ProcessPoolExecutor:
    """New ones: a fork would share what torch and ComfyUI hold."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


@functools.cache
def worker_host(place: Place, *, cpu: bool = True) -> InProcessHost:
    """The one host of a worker process."""
    folder, threads = place
    return start_host(folder / str(os.getpid()), threads, cpu=cpu)


def draw_all(pool: ProcessPoolExecutor, draw: Callable[[Chain], int], title: str,
             chains: Sequence[Chain]) -> None:
    """draw: returns how many images it drew."""
    with tqdm(total=sum(chain.count for chain in chains), desc=title, unit="image") as bar:
        for done in pool.map(draw, chains):
            bar.update(done)
