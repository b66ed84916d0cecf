"""Questions and rationale records on disk."""

import io
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.errors import RecordError
from models.records import (
    Question,
    RationaleStep,
    Verdict,
    VLIRRecord,
    read_questions,
    read_records,
    write_questions,
    write_records,
)
from models.region import Box


def _question(name: str = "q1") -> Question:
    question = Question.of_image(Image.new("RGB", (40, 30), (1, 2, 3)), "what?", id=name, answers=["a", "b"])
    return replace(question, gold_boxes=(Box(1, 2, 3.5, 4, "original"),), kind="read", licence="CC0")


def _record() -> VLIRRecord:
    return VLIRRecord(
        question=_question(),
        steps=(
            RationaleStep('<think>look {"bbox_2d": [1, 2, 30, 40]}', Box(1, 2, 30, 40, "seen")),
            RationaleStep("</think><answer>a</answer>"),
        ),
        final_answer="a",
        seen_size=(112, 84),
        teacher="scripted",
        prompt_id="listing-1",
        verdicts=(Verdict("coherence", "yes", "fine"),),
    )


def test_records_survive_the_round_trip(tmp_path):
    assert write_records(tmp_path / "r.parquet", [_record()]) == 1
    assert read_records(tmp_path / "r.parquet") == [_record()]


def test_a_folder_is_read_in_name_order(tmp_path):
    write_questions(tmp_path / "b.parquet", [_question("2")])
    write_questions(tmp_path / "a.parquet", [_question("1")])
    assert [question.id for question in read_questions(tmp_path)] == ["1", "2"]


def test_the_same_records_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_records(tmp_path / f"{name}.parquet", [_record()])
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_an_unknown_schema_version_is_refused(tmp_path):
    path = tmp_path / "q.parquet"
    write_questions(path, [_question()])
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"schema_version": "vlir/99"}), path)
    with pytest.raises(RecordError, match=r"vlir/99.*vlir/1"):
        read_questions(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    write_questions(tmp_path / "q.parquet", [_question()])
    with pytest.raises(RecordError, match=r"steps.*are missing"):
        read_records(tmp_path / "q.parquet")
    with pytest.raises(RecordError, match="no Parquet file"):
        read_records(tmp_path / "nothing")


def test_a_damaged_picture_is_noticed(tmp_path):
    write_questions(tmp_path / "q.parquet", [replace(_question(), image_sha256="0" * 64)])
    with pytest.raises(RecordError, match=r"'q1'.*sha256 differs"):
        read_questions(tmp_path / "q.parquet")


def test_a_picture_that_does_not_decode_or_fit_is_named():
    with pytest.raises(RecordError, match=r"'q1'.*does not decode"):
        replace(_question(), image_bytes=b"junk").image()
    with pytest.raises(RecordError, match=r"is 40x30.*says 41x30"):
        replace(_question(), width=41).image()


def test_a_picture_taken_sideways_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter turn to see it upright
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG", exif=exif)
    question = Question.of_image(Image.open(buffer), "what?")
    assert (question.width, question.height) == (30, 40)
    assert question.image().size == (30, 40)


def test_a_record_knows_its_text_and_boxes():
    assert _record().text == '<think>look {"bbox_2d": [1, 2, 30, 40]}</think><answer>a</answer>'
    assert _record().boxes == (Box(1, 2, 30, 40, "seen"),)
