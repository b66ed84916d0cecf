"""Shards on disk: what is done is kept, what was begun goes on, and the same work gives the same bytes.

A shard is named by its place and known by the digest of what it is made from. While questions are answered,
its journal gets a line per finished try; a line that was cut short does not count. When every entry is
settled its Parquet files are written, then the note that says so, and the journal goes. A start that finds
the note, with the same digest and whole files, does nothing; one that finds a journal asks only what is
missing. The journal of a last shard stays, so that rows that are added later cost nothing but themselves.
Tries that failed for our reasons are not in the journal: they are made again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from models.records import RECORD_SCHEMA, Question, record_row, write_rows
from models.rundir import write_atomically
from models.vlir.askers import Attempt, Loaded
from models.vlir.entries import FaultyRow, Shard
from models.vlir.filters import OUR_FAILURES
from models.vlir.layout import REJECTED
from models.vlir.sources.base import Fault


@dataclass(slots=True)
class Counts:
    """What came of some questions. ``reasons`` counts rejected tries, ``faults`` unusable rows, ``changes``
    pictures that were made upright RGB, by what was done, ``kept`` questions that an earlier set settled.
    """

    num_questions: int = 0
    num_tries: int = 0
    num_records: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    judge_counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Counts") -> None:
        """Count what another counted."""
        self.num_questions += other.num_questions
        self.num_tries += other.num_tries
        self.num_records += other.num_records
        self.prompt_tokens += other.prompt_tokens
        self.sampled_tokens += other.sampled_tokens
        for mine, theirs in (
            (self.reasons, other.reasons),
            (self.judge_counts, other.judge_counts),
            (self.faults, other.faults),
            (self.changes, other.changes),
            (self.kept, other.kept),
        ):
            mine.update(theirs)

    @property
    def acceptance(self) -> float:
        """Share of questions that gave a record, 0 to 1."""
        return self.num_records / self.num_questions if self.num_questions else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        counts = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in counts.items()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Counts":
        """What :meth:`to_dict` made."""
        values: dict[str, Any] = {
            name: Counter(value) if isinstance(value, dict) else value for name, value in found.items()
        }
        return cls(**values)


@dataclass(frozen=True, slots=True)
class DoneShard:
    """A shard whose files are written: their rows and digests by name, and its counts."""

    files: dict[str, dict[str, Any]]
    counts: Counts


class ShardFolder:
    """The shards of one build: files for others in ``out``, notes and journals in ``work``."""

    def __init__(self, out: Path, work: Path, *, settings: str, folders: Mapping[str, str]) -> None:
        """``settings`` is a digest of all that shapes a record beside its row; ``folders`` maps a split to
        the folder of its accepted records.
        """
        self.out = out
        self.settings = settings
        self._work = work
        self._folders = folders
        work.mkdir(parents=True, exist_ok=True)

    def find_done(self, shard: Shard) -> DoneShard | None:
        """The shard as an earlier start left it; None when it is not there, not whole, or of other rows."""
        note = self._note(shard)
        if not note.is_file():
            return None
        found = json.loads(note.read_text(encoding="utf-8"))
        if found["digest"] != shard.digest(self.settings) or found["num_failed"]:
            return None
        if any(digest_of_file(self.out / name) != entry["sha256"] for name, entry in found["files"].items()):
            return None
        return DoneShard(found["files"], Counts.from_dict(found["counts"]))

    def open(self, shard: Shard) -> "OpenShard":
        """The shard to work on, with what its journal holds."""
        return OpenShard(shard, self._work / f"{shard.name}.jsonl", self.settings)

    def finish(self, opened: "OpenShard") -> DoneShard:
        """Write the files of a shard whose entries are all settled."""
        shard = opened.shard
        accepted = f"{self._folders[shard.split]}/shard-{shard.index:05d}.parquet"
        done = DoneShard(
            {
                accepted: self._write(accepted, opened.accepted()),
                f"{REJECTED}/{shard.name}.parquet": self._write(
                    f"{REJECTED}/{shard.name}.parquet", opened.rejected()
                ),
            },
            opened.counts(),
        )
        note = {
            "digest": shard.digest(self.settings),
            "files": done.files,
            "counts": done.counts.to_dict(),
            "faults": [asdict(fault) for fault in opened.faults()],
            # Another start makes the tries again that failed for our reasons.
            "num_failed": sum(done.counts.reasons[reason] for reason in OUR_FAILURES),
        }
        write_atomically(self._note(shard), json.dumps(note, sort_keys=True))
        opened.close(keep_journal=bool(note["num_failed"]) or not shard.is_full)
        return done

    def faults_of(self, shard: Shard) -> list[FaultyRow]:
        """The faulty rows of a finished shard, in order."""
        found = json.loads(self._note(shard).read_text(encoding="utf-8"))["faults"]
        return [FaultyRow(**fault) for fault in found]

    def _write(self, name: str, rows: Iterable[dict[str, object]]) -> dict[str, Any]:
        num_rows = write_rows(self.out / name, RECORD_SCHEMA, rows)
        return {"num_rows": num_rows, "sha256": digest_of_file(self.out / name)}

    def _note(self, shard: Shard) -> Path:
        return self._work / f"{shard.name}.done.json"


class OpenShard:
    """A shard in work: its entries are settled one by one, in any order."""

    def __init__(self, shard: Shard, journal: Path, settings: str) -> None:
        self.shard = shard
        self._settings = settings
        self._path = journal
        self._journal: TextIO | None = None
        self._kept = _read_journal(journal, settings)
        self._questions: dict[int, Question] = {}
        self._tries: dict[int, dict[int, Attempt]] = {}
        self._faults: dict[int, Fault] = {}
        self._changes: Counter[str] = Counter()
        self._num_kept: Counter[str] = Counter()
        self._settled: set[int] = set()

    @property
    def is_settled(self) -> bool:
        """True when nothing is left to ask."""
        return len(self._settled) == len(self.shard.entries)

    def next_attempt(self, position: int, *, num_samples: int) -> int | None:
        """The number of an entry's next try by what the journal has; None when it needs no more."""
        lines = self._kept.get(self.shard.entries[position].key, ())
        made = {line["attempt"] for line in lines}
        # Tries before a missing one are whole; one of ours that failed is asked again under its number.
        attempt = next(number for number in range(len(made) + 1) if number not in made)
        is_settled = attempt >= num_samples or any(not line["record"]["reason"] for line in lines)
        return None if is_settled else attempt

    def take(self, position: int, found: Loaded | Fault, *, num_samples: int) -> bool:
        """Take a loaded entry in, with the tries that the journal has; True when it needs no more."""
        if isinstance(found, Fault):
            self._faults[position] = found
            self._settled.add(position)
            return True
        attempt = self.next_attempt(position, num_samples=num_samples)
        self._changes.update(found.changes)
        self._questions[position] = found.question
        lines = self._kept.pop(self.shard.entries[position].key, ())
        self._tries[position] = {line["attempt"]: _attempt(line) for line in lines}
        if attempt is None:
            self._settled.add(position)
        return attempt is None

    def keep(self, position: int, found: Loaded, tries: Sequence[Attempt]) -> None:
        """Settle a loaded entry by what an earlier set has of it."""
        self._changes.update(found.changes)
        self._questions[position] = found.question
        self._tries[position] = {tried.number: tried for tried in tries}
        self._num_kept.update(["records" if any(not tried.reason for tried in tries) else "rejected"])
        self._settled.add(position)

    def add(self, position: int, tried: Attempt, *, num_samples: int) -> bool:
        """Note a finished try; True when its entry needs no more."""
        self._tries[position][tried.number] = tried
        if tried.reason not in OUR_FAILURES:
            self._append(
                {
                    "key": self.shard.entries[position].key,
                    "attempt": tried.number,
                    "prompt_tokens": tried.prompt_tokens,
                    "sampled_tokens": tried.sampled_tokens,
                    "judges": tried.judge_counts,
                    "record": tried.rationale,
                }
            )
        is_settled = not tried.reason or tried.number + 1 >= num_samples
        if is_settled:
            self._settled.add(position)
        return is_settled

    def accepted(self) -> Iterator[dict[str, object]]:
        """Rows (``RECORD_SCHEMA``): at most one per entry, in the order of the entries."""
        for position, tried in self._in_order():
            if not tried.reason:
                yield record_row(self._questions[position], tried.rationale)

    def rejected(self) -> Iterator[dict[str, object]]:
        """A row of every rejected try: all first ones, then all second ones, and so on."""
        rejected = [found for found in self._in_order() if found[1].reason]
        for position, tried in sorted(rejected, key=lambda found: (found[1].number, found[0])):
            yield record_row(self._questions[position], tried.rationale)

    def counts(self) -> Counts:
        """What came of the shard."""
        counts = Counts(num_questions=len(self._tries))
        for _, tried in self._in_order():
            counts.num_tries += 1
            counts.num_records += not tried.reason
            counts.prompt_tokens += tried.prompt_tokens
            counts.sampled_tokens += tried.sampled_tokens
            counts.judge_counts += Counter(tried.judge_counts)  # leaves out what is 0
            counts.reasons.update([tried.reason] if tried.reason else [])
        counts.faults.update(fault.kind.value for fault in self._faults.values())
        counts.changes.update(self._changes)
        counts.kept.update(self._num_kept)
        return counts

    def faults(self) -> tuple[FaultyRow, ...]:
        """The rows that could not be used, in order."""
        return tuple(
            FaultyRow.of(self.shard.entries[position].source, fault)
            for position, fault in sorted(self._faults.items())
        )

    def close(self, *, keep_journal: bool) -> None:
        """The files are written; the journal is needed no longer, or for another start."""
        if self._journal is not None:
            self._journal.close()
        if not keep_journal:
            self._path.unlink(missing_ok=True)

    def _in_order(self) -> list[tuple[int, Attempt]]:
        return [
            (position, tries[number])
            for position, tries in sorted(self._tries.items())
            for number in sorted(tries)
        ]

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._journal is None:
            self._journal = _open_journal(self._path, self._settings)
        # One write per line, so that a kill leaves whole lines and at most one broken one.
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()


def digest_of_file(path: Path) -> str:
    """sha256 of a file; empty when there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _attempt(line: Mapping[str, Any]) -> Attempt:
    return Attempt(
        number=line["attempt"],
        rationale=line["record"],
        judge_counts=line["judges"],
        prompt_tokens=line["prompt_tokens"],
        sampled_tokens=line["sampled_tokens"],
    )


def _open_journal(path: Path, settings: str) -> TextIO:
    """The journal to append to, without a line that was cut short; a new one for other settings."""
    data = path.read_bytes() if path.is_file() else b""
    whole = data[: data.rfind(b"\n") + 1]
    header = (json.dumps({"settings": settings}) + "\n").encode()
    if not whole.startswith(header):
        whole = header
    if whole != data:
        write_atomically(path, whole.decode("utf-8"))
    return path.open("a", encoding="utf-8")


def _read_journal(path: Path, settings: str) -> dict[str, list[dict[str, Any]]]:
    """Lines by the key of their entry; none when the journal has other settings."""
    if not path.is_file():
        return {}
    whole = path.read_bytes()
    lines = whole[: whole.rfind(b"\n") + 1].splitlines()
    if not lines or json.loads(lines[0]) != {"settings": settings}:
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for text in lines[1:]:
        line = json.loads(text)
        found.setdefault(line["key"], []).append(line)
    return found
