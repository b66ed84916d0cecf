"""What the factory works on: entries of shards, loaded only when their turn comes."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from models.config import Look, VLIRConfig
from models.records import Question
from models.rollout import Asked
from models.vlir.leakage import HeldOut
from models.vlir.sources.base import Fault

# The pictures of a shard are in memory together, as files: a shard of large ones is shorter.
MAX_SHARD_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Ready:
    """A question that can be asked: pictures decoded, the prompt written.

    ``operations`` are the box commands that the prompt dictates (Listing 2); empty when the teacher chooses.
    ``changes`` names what was done to the picture's file to make it upright RGB.
    """

    question: Question
    asked: Asked
    prompt_id: str
    operations: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FaultyRow:
    """A source's row that could not be used, as ``faults.jsonl`` tells it."""

    source: str
    row: int
    id: str
    kind: str
    detail: str

    @classmethod
    def of(cls, source: str, fault: Fault) -> "FaultyRow":
        """A fault of a source."""
        return cls(source, fault.row, fault.id, fault.kind.value, fault.detail)


@dataclass(frozen=True, slots=True)
class Loading:
    """What is needed to make a row ready, beside the row. ``look`` holds the teacher's limits."""

    look: Look
    config: VLIRConfig
    held_out: HeldOut


class Material(Protocol):
    """What a question is made from; it can be sent to another process."""

    @property
    def identity(self) -> tuple[str, str]:
        """Its source, and its id there."""

    def load(self, loading: Loading) -> Ready | Fault:
        """Decode the picture and write the prompt. Raises RecordError for a leak."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row's place in a shard. ``key`` is a digest of all that makes the row, ``size`` its bytes in
    memory.
    """

    key: str
    source: str
    size: int
    material: Material | Fault


@dataclass(frozen=True, slots=True)
class Shard:
    """Some entries in a row: the unit of files and of resuming. One that is not full may still grow."""

    split: str
    index: int
    entries: tuple[Entry, ...]
    is_full: bool = False

    @property
    def name(self) -> str:
        """For its files."""
        return f"{self.split}-{self.index:05d}"

    def digest(self, settings: str) -> str:
        """What the shard is made from, under these settings (a digest, too)."""
        return digest_of([settings, self.split, self.index, [entry.key for entry in self.entries]])


def digest_of(value: object) -> str:
    """sha256 of something that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def shards_of(entries: Iterable[tuple[str, Entry]], *, shard_size: int) -> Iterator[Shard]:
    """The shards of (split, entry) pairs: each split is cut on its own, as soon as a shard is full."""
    open_entries: dict[str, list[Entry]] = {}
    num_shards: dict[str, int] = {}

    def close(split: str, *, is_full: bool) -> Shard:
        index = num_shards.get(split, 0)
        num_shards[split] = index + 1
        return Shard(split, index, tuple(open_entries.pop(split)), is_full)

    for split, entry in entries:
        waiting = open_entries.setdefault(split, [])
        waiting.append(entry)
        if len(waiting) == shard_size or sum(each.size for each in waiting) >= MAX_SHARD_BYTES:
            yield close(split, is_full=True)
    for split in sorted(open_entries):
        yield close(split, is_full=False)
