"""Public sets whose Parquet files hold their pictures: TextVQA, DocVQA, InfographicVQA and M3CoT.

Only the training split is read. A set's own validation and test files are never opened.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import ascii_uppercase
from urllib.parse import urlsplit

from models.benchmarks.published import ANSWER_WITH_A_LETTER, with_options
from models.benchmarks.sets import LocalFiles, SetFiles, split_names
from models.errors import RecordError
from models.vlir.sources.base import Fault, FaultKind, Sample
from models.vlir.sources.boxes import FittedBoxes
from models.vlir.sources.faults import BadRow, Row, answers_of, question_of, samples, shown, text_of
from models.vlir.sources.tables import INTEGERS, Table
from models.vlir.sources.visual_cot import BoxJoin

_TEXT, _TEXTS, _IMAGE = ("string",), ("list<string>",), ("image",)


@dataclass(frozen=True, slots=True)
class Asked:
    """A row as a question. ``question`` is the question alone where ``text`` has more."""

    text: str
    answers: tuple[str, ...]
    question: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """A public set. ``split`` is its training split, "configuration/split" where it has several
    configurations; ``columns`` and ``optional`` are as in :class:`models.vlir.sources.tables.Table`.
    ``split_column`` names a row's split. ``names`` are those by which others know a row's picture.
    """

    name: str
    split: str
    licence: str
    columns: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...]
    id_column: str
    split_column: str
    ask: Callable[[Row], Asked]
    names: Callable[[Row], tuple[str, ...]]


@dataclass(frozen=True)
class PublishedSource:
    """The training questions of a public set."""

    label: str
    licence: str
    published: TrainingSet
    table: Table
    join: BoxJoin | None

    def num_rows(self) -> int:
        """How many rows there are."""
        return self.table.num_rows

    def rows(self, *, start: int = 0) -> Iterator[Sample | Fault]:
        """Every row from number ``start`` on. Raises RecordError for a row of another split."""
        rows = self.table.rows(start=start, before=(self.published.id_column,))
        return samples(rows, start=start, id_of=self._id, sample_of=self._sample)

    def _id(self, row: Row) -> str:
        given = row[self.published.id_column]
        if given is None:
            raise BadRow(FaultKind.BAD_ROW, f"{self.published.id_column} is missing")
        return f"{self.label}-{given}"

    def _sample(self, number: int, id: str, row: Row) -> Sample:
        split = row.get(self.published.split_column)
        if split not in (None, "", "train"):
            raise RecordError(
                f"{self.published.name}: row {number} ({id!r}) in its training files is of split {split!r}. "
                "Only training splits are used; fetch the set again."
            )
        asked = self.published.ask(row)
        data = picture_bytes(row)
        names = self.published.names(row)
        fitted = FittedBoxes()
        if self.join is not None:
            fitted = self.join.fit(data, asked.question or asked.text, asked.answers, names)
        return Sample(
            row=number,
            id=id,
            text=asked.text,
            answers=asked.answers,
            image_bytes=data,
            picture=next((name for name in names if name), id),
            boxes=fitted.boxes,
            question=asked.question,
            num_dropped_boxes=fitted.num_dropped,
        )


def training_table(published: TrainingSet, folder: Path) -> Table:
    """The training files of a set in a folder. Raises RecordError when they are missing or another set's."""
    optional = (*published.optional, published.split_column)
    return training_files(folder, published.split, published.columns, optional=optional, what=published.name)


def training_files(
    folder: Path,
    split: str,
    columns: Mapping[str, tuple[str, ...]],
    *,
    optional: tuple[str, ...] = (),
    what: str,
) -> Table:
    """The files of a training split in a folder, with columns as a Table has them."""
    names = training_names(what, split, LocalFiles(folder))
    return Table(tuple(folder / name for name in names), columns, optional=optional, what=what)


def training_names(what: str, split: str, place: SetFiles) -> tuple[str, ...]:
    """The names of the files of a training split. Raises RecordError when there is none."""
    try:
        return split_names(place, split)
    except RecordError as error:
        raise RecordError(
            f"{error} Only the training split of {what} is used, never its validation or test files."
        ) from error


def picture_bytes(row: Row) -> bytes:
    """The file of the picture in a row. Raises BadRow."""
    image = row.get("image")
    if not isinstance(image, Mapping) or not image.get("bytes"):
        where = f"; it has only a path, {shown(image['path'])}" if image and image.get("path") else ""
        raise BadRow(FaultKind.MISSING_IMAGE, f"the row holds no picture{where}")
    return bytes(image["bytes"])


def _path(row: Row) -> str:
    image = row.get("image")
    return str(image.get("path") or "") if isinstance(image, Mapping) else ""


def _plain(row: Row) -> Asked:
    answers = row["answers"]
    if not isinstance(answers, list):
        raise BadRow(FaultKind.NO_ANSWER, "answers is missing")
    return Asked(question_of(row), answers_of(answers, "answers"))


def _choose(row: Row) -> Asked:
    """M3CoT: context, question and options, answered by a letter; its rationale gives the answer away."""
    question, choices, letter = question_of(row), row["choices"], text_of(row, "answer")
    if not isinstance(choices, list) or not choices or not all(isinstance(each, str) for each in choices):
        raise BadRow(FaultKind.BAD_ROW, f"choices is {shown(choices)}; it must be a list of texts")
    if not letter:
        raise BadRow(FaultKind.NO_ANSWER, "answer is empty or missing")
    letters = ascii_uppercase[: len(choices)]
    if letter not in tuple(letters):
        raise BadRow(FaultKind.BAD_ROW, f"answer is {shown(letter)}; it must be one of {letters}")
    context = text_of(row, "context")
    asked = with_options(f"Context: {context}\n{question}" if context else question, choices)
    return Asked(f"{asked}\n{ANSWER_WITH_A_LETTER}", (letter,), question)


def _document_names(row: Row) -> tuple[str, ...]:
    """Visual CoT calls a page by its document and number."""
    document, page = text_of(row, "ucsf_document_id"), text_of(row, "ucsf_document_page_no")
    return (f"{document}_{page}" if document and page else "", _path(row))


TEXTVQA = TrainingSet(
    name="TextVQA",
    split="train",
    licence="CC BY 4.0",
    columns={
        "image_id": _TEXT,
        "question_id": (*INTEGERS, "string"),
        "question": _TEXT,
        "image": _IMAGE,
        "answers": _TEXTS,
    },
    optional=(),
    id_column="question_id",
    split_column="set_name",
    ask=_plain,
    names=lambda row: (text_of(row, "image_id"), _path(row)),
)
DOCVQA = TrainingSet(
    name="DocVQA",
    split="DocVQA/train",
    licence="Apache-2.0 (card); the pages: terms of RRC and UCSF, research use",
    columns={"questionId": (*INTEGERS, "string"), "question": _TEXT, "image": _IMAGE, "answers": _TEXTS},
    optional=("ucsf_document_id", "ucsf_document_page_no"),
    id_column="questionId",
    split_column="data_split",
    ask=_plain,
    names=_document_names,
)
INFOGRAPHICVQA = TrainingSet(
    name="InfographicVQA",
    split="InfographicVQA/train",
    licence="Apache-2.0 (card); the pictures: terms of RRC, research use",
    columns={
        "questionId": (*INTEGERS, "string"),
        "question": _TEXT,
        "image": _IMAGE,
        "answers": _TEXTS,
        # Tells it from DocVQA, whose other columns it has.
        "answer_type": _TEXTS,
    },
    optional=("image_url",),
    id_column="questionId",
    split_column="data_split",
    ask=_plain,
    names=lambda row: (_path(row), PurePosixPath(urlsplit(text_of(row, "image_url")).path).name),
)
M3COT = TrainingSet(
    name="M3CoT",
    split="train",
    licence="CC BY-SA 4.0",
    columns={
        "id": _TEXT,
        "image_id": _TEXT,
        "question": _TEXT,
        "choices": _TEXTS,
        "context": _TEXT,
        "answer": _TEXT,
        "image": _IMAGE,
    },
    optional=(),
    id_column="id",
    split_column="split",
    ask=_choose,
    names=lambda row: (text_of(row, "image_id"), _path(row)),
)
