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
``manifest.json``       written last: schema version, digests, settings, acceptance, statistics, and what
                        was kept of an earlier set
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from models.child import run_stage
from models.config import Look, VLIRConfig
from models.records import SCHEMA_VERSION, write_rows
from models.run_config import VLIRRun
from models.rundir import Result, RunDir, write_atomically
from models.vlir.builder import Builder, Progress
from models.vlir.earlier import EarlierSet, open_earlier
from models.vlir.entries import Loading
from models.vlir.layout import HELD_OUT, MANIFEST, QUESTIONS, RECORDS, VALIDATION
from models.vlir.leakage import HeldOut
from models.vlir.origins import DrawnWorld, Origin, RealSources
from models.vlir.shards import Counts
from models.vlir.sources.open import open_source
from models.vlir.statistics import Statistics
from models.vlir.statistics_files import STATISTICS, write_statistics
from models.vlir.teachers import teacher_name

_ROWS_BETWEEN_REPORTS = 5000
_HELD_OUT_SCHEMA = pa.schema([("image_sha256", pa.string()), ("origin", pa.string())])


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
            "picture_changes": dict(sorted(counts.changes.items())),
            "statistics": self.statistics.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class VLIRSummary:
    """What the stage made: the outcome of both splits that have rationales, and all set sizes."""

    train: Outcome
    validation: Outcome
    num_rgrpo_questions: int
    num_evaluation_questions: int
    spending: Mapping[str, float]

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
                ("picture_change", counts.changes),
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
            "vlir/kept_records": sum(each.kept["records"] for each in both),
            "vlir/validation_records": self.validation.counts.num_records,
            "vlir/rgrpo_questions": self.num_rgrpo_questions,
            "vlir/evaluation_questions": self.num_evaluation_questions,
            "vlir/teacher_prompt_tokens": sum(each.prompt_tokens for each in both),
            "vlir/teacher_sampled_tokens": sum(each.sampled_tokens for each in both),
            **named,
            **self.spending,
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
    loading = Loading(look, request.vlir, HeldOut.read(request.vlir.held_out))
    earlier = open_earlier(request.vlir, look)
    origin = _open_origin(request, loading, out, progress, earlier)
    builder = Builder(request, loading, origin, out, work, progress, earlier)
    try:
        builder.answer_questions()
    finally:
        builder.close()
    written = origin.write_questions(out / QUESTIONS, builder.tick)
    builder.tick(finally_=True)
    builder.write_faults(written.faults)
    summary = VLIRSummary(
        train=Outcome(builder.counts["train"], _statistics(out / RECORDS)),
        validation=Outcome(builder.counts["validation"], _statistics(out / VALIDATION)),
        num_rgrpo_questions=written.numbers["train"],
        num_evaluation_questions=written.numbers["test"],
        spending=builder.spending.metrics(),
    )
    for split in written.numbers:
        builder.register(f"{QUESTIONS}/{split}.parquet")
    for name in write_statistics(summary.train.statistics, out / STATISTICS):
        builder.register(f"{STATISTICS}/{name}")
    if (out / HELD_OUT).is_file():
        builder.register(HELD_OUT)
    _remove_strangers(out, builder.files)
    manifest = _manifest(request, origin, summary, builder.files)
    if earlier is not None:
        manifest["earlier"] = earlier.describe({split: each.kept for split, each in builder.counts.items()})
    write_atomically(out / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return summary


def _open_origin(
    request: VLIRRun, loading: Loading, out: Path, progress: Progress, earlier: EarlierSet | None
) -> Origin:
    """What the configuration names, looked through once. ``held_out.parquet`` is written on the way."""
    if request.vlir.is_drawn:
        return DrawnWorld(request, earlier.manifest if earlier else None)
    max_bytes = request.vlir.max_picture_bytes
    opened = [(config, open_source(config, max_picture_bytes=max_bytes)) for config in request.vlir.sources]
    pictures = sorted(loading.held_out.pictures())
    rows = [dict[str, object](image_sha256=digest, origin=where) for digest, where in pictures]
    write_rows(out / HELD_OUT, _HELD_OUT_SCHEMA, rows)
    total = sum(source.num_rows() for _, source in opened)
    seen = 0

    def on_row() -> None:
        nonlocal seen
        seen += 1
        if seen % _ROWS_BETWEEN_REPORTS == 0:
            progress(seen, total)

    return RealSources(request, opened, loading, on_row)


def _teachers_look(look: Look, config: VLIRConfig) -> Look:
    """The teacher has limits of its own, and always gets the paper's crops."""
    return look.model_copy(
        update={
            "max_sampled_tokens": config.max_teacher_tokens,
            "crop_source": "original",
            "corruption": None,
        }
    )


def _statistics(folder: Path) -> Statistics:
    statistics = Statistics()
    for path in sorted(folder.glob("*.parquet")):
        statistics.merge(Statistics.of_file(path))
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
