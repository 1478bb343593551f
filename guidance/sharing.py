"""Memories that come together: merged, exported to a file, imported from one; and what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .memory.exchange import AfterPage, Merged, export_memory, import_memory, merge
from .memory.net_cache import silent
from .novelty_memory import NoveltyMemory


def merge_memories(memory: NoveltyMemory, source: NoveltyMemory,
                   after_page: AfterPage | None = None) -> str:
    """Adds what `source` holds at the revision that counts to `memory`; tells what became of it.

    Raises MemoryLogError if `memory` is frozen, and FeatureSpaceError.
    """
    return _add(memory, f"{source.name}@{source.resolve()}", after_page,
                lambda after: merge(source.log, memory.log, source.revision, after))


def import_file(memory: NoveltyMemory, path: Path, after_page: AfterPage | None = None) -> str:
    """Adds what a file of `export_file` holds; tells what became of it.

    Raises MemoryLogError if `memory` is frozen, ExchangeError and FeatureSpaceError.
    """
    return _add(memory, path.name, after_page,
                lambda after: import_memory(memory.log, path, after))


def export_file(memory: NoveltyMemory, path: Path) -> str:
    """Writes what the memory holds at the revision that counts; tells what was written.

    Raises ExchangeError, RevisionError and RevisionGoneError.
    """
    revision = memory.resolve()
    count = export_memory(memory.log, path, revision)
    return (f"{memory.name}@{revision}: {count} samples, {path.stat().st_size / 2 ** 20:.2f} MB, "
            f"exported to\n{path}")


def _add(memory: NoveltyMemory, giver: str, after_page: AfterPage | None,
         add: Callable[[AfterPage], Merged]) -> str:
    memory.check_learns()

    def after(done: int, total: int) -> None:
        memory.enforce_cap()  # at each page, so that no more than a page is ever too much
        if after_page is not None:
            after_page(done, total)

    merged = add(after)
    memory.learn_net(after_page or silent)
    stats = memory.log.stats()
    return (f"{memory.name}: {merged.new} new from {giver}, {merged.duplicates} remembered already"
            f"\nMemory now: {stats.live_samples} samples, {stats.live_bytes / 2 ** 20:.2f} MB, "
            f"revision {stats.revision}")
