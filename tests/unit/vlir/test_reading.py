"""Rows into splits: nothing twice, nothing in two splits, and a choice that is stable."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from PIL import Image

from models.config import SourceConfig, TeacherConfig, VLIRConfig
from models.errors import RecordError
from models.records import png_bytes
from models.vlir.entries import Loading, Ready
from models.vlir.leakage import HeldOut
from models.vlir.reading import TEST, TRAIN, VALIDATION, Survey, entry_of, read_rows, split_of, survey
from models.vlir.sources.base import Fault, FaultKind, Sample

SOURCE = SourceConfig(kind="manifest", data="unused")
CONFIG = VLIRConfig(
    sources=(SOURCE,), teacher=TeacherConfig(kind="vllm", model="x"), validation_share=0.1, test_share=0.2
)


@dataclass
class Rows:
    """A source in memory."""

    found: list[Sample | Fault]
    label: str = "mine"
    licence: str = "mine to use"

    def num_rows(self) -> int:
        return len(self.found)

    def rows(self, *, start: int = 0) -> Iterator[Sample | Fault]:
        yield from self.found[start:]


def sample(number: int, **changes: object) -> Sample:
    data = png_bytes(Image.new("RGB", (64, 64), (number % 256, number // 256, 9)))
    made = Sample(number, f"q{number}", f"question {number}", ("yes",), data, f"{number}.png")
    return replace(made, **changes)


def look_at(found: list[Sample | Fault], *, wanted: int = 5, source: SourceConfig = SOURCE) -> Survey:
    return survey(
        [(source, Rows(found))],
        CONFIG,
        held_out=HeldOut(),
        num_wanted={TRAIN: wanted, VALIDATION: wanted, TEST: wanted},
        seed=0,
        on_row=lambda: None,
    )


def test_the_digest_of_a_picture_decides_its_split() -> None:
    rows = list(read_rows([(SOURCE, Rows([sample(number) for number in range(600)]))], CONFIG))
    shares = Counter(row.split for row in rows)
    assert shares[TEST] == pytest.approx(120, abs=30)
    assert shares[VALIDATION] == pytest.approx(60, abs=25)
    assert {row.split for row in rows if row.split == split_of(row.picture_sha256, CONFIG)} == set(shares)
    again = sample(0, id="other", text="another question about the same picture")
    (first, second) = read_rows([(SOURCE, Rows([sample(0), again]))], CONFIG)
    assert first.split == second.split
    assert first.key != second.key


def test_a_split_of_the_user_stands() -> None:
    found = [sample(number, split="test") for number in range(5)]
    assert {row.split for row in read_rows([(SOURCE, Rows(found))], CONFIG)} == {TEST}


def test_a_picture_in_two_splits_is_an_error() -> None:
    with pytest.raises(RecordError, match="both in 'train' and in 'test'"):
        look_at([sample(1, split="train"), sample(1, id="other", split="test")])


def test_an_id_is_used_once_over_all_sources() -> None:
    one, two = Rows([sample(1), sample(2)]), Rows([sample(3, id="q1"), sample(4)], label="other")
    found = [row.found for row in read_rows([(SOURCE, one), (SOURCE, two)], CONFIG)]
    assert [isinstance(each, Fault) for each in found] == [False, False, True, False]
    assert found[2].kind is FaultKind.DUPLICATE_ID


def test_a_limit_counts_usable_rows() -> None:
    bad = Fault(0, "bad", FaultKind.NO_ANSWER, "empty")
    limited = SOURCE.model_copy(update={"num_questions": 2})
    found = look_at([bad, sample(1), sample(2), sample(3)], source=limited)
    assert (found.sources["mine"].num_rows, found.sources["mine"].num_usable) == (3, 2)


def test_a_row_more_changes_few_of_the_chosen() -> None:
    rows = [sample(number, split="train") for number in range(200)]
    before = look_at(rows, wanted=50).chosen[TRAIN]
    after = look_at([*rows, sample(200, split="train")], wanted=50).chosen[TRAIN]
    assert len(before) == len(after) == 50
    assert len(before & after) >= 49
    assert look_at(rows, wanted=50).chosen[TRAIN] == before


def test_the_digest_of_a_source_is_that_of_its_rows() -> None:
    rows = [sample(number) for number in range(4)]
    digest = look_at(rows).digest
    assert look_at(rows).digest == digest
    assert look_at([*rows, sample(5)]).digest != digest
    assert look_at([replace(rows[0], answers=("no",)), *rows[1:]]).digest != digest


def test_a_loaded_row_is_a_question_with_the_prompt_of_its_source(look) -> None:
    (row,) = read_rows([(SOURCE, Rows([sample(1)]))], CONFIG)
    ready = entry_of(row).material.load(Loading(look, CONFIG, HeldOut()))
    assert isinstance(ready, Ready)
    assert ready.prompt_id == "listing-1"
    assert ready.question.text == "question 1"
    assert ready.asked.prompt.text.endswith("question 1")
    assert ready.asked.prompt.system is None
    assert ready.question.licence == "mine to use"
    ours = CONFIG.model_copy(update={"teacher": CONFIG.teacher.model_copy(update={"prompts": "look-again"})})
    ready = entry_of(row).material.load(Loading(look, ours, HeldOut()))
    assert (ready.prompt_id, ready.asked.prompt.text) == ("question", "question 1")
    assert ready.asked.prompt.system == look.system
