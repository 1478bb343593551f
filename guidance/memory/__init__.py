"""The append-only log of generated samples that novelty guidance remembers."""

from .entry import Entry, Sample
from .errors import (
    FeatureSpaceError,
    MemoryLogError,
    RevisionError,
    RevisionGoneError,
    SampleError,
    StorageError,
)
from .log import AppendResult, Memory, MemoryLog, MemoryStats

__all__ = [
    "AppendResult", "Entry", "FeatureSpaceError", "Memory", "MemoryLog", "MemoryLogError",
    "MemoryStats", "RevisionError", "RevisionGoneError", "Sample", "SampleError", "StorageError",
]
