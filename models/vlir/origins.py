"""Where the entries of a build come from: the drawn world, or sources of real pictures."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from models.config import QuestionMix
from models.records import QUESTION_SCHEMA, Question, RowWriter, write_questions
from models.rollout import derive_seed
from models.run_config import VLIRRun
from models.tiny.world import SPLITS as DRAWN_SPLITS
from models.tiny.world import Scene, Split, WorldQuestion
from models.vlir.drawn import LICENCE, SOURCE, check_no_leakage, draw_questions
from models.vlir.entries import Entry, FaultyRow, Loading, Ready, digest_of
from models.vlir.reading import (
    TEST,
    TRAIN,
    VALIDATION,
    Opened,
    SampleRow,
    entry_of,
    make_ready,
    read_rows,
    survey,
)
from models.vlir.versions import drawn_version

# The held-out set is a benchmark: the same for every run, so that versions made from different seeds are
# compared on the same questions.
_EVALUATION_SEED = 0

OnQuestion = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Written:
    """How many questions were written, by split, and the rows of the test split that cannot be used: the
    other splits' are found when the teacher is asked.
    """

    numbers: dict[str, int]
    faults: tuple[FaultyRow, ...] = ()


class Origin(Protocol):
    """What a build reads. Entries come first, then the questions: those may depend on what was asked."""

    @property
    def num_steps(self) -> int:
        """How often progress will be reported."""

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Split and entry of every question for the teacher, in an order of its own that never changes."""

    def write_questions(self, folder: Path, on_question: OnQuestion) -> "Written":
        """Write ``train``, ``validation`` and ``test`` questions."""

    def describe(self) -> dict[str, Any]:
        """What was read, for the manifest."""


class DrawnWorld:
    """The drawn world: every set of questions is a function of a seed, and of how it grew."""

    def __init__(self, request: VLIRRun, earlier: Mapping[str, Any] | None = None) -> None:
        """``earlier`` is the manifest of a set to go on from: its questions come first, then further ones."""
        self.scenes: dict[str, tuple[Scene, WorldQuestion]] = {}
        self._request = request
        self._config = request.vlir
        self._pictures: dict[str, set[str]] = {split: set() for split in DRAWN_SPLITS}
        self._held_out: list[Question] = []
        self._draws = drawn_in(request, earlier)

    @property
    def num_steps(self) -> int:
        """All questions of all sets, once."""
        asked = self._config.num_questions + 2 * self._config.num_validation_questions
        mixes = (self._request.rgrpo_questions, self._request.evaluation_questions)
        return asked + sum(mix.num_questions for mix in mixes)

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """First all of the training split, then those of the validation split."""
        for split, numbers in self._draws.items():
            for draw, number in enumerate(numbers):
                seed = derive_seed(self._request.seed, "vlir", draw)
                mix = QuestionMix(num_questions=number, kinds=self._config.kinds)
                for drawn in draw_questions(split, mix, seed=seed, used_pictures=self._pictures[split]):
                    self.scenes[drawn.question.id] = (drawn.scene, drawn.asked)
                    if split == "validation":
                        self._held_out.append(drawn.question)
                    yield split, _drawn_entry(drawn.question)

    def write_questions(self, folder: Path, on_question: OnQuestion) -> Written:
        """Fresh questions, and those that were asked for the validation records."""
        request = self._request
        drawn: dict[Split, Iterator[Question]] = {
            "train": self._draw("train", request.rgrpo_questions, seed=derive_seed(request.seed, "rgrpo", 0)),
            "validation": iter(self._held_out),
            "test": self._draw("test", request.evaluation_questions, seed=_EVALUATION_SEED),
        }
        numbers: dict[str, int] = {
            split: write_questions(folder / f"{split}.parquet", _counted(questions, on_question))
            for split, questions in drawn.items()
        }
        check_no_leakage(self._pictures)
        return Written(numbers)

    def describe(self) -> dict[str, Any]:
        """The version of the world, and in how many goes its questions were drawn."""
        version = drawn_version(self._config, seed=self._request.seed).model_dump()
        return {SOURCE: {**version, "licence": LICENCE, "draws": self._draws}}

    def _draw(self, split: Split, mix: QuestionMix, *, seed: int) -> Iterator[Question]:
        drawn = draw_questions(split, mix, seed=seed, used_pictures=self._pictures[split])
        return (item.question for item in drawn)


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """A drawn question is ready but for its prompt."""

    question: Question

    @property
    def identity(self) -> tuple[str, str]:
        """Source and id."""
        return self.question.source, self.question.id

    def load(self, loading: Loading) -> Ready:
        """Decode the picture and write the prompt."""
        return make_ready(self.question, self.question.image(), loading, "auto")


def _drawn_entry(question: Question) -> Entry:
    key = digest_of([question.id, question.answers, [box.corners() for box in question.gold_boxes]])
    return Entry(key, SOURCE, len(question.image_bytes), DrawnRow(question))


def drawn_in(request: VLIRRun, earlier: Mapping[str, Any] | None) -> dict[Split, list[int]]:
    """How many questions of a split each draw has: those of the earlier set, and one for what is missing.

    A draw of more questions begins with other ones, so a set that grows keeps the draws that it had. A set of
    another seed or mix, or a larger one, has none that could be kept.
    """
    config = request.vlir
    wanted: dict[Split, int] = {
        "train": config.num_questions,
        "validation": config.num_validation_questions,
    }
    before: dict[str, list[int]] = {}
    if earlier and earlier["seed"] == request.seed and earlier["settings"]["vlir"]["kinds"] == config.kinds:
        before = earlier["sources"].get(SOURCE, {}).get("draws", {})
    draws: dict[Split, list[int]] = {}
    for split, number in wanted.items():
        kept = before.get(split, [])
        kept = kept if sum(kept) <= number else []
        missing = number - sum(kept)
        draws[split] = [*kept, missing] if missing else kept
    return draws


class RealSources:
    """Public training sets and manifests. Raises RecordError for leaks and for pictures in two splits."""

    def __init__(self, request: VLIRRun, opened: Opened, loading: Loading, on_row: OnQuestion) -> None:
        self._config = request.vlir
        self._opened, self._loading = opened, loading
        wanted = {
            TRAIN: request.rgrpo_questions.num_questions,
            VALIDATION: request.evaluation_questions.num_questions,
            TEST: request.evaluation_questions.num_questions,
        }
        self._survey = survey(
            opened,
            self._config,
            held_out=loading.held_out,
            num_wanted=wanted,
            seed=request.seed,
            on_row=on_row,
        )

    @property
    def num_steps(self) -> int:
        """Every row that the teacher is asked about, and every question that is written."""
        asked = self._survey.num_rows[TRAIN] + self._survey.num_rows[VALIDATION]
        return asked + sum(map(len, self._survey.chosen.values()))

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """The rows of the training and validation splits, in the order of the sources."""
        for row in read_rows(self._opened, self._config):
            if row.split != TEST:
                yield row.split, entry_of(row)

    def write_questions(self, folder: Path, on_question: OnQuestion) -> Written:
        """The questions that the survey chose; one whose picture turns out unusable is left out."""
        chosen = self._survey.chosen
        faults = []
        with ExitStack() as files:
            writers = {
                split: files.enter_context(RowWriter(folder / f"{split}.parquet", QUESTION_SCHEMA))
                for split in chosen
            }
            for row in read_rows(self._opened, self._config):
                if row.key not in chosen[row.split]:
                    continue
                material = row.material
                found = material.load(self._loading) if isinstance(material, SampleRow) else material
                if isinstance(found, Ready):
                    writers[row.split].write_question(found.question)
                elif row.split == TEST:
                    faults.append(FaultyRow.of(row.source.label, found))
                on_question()
        return Written({split: writer.num_rows for split, writer in writers.items()}, tuple(faults))

    def describe(self) -> dict[str, Any]:
        """Rows and digest of every source."""
        return {
            label: {
                "num_rows": count.num_rows,
                "num_usable": count.num_usable,
                "digest": count.digest,
                "licence": next(source.licence for _, source in self._opened if source.label == label),
            }
            for label, count in self._survey.sources.items()
        }


def _counted(questions: Iterator[Question], on_question: OnQuestion) -> Iterator[Question]:
    for question in questions:
        yield question
        on_question()
