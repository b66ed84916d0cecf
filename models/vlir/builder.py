"""The work of a build between its origin and its manifest: shards in, answered shards out."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import EngineError
from models.rollout import derive_seed
from models.run_config import VLIRRun
from models.vlir.askers import Asker, Attempt, Loaded, Order, loaded, open_asker
from models.vlir.earlier import EarlierSet
from models.vlir.entries import FaultyRow, Loading, Material, Shard, digest_of, shards_of
from models.vlir.filters import OUR_FAILURES
from models.vlir.layout import FAULTS, RECORDS, VALIDATION
from models.vlir.origins import DrawnWorld, Origin
from models.vlir.shards import Counts, DoneShard, OpenShard, ShardFolder, digest_of_file
from models.vlir.sources.base import Fault
from models.vlir.spending import Spending
from models.vlir.teachers import teacher_name

Progress = Callable[[int, int], None]

FOLDERS = {"train": RECORDS, "validation": VALIDATION}
_JUDGES_PLACE = {"endpoint", "num_connections", "timeout_seconds", "max_tries", "backoff_seconds", "prices"}
# What says where and how fast things are fetched, not what is made.
_NOT_SHAPING: dict[str, Any] = {
    "sources": True,
    "held_out": True,
    "validation_share": True,
    "test_share": True,
    "num_questions": True,
    "num_validation_questions": True,
    "kinds": True,
    "shard_size": True,
    "max_failed_share": True,
    "earlier": True,
    "teacher": {"prices": True, "model": True, "engine": True},
    "semantic_unit": _JUDGES_PLACE,
    "coherence": _JUDGES_PLACE,
}
_SECONDS_BETWEEN_REPORTS = 1.0
_SPARE_SHARDS = 4
# Tries before a share of failures means anything.
_MIN_TRIES = 50


class Builder:
    """The folder under construction."""

    def __init__(
        self,
        request: VLIRRun,
        loading: Loading,
        origin: Origin,
        out: Path,
        work: Path,
        progress: Progress,
        earlier: EarlierSet | None = None,
    ) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.counts = {split: Counts() for split in FOLDERS}
        self._request, self._loading, self._origin, self._out = request, loading, origin, out
        self._config = request.vlir
        self._earlier = earlier
        settings = _settings_digest(request, earlier)
        self._folder = ShardFolder(out, work, settings=settings, folders=FOLDERS)
        self._shards: list[Shard] = []
        self._num_open = 0  # shards
        self._tickets = count()
        self._ordered: dict[int, tuple[OpenShard, int]] = {}  # by ticket
        self._asker: Asker | None = None
        self.spending = Spending(
            work,
            {
                "teacher": self._config.teacher.prices,
                "semantic_unit": self._config.semantic_unit.prices,
                "coherence": self._config.coherence.prices,
            },
        )
        self._failures = _Failures(self._config.max_failed_share)
        self._progress, self._done, self._reported = progress, 0, 0.0

    def answer_questions(self) -> None:
        """Have every question of every shard answered, except what earlier starts did."""
        orders = self._orders()
        first = next(orders, None)
        if first is not None:
            scenes = self._origin.scenes if isinstance(self._origin, DrawnWorld) else {}
            self._asker = open_asker(self._request, self._loading, scenes)
            # Arrow imports pandas with its first array. Now the teacher's processes are starting; later
            # hundreds of requests would wait for that second.
            pa.array([0])
            for name, asked in self._asker.metered.items():
                self.spending.watch(name, asked)
            for ticket, tried in self._asker.answer(chain([first], orders), self._on_loaded):
                self._note(ticket, tried)
        self._failures.check()
        for split in FOLDERS.keys() - {shard.split for shard in self._shards}:
            # Readers want at least one file, if only to see that it is empty.
            self._keep(split, self._folder.finish(self._folder.open(Shard(split, 0, ()))))

    def close(self) -> None:
        """Close the teacher and the judges, and keep what they used."""
        self.spending.save()
        if self._asker is not None:
            self._asker.close()

    def tick(self, *, finally_: bool = False) -> None:
        """One more step is done; told on now and then, and the last time in any case."""
        self._done += not finally_
        now = time.monotonic()
        if finally_ or now - self._reported >= _SECONDS_BETWEEN_REPORTS:
            self._reported = now
            self._progress(self._done, self._origin.num_steps)

    def register(self, name: str) -> None:
        """Note a file of the set for the manifest."""
        path = self._out / name
        rows = {"num_rows": pq.read_metadata(path).num_rows} if path.suffix == ".parquet" else {}
        self.files[name] = {**rows, "sha256": digest_of_file(path)}

    def write_faults(self, more: Iterable[FaultyRow]) -> None:
        """Write the rows that could not be used: those of the shards, then ``more``."""
        shards = sorted(self._shards, key=lambda shard: shard.name)
        found = chain.from_iterable(self._folder.faults_of(shard) for shard in shards)
        with (self._out / FAULTS).open("w", encoding="utf-8", errors="backslashreplace") as file:
            for fault in chain(found, more):
                file.write(json.dumps(asdict(fault), ensure_ascii=False) + "\n")
        self.register(FAULTS)

    def _orders(self) -> Iterator[Order | None]:
        """Questions to ask; None while as many shards are open as memory is meant for."""
        num_samples = self._config.num_samples
        places = self._places()
        while True:
            # Without a question on its way nothing would ever make room.
            while self._ordered and self._num_open >= self._max_open:
                yield None
            place = next(places, None)
            if place is None:
                return
            opened, position = place
            material = opened.shard.entries[position].material
            if isinstance(material, Fault):
                self._take(place, material)
                continue
            if self._is_kept(place, material):
                continue
            attempt = opened.next_attempt(position, num_samples=num_samples)
            if attempt is None:
                self._take(place, loaded(material.load(self._loading)))
                continue
            ticket = next(self._tickets)
            self._ordered[ticket] = place
            seed = derive_seed(self._request.seed, opened.shard.split, opened.shard.index)
            yield Order(ticket, material, attempt, seed)

    def _is_kept(self, place: tuple[OpenShard, int], material: Material) -> bool:
        """Settle a question by what the earlier set has of it, if it has."""
        if self._earlier is None or not self._earlier.knows(*material.identity):
            return False
        found = loaded(material.load(self._loading))
        tries = self._earlier.tries_of(found.question) if isinstance(found, Loaded) else ()
        if not tries:
            return False
        assert isinstance(found, Loaded), "a fault has no tries"
        opened, position = place
        opened.keep(position, found, tries)
        self._settle(opened)
        return True

    @property
    def _max_open(self) -> int:
        """Shards in work: enough for everything in flight, and some that wait for their last question."""
        in_flight = 1 if self._asker is None else self._asker.max_in_flight
        return in_flight // self._config.shard_size + _SPARE_SHARDS

    def _places(self) -> Iterator[tuple[OpenShard, int]]:
        """Every entry of the shards that are not done."""
        for shard in shards_of(self._origin.entries(), shard_size=self._config.shard_size):
            # Only its name is needed from now on; its pictures are not to stay.
            self._shards.append(replace(shard, entries=()))
            done = self._folder.find_done(shard)
            if done is not None:
                self._keep(shard.split, done)
                for _ in shard.entries:
                    self.tick()
                continue
            opened = self._folder.open(shard)
            self._num_open += 1
            for position in range(len(shard.entries)):
                yield opened, position

    def _on_loaded(self, ticket: int, found: Loaded | Fault) -> None:
        if self._take(self._ordered[ticket], found):
            del self._ordered[ticket]

    def _take(self, place: tuple[OpenShard, int], found: Loaded | Fault) -> bool:
        """Take a loaded entry in; True when it needs nothing more."""
        opened, position = place
        is_settled = opened.take(position, found, num_samples=self._config.num_samples)
        if is_settled:
            self._settle(opened)
        return is_settled

    def _note(self, ticket: int, tried: Attempt) -> None:
        opened, position = self._ordered[ticket]
        self._failures.count(tried)
        if opened.add(position, tried, num_samples=self._config.num_samples):
            del self._ordered[ticket]
            self._settle(opened)

    def _settle(self, opened: OpenShard) -> None:
        """One more entry of the shard needs nothing more."""
        self.tick()
        if opened.is_settled:
            self._num_open -= 1
            self._keep(opened.shard.split, self._folder.finish(opened))
            self.spending.save()

    def _keep(self, split: str, done: DoneShard) -> None:
        self.counts[split].add(done.counts)
        self.files |= done.files


class _Failures:
    """Tries that failed for our reasons: a few are the weather, many are a broken teacher or judge."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._num_tries = self._num_failed = 0
        self._last = ""

    def count(self, tried: Attempt) -> None:
        """Count a try. Raises EngineError when too many of enough failed."""
        self._num_tries += 1
        if tried.reason in OUR_FAILURES:
            self._num_failed += 1
            self._last = tried.evidence
        if self._num_tries >= _MIN_TRIES:
            self.check()

    def check(self) -> None:
        """Raises EngineError when too many failed."""
        if self._num_failed > self._max_share * self._num_tries:
            raise EngineError(
                f"{self._num_failed} of {self._num_tries} tries failed, more than vlir.max_failed_share "
                f"{self._max_share:g} allows; the last: {self._last} What was answered is kept: run the "
                "stage again when the teacher and the judges answer, or raise that share."
            )


def _settings_digest(request: VLIRRun, earlier: EarlierSet | None) -> str:
    """Of everything that shapes a record beside its row."""
    return digest_of(
        {
            "vlir": request.vlir.model_dump(mode="json", exclude=_NOT_SHAPING),
            "teacher": teacher_name(request.vlir.teacher),
            "look": request.look.model_dump(mode="json"),
            "seed": request.seed,
            "earlier": earlier.digest if earlier else "",
        }
    )
