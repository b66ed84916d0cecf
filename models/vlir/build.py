"""Stage build_vlir: questions, rationales and their statistics, from nothing but a configuration and a seed.

The same arguments give the same bytes. The folder that comes out:

``records/``            accepted rationales of the training split, in shards
``validation/``         accepted rationales of the validation split
``rejected/``           every rejected try with its reason and evidence
``questions/train``     fresh questions of the training split, for R-GRPO
``questions/validation``, ``questions/test``   held out; test is for evaluation alone
``manifest.json``       written last: schema version, digests, settings, acceptance, statistics
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from models.config import Look, QuestionMix, VLIRConfig
from models.records import SCHEMA_VERSION, Question, write_questions, write_records
from models.rollout import derive_seed
from models.rundir import write_atomically
from models.tiny.teacher import EmbeddedTeacher
from models.tiny.world import SPLITS, Split
from models.vlir.drawn import DrawnQuestion, check_no_leakage, draw_questions
from models.vlir.filters import Judges
from models.vlir.generate import Generation, Teacher, generate
from models.vlir.local_judges import CoherenceJudge, SemanticUnitJudge
from models.vlir.statistics import Statistics

Progress = Callable[[int, int], None]

RECORDS, VALIDATION, REJECTED, QUESTIONS = "records", "validation", "rejected", "questions"
MANIFEST = "manifest.json"
TEACHER_NAME = "embedded"
PROMPT_ID = "question"  # the bare question under the protocol's system prompt

# Small enough that progress moves every second or two.
_QUESTIONS_PER_SHARD = 128
# The held-out set is a benchmark: the same for every run, so that versions made from different seeds are
# compared on the same questions.
_EVALUATION_SEED = 0


@dataclass(slots=True)
class Outcome:
    """What the teacher and the filters made of one split's questions. ``reasons`` counts rejected tries."""

    num_questions: int = 0
    num_tries: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    judge_counts: Counter[str] = field(default_factory=Counter)
    statistics: Statistics = field(default_factory=Statistics)

    def add(self, num_questions: int, generation: Generation) -> None:
        """Count one shard."""
        self.num_questions += num_questions
        self.num_tries += generation.num_tries
        self.reasons.update(record.reason for record in generation.rejected)
        self.judge_counts.update(generation.judge_counts)
        for record in generation.accepted:
            self.statistics.add(record)

    @property
    def num_records(self) -> int:
        """Accepted rationales."""
        return self.statistics.num_records

    @property
    def acceptance(self) -> float:
        """Share of questions that gave a record, 0 to 1."""
        return self.num_records / self.num_questions if self.num_questions else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For the manifest, in a stable order."""
        return {
            "num_questions": self.num_questions,
            "num_tries": self.num_tries,
            "num_records": self.num_records,
            "acceptance": self.acceptance,
            "rejected": dict(sorted(self.reasons.items())),
            "judges": dict(sorted(self.judge_counts.items())),
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
        train = self.train
        statistics = train.statistics
        rejected = {f"vlir/rejected/{reason}": count for reason, count in sorted(train.reasons.items())}
        judged = {f"vlir/judge/{name}": count for name, count in sorted(train.judge_counts.items())}
        return {
            "vlir/questions": train.num_questions,
            "vlir/tries": train.num_tries,
            "vlir/records": train.num_records,
            "vlir/acceptance": train.acceptance,
            "vlir/tries_per_record": train.num_tries / max(1, train.num_records),
            "vlir/crops_per_record": statistics.num_crops / max(1, statistics.num_records),
            "vlir/validation_records": self.validation.num_records,
            "vlir/rgrpo_questions": self.num_rgrpo_questions,
            "vlir/evaluation_questions": self.num_evaluation_questions,
            **rejected,
            **judged,
        }


def build_vlir(
    config: VLIRConfig,
    look: Look,
    *,
    seed: int,
    out: Path,
    rgrpo_questions: QuestionMix,
    evaluation_questions: QuestionMix,
    progress: Progress = lambda done, total: None,
) -> VLIRSummary:
    """Build the set in ``out``, replacing an earlier one. ``progress`` is told (done, total) questions.

    Raises ConfigError for a mix of kinds that cannot be drawn, RecordError when two splits share a picture.
    """
    train_mix = QuestionMix(num_questions=config.num_questions, kinds=config.kinds)
    validation_mix = QuestionMix(num_questions=config.num_validation_questions, kinds=config.kinds)
    mixes = (train_mix, validation_mix, rgrpo_questions, evaluation_questions)
    ticker = _Ticker(progress, total=sum(mix.num_questions for mix in mixes))
    builder = _Builder(config, look, seed, out, ticker)
    builder.clear()
    builder.write_questions("test", evaluation_questions, seed=_EVALUATION_SEED)
    train = builder.write_rationales("train", train_mix, folder=RECORDS)
    builder.write_questions("train", rgrpo_questions, seed=derive_seed(seed, "rgrpo", 0))
    validation = builder.write_rationales("validation", validation_mix, folder=VALIDATION)
    check_no_leakage(builder.pictures)
    summary = VLIRSummary(
        train=train,
        validation=validation,
        num_rgrpo_questions=rgrpo_questions.num_questions,
        num_evaluation_questions=evaluation_questions.num_questions,
    )
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "source_mix": train.statistics.source_mix,
        "seed": seed,
        "teacher": TEACHER_NAME,
        "prompt_id": PROMPT_ID,
        "settings": {
            "vlir": config.model_dump(mode="json"),
            # A set has no order of its own; the manifest must.
            "look": {**look.model_dump(mode="json"), "end_on": sorted(look.end_on)},
            "rgrpo_questions": rgrpo_questions.model_dump(mode="json"),
            "evaluation_questions": evaluation_questions.model_dump(mode="json"),
        },
        "train": train.to_dict(),
        "validation": validation.to_dict(),
        "files": builder.files,
    }
    write_atomically(out / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return summary


class _Ticker:
    """Counts questions for the progress display."""

    def __init__(self, progress: Progress, *, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def count(self, questions: Iterable[DrawnQuestion]) -> Iterator[DrawnQuestion]:
        """Pass questions through, and report now and then."""
        for question in questions:
            yield question
            self._done += 1
            if self._done % 64 == 0 or self._done == self._total:
                self._progress(self._done, self._total)


class _Builder:
    """The folder under construction: its files with their digests, and the pictures of each split."""

    def __init__(self, config: VLIRConfig, look: Look, seed: int, out: Path, ticker: _Ticker) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.pictures: dict[str, set[str]] = {split: set() for split in SPLITS}
        self._config = config
        # The teacher has limits of its own, and always gets the paper's crops.
        self._look = look.model_copy(
            update={
                "max_sampled_tokens": config.max_teacher_tokens,
                "crop_source": "original",
                "corruption": None,
            }
        )
        self._seed = seed
        self._out = out
        self._ticker = ticker
        self._judges = Judges(semantic_unit=SemanticUnitJudge(), coherence=CoherenceJudge())

    def clear(self) -> None:
        """Remove what an earlier build left, so that no old shard is taken for a new one."""
        (self._out / MANIFEST).unlink(missing_ok=True)
        for name in (RECORDS, VALIDATION, REJECTED, QUESTIONS):
            shutil.rmtree(self._out / name, ignore_errors=True)

    def write_questions(self, split: Split, mix: QuestionMix, *, seed: int) -> None:
        """Draw questions and write ``questions/<split>.parquet``."""
        drawn = draw_questions(split, mix, seed=seed, used_pictures=self.pictures[split])
        self._write_questions(split, (item.question for item in self._ticker.count(drawn)))

    def write_rationales(self, split: Split, mix: QuestionMix, *, folder: str) -> Outcome:
        """Draw questions, ask the teacher, filter, and write accepted and rejected records in shards."""
        outcome = Outcome()
        held_out: list[Question] = []
        drawn = self._ticker.count(
            draw_questions(
                split, mix, seed=derive_seed(self._seed, "vlir", 0), used_pictures=self.pictures[split]
            )
        )
        for index, shard in enumerate(_shards(drawn)):
            questions = [item.question for item in shard]
            generation = generate(
                self._teacher(shard),
                questions,
                look=self._look,
                judges=self._judges,
                num_samples=self._config.num_samples,
                seed=derive_seed(self._seed, split, index),
            )
            self._write_records(f"{folder}/shard-{index:05d}.parquet", generation.accepted)
            self._write_records(f"{REJECTED}/{split}-{index:05d}.parquet", generation.rejected)
            outcome.add(len(questions), generation)
            if split == "validation":
                held_out.extend(questions)
        if held_out:
            self._write_questions(split, held_out)
        return outcome

    def _teacher(self, shard: list[DrawnQuestion]) -> Teacher:
        scenes = {item.question.id: (item.scene, item.asked) for item in shard}
        return Teacher(EmbeddedTeacher(self._config, scenes), name=TEACHER_NAME, prompt_id=PROMPT_ID)

    def _write_questions(self, split: Split, questions: Iterable[Question]) -> None:
        path = self._out / QUESTIONS / f"{split}.parquet"
        self._register(path, write_questions(path, questions))

    def _write_records(self, name: str, records: Iterable[Any]) -> None:
        path = self._out / name
        self._register(path, write_records(path, records))

    def _register(self, path: Path, num_rows: int) -> None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.files[path.relative_to(self._out).as_posix()] = {"num_rows": num_rows, "sha256": digest}


def _shards(questions: Iterator[DrawnQuestion]) -> Iterator[list[DrawnQuestion]]:
    while shard := list(islice(questions, _QUESTIONS_PER_SHARD)):
        yield shard
