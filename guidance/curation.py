"""Adding to, taking from and looking into a novelty memory by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .memory import Entry, MemoryLog, MemoryLogError
from .memory.bank import NEAREST
from .memory.undo import undo_forgetting
from .novelty_memory import NoveltyMemory, novelty_percentile

FORGET = ("last", "one", "all", "chosen", "undo")
MOST_CHOSEN = 1_000_000  # samples that a text may name


class Remembering:
    """Adds samples that were not recorded by guidance, and counts what became of them."""

    def __init__(self, memory: NoveltyMemory, space_id: str, prompt: Tensor | None):
        memory.check_learns()
        memory.check_space(space_id)
        self.memory = memory
        self.space_id = space_id
        self.prompt = prompt
        self.new = self.duplicates = self.broken = 0

    def unknown(self, hashes: Sequence[str]) -> list[str]:
        """Those of the content hashes that are not remembered; the others count as duplicates."""
        known = self.memory.log.known(hashes)
        unknown = [content_hash for content_hash in hashes if content_hash not in known]
        self.duplicates += len(hashes) - len(unknown)
        return unknown

    def add(self, hashes: Sequence[str], embedding: Tensor, previews: Sequence[bytes | None],
            source: str) -> None:
        """Appends a batch with embeddings `[batch, dim]`."""
        recorded = self.memory.record(
            self.memory.bank.at(), self.space_id, hashes=hashes, embedding=embedding,
            prompt=self.prompt, seed=0, settings={"source": source},
            previews=previews)
        self.new += recorded.last_revision - recorded.first_revision + 1
        self.duplicates += recorded.duplicates
        self.broken += recorded.broken

    def report(self, failures: Sequence[str] = ()) -> str:
        """failures: a line for each thing that could not be read."""
        lines = [f"{self.memory.name}: {self.new} new, {self.duplicates} remembered already"
                 + f", left out {self.broken} whose values are no numbers" * bool(self.broken)]
        if failures:
            lines += [f"{len(failures)} skipped:", *failures[:10]]
            lines += ["..."] * (len(failures) > 10)
        return "\n".join([*lines, _now(self.memory)])


def chosen_numbers(text: str) -> list[int]:
    """The numbers in "3, 5, 8-12". Raises MemoryLogError where it says anything else."""
    numbers: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        try:
            span = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            span = range(0)
        if not span or span[0] < 1 or len(numbers) + len(span) > MOST_CHOSEN:
            raise MemoryLogError(
                f'"{part}" does not name samples. Write numbers and spans of numbers from 1 on, '
                f"at most {MOST_CHOSEN} in all, with commas between them: 3, 5, 8-12.")
        numbers += span
    if not numbers:
        raise MemoryLogError("No samples are chosen. Write their numbers into `numbers`, with "
                             "commas between them: 3, 5, 8-12.")
    return numbers


def forget(memory: NoveltyMemory, what: str, count: int, number: int, numbers: str = "") -> str:
    """Forgets the last `count` samples, the one of revision `number`, all, or those in the text
    `numbers`; or takes the last forgetting back. Tells what was done.

    Raises MemoryLogError if the memory is frozen, and RevisionError if one is no live sample.
    """
    memory.check_learns()
    if what == "undo":
        return undo(memory)
    before = memory.log.stats().live_samples
    if what == "one":
        memory.log.forget([number], "user: one")
    elif what == "last":
        memory.log.forget_last(count)
    elif what == "all":
        memory.log.forget_all()
    elif what == "chosen":
        memory.log.forget(chosen_numbers(numbers), "user: chosen")
    else:
        raise MemoryLogError(f'Cannot forget "{what}"; expected one of {", ".join(FORGET)}.')
    gone = before - memory.log.stats().live_samples
    told = f"forgot {gone} of {before} samples" if before else "nothing to forget"
    return f"{memory.name}: {told}\n{_now(memory)}"


def undo(memory: NoveltyMemory) -> str:
    """Takes the last forgetting back that is not taken back yet; tells what was done."""
    restored = undo_forgetting(MemoryLog(memory.url).database, memory.name)
    if restored.numbers:
        first, last = restored.numbers[0], restored.numbers[-1]
        told = (f"{len(restored.numbers)} samples came back, as number{'s' * (last > first)} "
                f"{first}" + f" to {last}" * (last > first))
    else:
        told = "nothing to take back"
    if restored.lost:
        told += f"; {restored.lost} were dropped for good when the memory was made smaller"
    return f"{memory.name}: {told}\n{_now(memory)}"


@dataclass(frozen=True)
class Description:
    """What a memory holds at `revision`, in words, and its newest samples, newest first."""

    text: str
    revision: int
    newest: list[Entry]


def describe(memory: NoveltyMemory, count: int) -> Description:
    """The memory at the revision that counts; `count`: how many of the newest samples to list.

    Raises RevisionError and RevisionGoneError.
    """
    revision = memory.resolve()
    remembered = memory.bank.at(revision)
    stats = memory.log.stats()
    numbers = remembered.revisions[-count:].tolist() if count else []
    first = numbers[0] if numbers else revision + 1
    newest = [entry for entry in memory.log.entries(after=first - 1, upto=revision)
              if entry.revision in numbers][::-1]
    lines = [
        f"{memory.name}@{revision}, " + ("learning" if memory.learn else
                                         f"frozen; the latest revision is {stats.revision}"),
        f"{len(remembered)} samples; {stats.forgotten_samples} forgotten so far",
        f"{stats.live_bytes / 2 ** 20:.2f} MB of {memory.max_megabytes:g} MB",
        f"Feature space: {stats.feature_space or 'that of the first model'}"]
    if stats.first_time is not None:
        lines.append(f"From {stats.first_time:%Y-%m-%d %H:%M} to "
                     f"{stats.last_time:%Y-%m-%d %H:%M} UTC")
    lines += [_line(entry, remembered.nearest) for entry in newest]
    return Description("\n".join(lines), revision, newest)


def _line(entry: Entry, history: Tensor) -> str:
    nearest = entry.settings.get(NEAREST)
    text = f"Number {entry.revision}: seed {entry.seed}, "
    if nearest is None:
        text += "nothing to compare with"
    else:
        novelty = novelty_percentile(history.new_tensor([nearest]), history)
        text += f"novelty {novelty.item():.0%} (nearest {nearest:.3f})"
    return f"{text}, {entry.time:%Y-%m-%d %H:%M} UTC"


def _now(memory: NoveltyMemory) -> str:
    stats = memory.log.stats()
    return (f"Memory now: {stats.live_samples} samples, {stats.live_bytes / 2 ** 20:.2f} MB, "
            f"revision {stats.revision}")
