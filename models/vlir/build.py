"""Stage build_vlir: questions, rationales and their statistics (paper 3.1), from any origin.

    python -m models.vlir.build RUN_DIR

Reads :class:`models.run_config.VLIRRun`. The same inputs give the same bytes, whether in one go or after any
number of interruptions (:mod:`models.vlir.shards`). The folder that comes out, ``vlir/``:

``records/``            accepted rationales of the training split, in shards
``validation/``         accepted rationales of the validation split
``rejected/``           every rejected try with its reason and evidence
``faults.jsonl``        every row of a source that could not be used, with its reason
``questions/train``     questions of the training split, for R-GRPO
``questions/validation``, ``questions/test``   held out; test is for evaluation alone
``held_out.parquet``    sha256 of every picture in the evaluation sets that were named
``manifest.json``       written last: schema version, digests, settings, acceptance, statistics
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from models.ahead import ahead
from models.child import run_stage
from models.config import Look, VLIRConfig
from models.errors import EngineError
from models.records import SCHEMA_VERSION, read_rationales
from models.rollout import derive_seed
from models.run_config import VLIRRun
from models.rundir import Result, RunDir, write_atomically
from models.tiny.world import Scene, WorldQuestion
from models.vlir.entries import Ready, Shard, digest_of, shards_of
from models.vlir.filters import OUR_FAILURES, Judges
from models.vlir.generate import Task, Teacher, Tried, generate
from models.vlir.judge_endpoints import open_judge
from models.vlir.leakage import HeldOut
from models.vlir.origins import DrawnWorld, Origin, RealSources
from models.vlir.shards import Counts, DoneShard, OpenShard, ShardFolder, digest_of_file
from models.vlir.sources import open_source
from models.vlir.statistics import Statistics
from models.vlir.teachers import open_teacher, teacher_name

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

RECORDS, VALIDATION, QUESTIONS = "records", "validation", "questions"
MANIFEST, FAULTS, HELD_OUT = "manifest.json", "faults.jsonl", "held_out.parquet"
_FOLDERS = {"train": RECORDS, "validation": VALIDATION}
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
    "teacher": {"prices": True, "model": True, "engine": True},
    "semantic_unit": _JUDGES_PLACE,
    "coherence": _JUDGES_PLACE,
}
_SECONDS_BETWEEN_REPORTS = 1.0
_ROWS_BETWEEN_REPORTS = 5000
_SPARE_SHARDS = 4
# Tries before a share of failures means anything.
_MIN_TRIES = 50


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the teacher and the filters made of one split's questions."""

    counts: Counts
    statistics: Statistics

    def to_dict(self) -> dict[str, Any]:
        """For the manifest, in a stable order."""
        counts = self.counts
        return {
            "num_questions": counts.num_questions,
            "num_tries": counts.num_tries,
            "num_records": counts.num_records,
            "acceptance": counts.acceptance,
            "rejected": dict(sorted(counts.reasons.items())),
            "judges": dict(sorted(counts.judge_counts.items())),
            "faults": dict(sorted(counts.faults.items())),
            "statistics": self.statistics.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class VLIRSummary:
    """What the stage made: the outcome of both splits that have rationales, and all set sizes."""

    train: Outcome
    validation: Outcome
    num_rgrpo_questions: int
    num_evaluation_questions: int

    def metrics(self) -> dict[str, float]:
        """For the tracker; the names are explained in ``docs/metrics.md``."""
        counts, statistics = self.train.counts, self.train.statistics
        both = (self.train.counts, self.validation.counts)
        named = {
            f"vlir/{area}/{name}": float(count)
            for area, counter in (
                ("rejected", counts.reasons),
                ("judge", counts.judge_counts),
                ("fault", counts.faults),
            )
            for name, count in sorted(counter.items())
        }
        return {
            "vlir/questions": counts.num_questions,
            "vlir/tries": counts.num_tries,
            "vlir/records": counts.num_records,
            "vlir/acceptance": counts.acceptance,
            "vlir/tries_per_record": counts.num_tries / max(1, counts.num_records),
            "vlir/crops_per_record": statistics.num_crops / max(1, statistics.num_records),
            "vlir/validation_records": self.validation.counts.num_records,
            "vlir/rgrpo_questions": self.num_rgrpo_questions,
            "vlir/evaluation_questions": self.num_evaluation_questions,
            "vlir/teacher_prompt_tokens": sum(each.prompt_tokens for each in both),
            "vlir/teacher_sampled_tokens": sum(each.sampled_tokens for each in both),
            **named,
        }


def build_vlir(
    request: VLIRRun, *, out: Path, work: Path, progress: Progress = lambda done, total: None
) -> VLIRSummary:
    """Build the set in ``out``, going on where an earlier start stopped; ``work`` keeps what that needs.

    ``progress`` is told (done, total) steps. Raises ConfigError for a source, mix or teacher that cannot be
    used, RecordError for a leak, EngineError or ScoringError when the teacher or a judge fails as a whole.
    """
    (out / MANIFEST).unlink(missing_ok=True)
    look = _teachers_look(request.look, request.vlir)
    origin = _open_origin(request, look, out, progress)
    builder = _Builder(request, look, origin, out, work, progress)
    try:
        builder.answer_questions()
    finally:
        builder.close()
    numbers = origin.write_questions(out / QUESTIONS, builder.tick)
    builder.tick(finally_=True)
    summary = VLIRSummary(
        train=Outcome(builder.counts["train"], _statistics(out / RECORDS)),
        validation=Outcome(builder.counts["validation"], _statistics(out / VALIDATION)),
        num_rgrpo_questions=numbers["train"],
        num_evaluation_questions=numbers["test"],
    )
    builder.register_questions(numbers)
    _remove_strangers(out, builder.files)
    manifest = _manifest(request, origin, summary, builder.files)
    write_atomically(out / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return summary


class _Builder:
    """The folder under construction."""

    def __init__(
        self, request: VLIRRun, look: Look, origin: Origin, out: Path, work: Path, progress: Progress
    ) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.counts = {split: Counts() for split in _FOLDERS}
        self._request, self._look, self._origin, self._out = request, look, origin, out
        self._config = request.vlir
        self._folder = ShardFolder(out, work, settings=_settings_digest(request), folders=_FOLDERS)
        self._shards: list[Shard] = []
        self._num_open = 0
        self._teacher: Teacher | None = None
        self._failures = _Failures(self._config.max_failed_share)
        self._progress, self._done, self._reported = progress, 0, 0.0

    def answer_questions(self) -> None:
        """Have every question of every shard answered, except what earlier starts did."""
        tasks = self._tasks()
        first = next(tasks, None)
        if first is not None:
            self._teacher = open_teacher(self._request, self._look, self._scenes())
            judges = Judges(
                semantic_unit=open_judge(self._config.semantic_unit, "semantic_unit"),
                coherence=open_judge(self._config.coherence, "coherence"),
            )
            tried = generate(
                self._teacher,
                chain([first], tasks),
                look=self._look,
                judges=judges,
                num_samples=self._config.num_samples,
            )
            for each in tried:
                self._note(each)
        self._failures.check()
        self._write_faults()

    def close(self) -> None:
        """Close the teacher."""
        if self._teacher is not None:
            self._teacher.engine.close()

    def tick(self, *, finally_: bool = False) -> None:
        """One more step is done; told on now and then, and the last time in any case."""
        self._done += not finally_
        now = time.monotonic()
        if finally_ or now - self._reported >= _SECONDS_BETWEEN_REPORTS:
            self._reported = now
            self._progress(self._done, self._origin.num_steps)

    def register_questions(self, splits: Iterable[str]) -> None:
        """Note the files of questions."""
        for split in splits:
            self._register(f"{QUESTIONS}/{split}.parquet")

    def _tasks(self) -> Iterator[Task | None]:
        """Questions to ask; None while as many shards are open as memory is meant for."""
        loaded = ahead(lambda place: place[0].shard.entries[place[1]].load(), self._places())
        while True:
            while self._num_open >= self._max_open:
                yield None
            found = next(loaded, None)
            if found is None:
                return
            (opened, position), entry = found
            attempt = opened.load(position, entry, num_samples=self._config.num_samples)
            if attempt is None:
                self._settle(opened)
                continue
            assert isinstance(entry, Ready), "a fault is settled at once"
            seed = derive_seed(self._request.seed, opened.shard.split, opened.shard.index)
            yield Task(entry, attempt, seed, (opened, position))

    @property
    def _max_open(self) -> int:
        """Shards in work: enough for everything in flight, and some that wait for their last question."""
        in_flight = 1 if self._teacher is None else self._teacher.max_in_flight
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

    def _note(self, tried: Tried) -> None:
        opened, position = tried.task.place
        self._failures.count(tried)
        if opened.add(position, tried, num_samples=self._config.num_samples):
            self._settle(opened)

    def _settle(self, opened: OpenShard) -> None:
        """One more entry of the shard needs nothing more."""
        self.tick()
        if opened.is_settled:
            self._num_open -= 1
            self._keep(opened.shard.split, self._folder.finish(opened))

    def _keep(self, split: str, done: DoneShard) -> None:
        self.counts[split].add(done.counts)
        self.files |= done.files

    def _write_faults(self) -> None:
        lines = (
            json.dumps(fault, ensure_ascii=False) + "\n"
            for shard in sorted(self._shards, key=lambda shard: shard.name)
            for fault in self._folder.faults_of(shard)
        )
        with (self._out / FAULTS).open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
        self._register(FAULTS)

    def _register(self, name: str) -> None:
        path = self._out / name
        num_rows = (
            pq.read_metadata(path).num_rows if path.suffix == ".parquet" else sum(1 for _ in path.open("rb"))
        )
        self.files[name] = {"num_rows": num_rows, "sha256": digest_of_file(path)}

    def _scenes(self) -> dict[str, tuple[Scene, WorldQuestion]]:
        return self._origin.scenes if isinstance(self._origin, DrawnWorld) else {}


class _Failures:
    """Tries that failed for our reasons: a few are the weather, many are a broken teacher or judge."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._num_tries = self._num_failed = 0
        self._last = ""

    def count(self, tried: Tried) -> None:
        """Count a try. Raises EngineError when too many of enough failed."""
        self._num_tries += 1
        if tried.record.reason in OUR_FAILURES:
            self._num_failed += 1
            self._last = tried.record.verdicts[-1].evidence
        if self._num_tries >= _MIN_TRIES:
            self.check()

    def check(self) -> None:
        """Raises EngineError when too many failed."""
        if self._num_failed > self._max_share * self._num_tries:
            raise EngineError(
                f"{self._num_failed} of {self._num_tries} tries failed, more than vlir.max_failed_share "
                f"{self._max_share:g} allows; the last: {self._last} What was answered is kept: run the "
                "stage again when the teacher and the judges answer."
            )


def _open_origin(request: VLIRRun, look: Look, out: Path, progress: Progress) -> Origin:
    """What the configuration names, looked through once. ``held_out.parquet`` is written on the way."""
    if request.vlir.is_drawn:
        return DrawnWorld(request, look)
    opened = [(config, open_source(config)) for config in request.vlir.sources]
    held_out = HeldOut.read(request.vlir.held_out)
    held_out.write(out / HELD_OUT)
    total = sum(source.num_rows() for _, source in opened)
    seen = 0

    def on_row() -> None:
        nonlocal seen
        seen += 1
        if seen % _ROWS_BETWEEN_REPORTS == 0:
            progress(seen, total)

    return RealSources(request, look, opened, held_out, on_row)


def _teachers_look(look: Look, config: VLIRConfig) -> Look:
    """The teacher has limits of its own, and always gets the paper's crops."""
    return look.model_copy(
        update={
            "max_sampled_tokens": config.max_teacher_tokens,
            "crop_source": "original",
            "corruption": None,
        }
    )


def _settings_digest(request: VLIRRun) -> str:
    """Of everything that shapes a record beside its row."""
    return digest_of(
        {
            "vlir": request.vlir.model_dump(mode="json", exclude=_NOT_SHAPING),
            "teacher": teacher_name(request.vlir.teacher),
            "look": request.look.model_dump(mode="json"),
            "seed": request.seed,
        }
    )


def _statistics(folder: Path) -> Statistics:
    statistics = Statistics()
    for record in read_rationales(folder) if any(folder.glob("*.parquet")) else ():
        statistics.add(record)
    return statistics


def _remove_strangers(out: Path, files: Mapping[str, Any]) -> None:
    """Remove what an earlier build left, so that no old shard is taken for a new one."""
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.relative_to(out).as_posix() not in files:
            path.unlink()


def _manifest(
    request: VLIRRun, origin: Origin, summary: VLIRSummary, files: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "source_mix": summary.train.statistics.source_mix,
        "sources": origin.describe(),
        "seed": request.seed,
        "teacher": teacher_name(request.vlir.teacher),
        "settings": {
            "vlir": request.vlir.model_dump(mode="json"),
            # A set has no order of its own; the manifest must.
            "look": {**request.look.model_dump(mode="json"), "end_on": sorted(request.look.end_on)},
            "rgrpo_questions": request.rgrpo_questions.model_dump(mode="json"),
            "evaluation_questions": request.evaluation_questions.model_dump(mode="json"),
        },
        "train": summary.train.to_dict(),
        "validation": summary.validation.to_dict(),
        "files": files,
    }


def run(directory: RunDir, request: VLIRRun) -> Result:
    """Build the set of a run directory."""

    def progress(done: int, total: int) -> None:
        directory.log(done, {"progress/done": done, "progress/total": total})

    summary = build_vlir(
        request, out=directory.path / "vlir", work=directory.path / "shards", progress=progress
    )
    metrics = summary.metrics()
    directory.log(0, metrics)
    return Result(status="done", artifacts={"data": "vlir"}, metrics=metrics)


if __name__ == "__main__":
    sys.exit(run_stage(run, VLIRRun, sys.argv[1:]))
