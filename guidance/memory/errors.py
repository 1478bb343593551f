"""What the memory log raises for its user: what was given, what was expected, what to do."""


class MemoryLogError(ValueError):
    """Base of all errors of the memory log."""


class StorageError(MemoryLogError):
    """The database cannot be opened, read or written; what was committed before is untouched."""


class SampleError(MemoryLogError):
    """A sample that cannot be stored."""


class FeatureSpaceError(MemoryLogError):
    """Samples of one feature space offered to a memory of another."""


class ExchangeError(MemoryLogError):
    """A memory that cannot be written to a file, or a file that is no memory."""


class RevisionError(MemoryLogError):
    """A revision that does not exist, or is not a live sample where one is needed."""


class RevisionGoneError(RevisionError):
    """A revision that needs payloads which were dropped since."""
