import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.errors import RecordError
from models.records import (
    SCHEMA_VERSION,
    Question,
    RationaleStep,
    Verdict,
    VLIRRecord,
    png_bytes,
    read_questions,
    read_records,
    sha256,
    write_questions,
    write_records,
)
from models.region import Box, PixelBudget, Size

BUDGET = PixelBudget(min_pixels=3136, max_pixels=12544)
BOX = Box(28.0, 28.0, 56.0, 56.5, "seen")


def question(id="q1", **changes) -> Question:
    data = png_bytes(Image.new("RGB", (8, 6), (200, 10, 10)))
    made = Question(
        id=id,
        source="tiny",
        split="train",
        kind="read",
        image_bytes=data,
        image_sha256=sha256(data),
        width=8,
        height=6,
        text="what code is on the réd card?",
        answers=("K7", "k 7"),
        gold_boxes=(Box(1, 2, 3.5, 4, "original"), Box(0, 0, 8, 6, "original")),
        licence="ours",
    )
    return replace(made, **changes)


def record(id="q1", **changes) -> VLIRRecord:
    made = VLIRRecord(
        question=question(id),
        steps=(RationaleStep("<think>Look.", BOX), RationaleStep(" K7</think><answer>K7</answer>")),
        final_answer="K7",
        seen_size=(112, 84),
        teacher="embedded",
        prompt_id="p1",
        verdicts=(Verdict("semantic_unit", "yes", "one card"), Verdict("coherence", "unclear")),
        reason="",
    )
    return replace(made, **changes)


def test_questions_survive_a_file(tmp_path: Path):
    questions = [question("q1"), question("q2", gold_boxes=(), answers=(), kind="", licence="")]
    assert write_questions(tmp_path / "deep" / "questions.parquet", questions) == 2
    assert read_questions(tmp_path / "deep" / "questions.parquet") == questions


def test_records_survive_a_file(tmp_path: Path):
    records = [record("q1"), record("q2", verdicts=(), reason="wrong answer", steps=())]
    assert write_records(tmp_path / "records.parquet", records) == 2
    assert read_records(tmp_path / "records.parquet") == records


def test_more_rows_than_one_batch_keep_their_order(tmp_path: Path):
    questions = [question(f"q{i}") for i in range(1200)]  # batches have 512 rows when written, 256 when read
    write_questions(tmp_path / "questions.parquet", questions)
    assert [one.id for one in read_questions(tmp_path / "questions.parquet")] == [
        f"q{i}" for i in range(1200)
    ]


def test_a_folder_is_read_in_name_order(tmp_path: Path):
    write_records(tmp_path / "shard-1.parquet", [record("b")])
    write_records(tmp_path / "shard-0.parquet", [record("a")])
    assert [one.question.id for one in read_records(tmp_path)] == ["a", "b"]


def test_the_same_questions_give_the_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        write_questions(tmp_path / name, [question("q1"), question("q2")])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_empty_set_is_a_file_too(tmp_path: Path):
    assert write_records(tmp_path / "none.parquet", []) == 0
    assert read_records(tmp_path / "none.parquet") == []


def test_the_file_says_which_schema_it_has(tmp_path: Path):
    write_questions(tmp_path / "q.parquet", [question()])
    metadata = pq.read_schema(tmp_path / "q.parquet").metadata
    assert metadata[b"schema_version"] == SCHEMA_VERSION.encode()


@pytest.mark.parametrize("version", ["vlir/0", "vlir/2", None])
def test_an_unknown_schema_version_is_refused(tmp_path: Path, version):
    write_questions(tmp_path / "q.parquet", [question()])
    table = pq.read_table(tmp_path / "q.parquet")
    metadata = None if version is None else {"schema_version": version}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "q.parquet")
    with pytest.raises(RecordError, match=f"{version or 'none'}.*knows 'vlir/1'"):
        read_questions(tmp_path / "q.parquet")


def test_questions_are_no_records(tmp_path: Path):
    write_questions(tmp_path / "q.parquet", [question()])
    with pytest.raises(RecordError, match=r"'steps'.*are missing"):
        read_records(tmp_path / "q.parquet")


def test_records_can_be_read_as_questions(tmp_path: Path):
    write_records(tmp_path / "r.parquet", [record()])
    assert read_questions(tmp_path / "r.parquet") == [question()]


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RecordError, match=r"nowhere\.parquet: no Parquet file"):
        read_records(tmp_path / "nowhere.parquet")
    with pytest.raises(RecordError, match="no Parquet file"):
        read_records(tmp_path)  # an empty folder


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "r.parquet").write_text("id,answer\n")
    with pytest.raises(RecordError, match="not a Parquet file"):
        read_records(tmp_path / "r.parquet")


def test_a_damaged_picture_is_noticed(tmp_path: Path):
    write_questions(tmp_path / "q.parquet", [question(image_sha256="0" * 64)])
    with pytest.raises(RecordError, match=r"'q1'.*sha256"):
        read_questions(tmp_path / "q.parquet")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "q.parquet"
    write_questions(path, [question("old")])

    def failing():
        yield question("new")
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="disk"):
        write_questions(path, failing())
    assert [one.id for one in read_questions(path)] == ["old"]


def test_the_picture_is_decoded():
    image = question().image()
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (8, 6), (200, 10, 10))


def test_a_view_needs_the_header_alone():
    asked = question()
    cut = replace(asked, image_bytes=asked.image_bytes[:50])
    assert cut.view(BUDGET).original == Size(8, 6)
    with pytest.raises(RecordError, match="does not decode"):
        cut.image()
    with pytest.raises(RecordError, match="the record says 9x6"):
        question(width=9).view(BUDGET)


def test_a_picture_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(RecordError, match="'q1': its picture does not decode"):
        question().image()


def test_bytes_that_are_no_picture_are_refused():
    with pytest.raises(RecordError, match="'q1': its picture does not decode"):
        question(image_bytes=b"junk").image()


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(RecordError, match="is 8x6, the record says 9x6"):
        question(width=9).image()


def test_a_question_about_a_picture_in_memory():
    asked = Question.of_image(Image.new("L", (5, 7), 9), "what?", answers=["nothing"])
    assert (asked.width, asked.height, asked.answers) == (5, 7, ("nothing",))
    assert asked.image().getpixel((0, 0)) == (9, 9, 9)


def test_pixels_of_16_bits_and_transparent_ones_are_read_right():
    deep = Image.fromarray(np.full((4, 4), 0x4020, dtype=np.uint16))
    assert Question.of_image(deep, "what?").image().getpixel((0, 0)) == (0x40,) * 3
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert Question.of_image(clear, "what?").image().getpixel((0, 0)) == (255, 255, 255)
    file = io.BytesIO()
    deep.save(file, "PNG")
    stored = question(image_bytes=file.getvalue(), width=4, height=4)
    assert stored.image().getpixel((0, 0)) == (0x40,) * 3


def test_a_photograph_is_turned_upright():
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    image.info["exif"] = exif.tobytes()
    asked = Question.of_image(image, "what?")
    assert (asked.width, asked.height) == (2, 4)


def test_the_parts_of_a_record():
    assert record().boxes == (BOX,)
    assert record().text == "<think>Look. K7</think><answer>K7</answer>"
