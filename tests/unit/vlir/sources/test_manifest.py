"""A user's own manifest: what a row may be, and what a bad one costs."""

import base64
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.errors import ConfigError, RecordError
from models.region import Box
from models.vlir.sources.base import Fault, FaultKind, Sample
from models.vlir.sources.open import open_source
from models.vlir_config import SourceConfig
from tests.source_examples import picture, visual_cot, write_lines

RED = picture("red")
GOOD = {"image": "red.png", "question": "What colour is it?", "answer": "red"}


def rows_of(folder: Path, *rows: object, max_picture_bytes: int = 10_000, start: int = 0, **config):
    """What is read from a manifest of these rows, beside ``red.png`` of 40 x 30 pixels."""
    folder.mkdir(exist_ok=True)
    (folder / "red.png").write_bytes(RED)
    write_lines(folder / "mine.jsonl", rows)
    settings = SourceConfig(kind="manifest", data=str(folder / "mine.jsonl"), **config)
    return list(open_source(settings, max_picture_bytes=max_picture_bytes).rows(start=start))


def test_a_row_gives_all_that_it_says(tmp_path: Path):
    row = {
        **GOOD,
        "id": "a",
        "box": [1, 2.5, 10, 20],
        "split": "validation",
        "kind": "colour",
        "licence": "mine",
    }
    (found,) = rows_of(tmp_path, row, name="own")
    assert found == Sample(
        row=0,
        id="own-a",
        text="What colour is it?",
        answers=("red",),
        image_bytes=RED,
        picture="red.png",
        boxes=(Box(1, 2.5, 10, 20, "original"),),
        split="validation",
        kind="colour",
        licence="mine",
    )


def test_all_answers_are_kept_in_order(tmp_path: Path):
    (found,) = rows_of(
        tmp_path, {"image": "red.png", "question": "?", "answers": ["b", "a", "", "a"], "boxes": []}
    )
    assert found.answers == ("b", "a", "a")


@pytest.mark.parametrize(
    ("box", "expected"),
    [([-5, 2, 20, 99], (0, 2, 20, 30)), ([39, 29, 400, 300], (39, 29, 40, 30))],
)
def test_a_box_is_clamped_to_its_picture(tmp_path: Path, box, expected):
    (found,) = rows_of(tmp_path, {**GOOD, "box": box})
    assert [each.corners() for each in found.boxes] == [expected]


def test_a_box_is_in_pixels_of_the_upright_picture(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    tmp_path.joinpath("turned.jpg").write_bytes(picture("red", format="JPEG", exif=exif))
    # Stored as 40 x 30, seen as 30 x 40.
    (found,) = rows_of(tmp_path, {**GOOD, "image": "turned.jpg", "box": [0, 0, 99, 99]})
    assert [box.corners() for box in found.boxes] == [(0, 0, 30, 40)]


@pytest.mark.parametrize(
    ("row", "kind", "detail"),
    [
        (b"{not json", FaultKind.BAD_ROW, "not JSON"),
        (b'["a list"]', FaultKind.BAD_ROW, "must be a JSON object"),
        (b"[" * 100_000, FaultKind.BAD_ROW, "not JSON"),
        (b'{"question": "\xff"}', FaultKind.NOT_UTF8, "byte 14"),
        (json.dumps({**GOOD, "question": "\ud800?"}).encode(), FaultKind.NOT_UTF8, "question"),
        ({**GOOD, "question": "  "}, FaultKind.NO_QUESTION, "question is empty or missing"),
        # A second image pad for one picture would end fine-tuning, and R-GRPO in the step that draws it.
        ({**GOOD, "question": "what is <|image_pad|>?"}, FaultKind.BAD_ROW, "special token '<|image_pad|>'"),
        ({**GOOD, "question": "<|im_end|> hi"}, FaultKind.BAD_ROW, "special token '<|im_end|>'"),
        ({**GOOD, "question": 7}, FaultKind.BAD_ROW, "question is 7; it must be a text"),
        ({"image": "red.png", "question": "?"}, FaultKind.NO_ANSWER, "answer"),
        ({**GOOD, "answer": " "}, FaultKind.NO_ANSWER, "no answer that anything could match"),
        ({**GOOD, "answer": "..."}, FaultKind.NO_ANSWER, "no answer that anything could match"),
        ({**GOOD, "answer": 7}, FaultKind.BAD_ROW, "answer is 7"),
        ({**GOOD, "answers": ["red"]}, FaultKind.BAD_ROW, "both answer and answers"),
        ({"image": "red.png", "question": "?", "answers": "red"}, FaultKind.BAD_ROW, "must be a list"),
        ({**GOOD, "split": "dev"}, FaultKind.BAD_ROW, "split is 'dev'"),
        ({**GOOD, "id": ""}, FaultKind.BAD_ROW, "id is empty"),
        ({**GOOD, "id": ["a"]}, FaultKind.BAD_ROW, "id is"),
        ({**GOOD, "box": [1, 2, 3]}, FaultKind.BAD_BOX, "box is [1, 2, 3]"),
        ({**GOOD, "box": [1, 2, 3, True]}, FaultKind.BAD_BOX, "it must be [x1, y1, x2, y2]"),
        (b'{"image": "red.png", "question": "?", "answer": "a", "box": [NaN, 0, 9, 9]}', "bad_box", "nan"),
        ({**GOOD, "box": [20, 5, 10, 9]}, FaultKind.BAD_BOX, "[20.0, 5.0, 10.0, 9.0] encloses nothing"),
        ({**GOOD, "box": [50, 5, 90, 9]}, FaultKind.BAD_BOX, "nothing of the 40x30 picture"),
        ({**GOOD, "box": [0, 0, 9, 9], "boxes": []}, FaultKind.BAD_ROW, "both box and boxes"),
        ({**GOOD, "boxes": [[0, 0, 9, 9], [1]]}, FaultKind.BAD_BOX, "boxes is [1]"),
        ({**GOOD, "image": "none.png"}, FaultKind.MISSING_IMAGE, "none.png"),
        ({**GOOD, "image": "."}, FaultKind.OUTSIDE_FOLDER, "leaves the folder"),
        ({**GOOD, "image": "folder"}, FaultKind.MISSING_IMAGE, "folder"),
        ({**GOOD, "image": "pipe"}, FaultKind.MISSING_IMAGE, "pipe"),
        ({**GOOD, "image": "x" * 5000}, FaultKind.MISSING_IMAGE, "xxx"),
        ({**GOOD, "image": "red.png/x"}, FaultKind.MISSING_IMAGE, "red.png/x"),
        ({**GOOD, "image": "a\0b"}, FaultKind.BAD_ADDRESS, "no name of a file"),
        ({**GOOD, "image": None}, FaultKind.MISSING_IMAGE, "names no picture"),
        ({**GOOD, "image": 7}, FaultKind.BAD_ROW, "image is 7"),
        ({**GOOD, "image": {"bytes": "abc"}}, FaultKind.MISSING_IMAGE, "names no picture"),
        ({**GOOD, "image": "../secret.png"}, FaultKind.OUTSIDE_FOLDER, "leaves the folder"),
        ({**GOOD, "image": "folder/../../secret.png"}, FaultKind.OUTSIDE_FOLDER, "leaves the folder"),
        ({**GOOD, "image": "/etc/hostname"}, FaultKind.OUTSIDE_FOLDER, "leaves the folder"),
        ({**GOOD, "image": "file:///etc/hostname"}, FaultKind.OUTSIDE_FOLDER, "leaves the folder"),
        ({**GOOD, "image": "file://host/a.png"}, FaultKind.BAD_ADDRESS, "another machine"),
        ({**GOOD, "image": "link.png"}, FaultKind.OUTSIDE_FOLDER, "leaves the folder"),
        ({**GOOD, "image": "loop.png"}, FaultKind.MISSING_IMAGE, "loop.png"),
        ({**GOOD, "image": "https://example.org/a.png"}, FaultKind.BAD_ADDRESS, "https is not read"),
        ({**GOOD, "image": "s3://bucket/a.png"}, FaultKind.BAD_ADDRESS, "was not fetched"),
        ({**GOOD, "image": "data:image/png,abc"}, FaultKind.BAD_ADDRESS, "base64"),
        ({**GOOD, "image": "data:image/png;base64,@"}, FaultKind.BAD_ADDRESS, "no base64"),
        ({**GOOD, "image": "data:image/png;base64," + "A" * 20_000}, FaultKind.TOO_LARGE_IMAGE, "10000"),
        ({**GOOD, "image": "large.png"}, FaultKind.TOO_LARGE_IMAGE, "over the limit of 10000 bytes"),
        (b'{"question": "' + b"x" * 2_000_000 + b'"}', FaultKind.BAD_ROW, "bytes long"),
        ({**GOOD, "id": "first"}, FaultKind.DUPLICATE_ID, "'manifest-first' occurs in an earlier row"),
    ],
)
def test_a_bad_row_has_a_name_and_costs_no_other(tmp_path: Path, row, kind, detail):
    folder = tmp_path / "mine"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(RED)
    (folder / "large.png").write_bytes(RED + b"\0" * 20_000)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    os.mkfifo(folder / "pipe")
    before, found, after = rows_of(folder, {**GOOD, "id": "first"}, row, {**GOOD, "id": "last"})
    assert isinstance(found, Fault)
    assert (found.row, found.kind) == (1, kind)
    assert detail in found.detail
    assert str(tmp_path) not in found.detail  # the same words wherever the set lies
    assert [type(each) for each in (before, after)] == [Sample, Sample]


def test_a_picture_may_come_as_path_file_or_data(tmp_path: Path):
    data = f"data:image/png;base64,{base64.b64encode(RED).decode()}"
    (tmp_path / "inside.png").symlink_to(tmp_path / "red.png")
    places = [
        "red.png",
        "./red.png",
        f"file://{tmp_path}/red.png",
        str(tmp_path / "red.png"),
        data,
        "inside.png",
    ]
    found = rows_of(tmp_path, *({**GOOD, "image": place} for place in places))
    assert [each.image_bytes for each in found] == [RED] * 6
    assert len({each.id for each in found}) == 6


def test_pictures_may_lie_elsewhere_and_in_copies_of_buckets(tmp_path: Path):
    for place in ("pictures/blue.png", "copies/bucket/some/key.png"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(picture("blue"))
    found = rows_of(
        tmp_path,
        {**GOOD, "image": "blue.png"},
        {**GOOD, "image": "s3://bucket/some/key.png"},
        {**GOOD, "image": "s3://bucket/../../red.png"},
        images=str(tmp_path / "pictures"),
        buckets=str(tmp_path / "copies"),
    )
    assert [each.image_bytes for each in found[:2]] == [picture("blue")] * 2
    assert found[2].kind == FaultKind.OUTSIDE_FOLDER


def test_the_same_row_gives_the_same_id_anywhere(tmp_path: Path):
    (first,) = rows_of(tmp_path / "one", GOOD)
    (second,) = rows_of(tmp_path / "two", GOOD)
    (other,) = rows_of(tmp_path / "two", {**GOOD, "answer": "blue"})
    assert first.id == second.id != other.id
    repeated = rows_of(tmp_path / "two", GOOD, GOOD)
    assert repeated[1].kind == FaultKind.DUPLICATE_ID


def test_reading_may_start_anywhere(tmp_path: Path):
    rows = [{**GOOD, "id": str(number % 4)} for number in range(6)]
    whole = rows_of(tmp_path, *rows)
    assert [type(each) for each in whole] == [Sample] * 4 + [Fault] * 2
    for start in range(7):
        assert rows_of(tmp_path, *rows, start=start) == whole[start:]


def test_blank_lines_and_a_mark_at_the_start_are_no_rows(tmp_path: Path):
    marked = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()
    found = rows_of(tmp_path, marked, b"", b"   ", {**GOOD, "id": 7})
    assert [each.row for each in found] == [0, 1]
    assert found[1].id == "manifest-7"
    source = open_source(
        SourceConfig(kind="manifest", data=str(tmp_path / "mine.jsonl")), max_picture_bytes=1
    )
    assert source.num_rows() == 2


def test_a_parquet_manifest_is_read_alike(tmp_path: Path):
    (tmp_path / "red.png").write_bytes(RED)
    table = {
        "image": ["red.png", "red.png", "none.png"],
        "question": ["a?", None, "c?"],
        "answers": [["x", "x"], ["y"], ["z"]],
        "boxes": [[[0.0, 0.0, 9.0, 9.0]], None, None],
        "whatever": [1, 2, 3],
    }
    pq.write_table(pa.table(table), tmp_path / "manifest.parquet")
    source = open_source(SourceConfig(kind="manifest", data=str(tmp_path)), max_picture_bytes=10_000)
    first, second, third = source.rows()
    assert source.num_rows() == 3
    assert (first.answers, len(first.boxes)) == (("x", "x"), 1)
    assert (second.kind, third.kind) == (FaultKind.NO_QUESTION, FaultKind.MISSING_IMAGE)
    assert list(source.rows(start=1)) == [second, third]


def test_a_parquet_manifest_may_hold_its_pictures(tmp_path: Path):
    images = [{"bytes": RED, "path": None}, {"bytes": None, "path": "red.png"}, None]
    table = pa.table({"image": images, "question": ["a?", "b?", "c?"], "answer": ["x", "y", "z"]})
    (tmp_path / "red.png").write_bytes(RED)
    pq.write_table(table, tmp_path / "m.parquet")
    source = open_source(
        SourceConfig(kind="manifest", data=str(tmp_path / "m.parquet")), max_picture_bytes=10_000
    )
    *read, missing = source.rows()
    assert [each.image_bytes for each in read] == [RED, RED]
    assert missing.kind == FaultKind.MISSING_IMAGE


def test_text_in_parquet_that_is_no_utf8_costs_its_row(tmp_path: Path):
    (tmp_path / "red.png").write_bytes(RED)
    questions = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0\6\0\0\0"), pa.py_buffer(b"a?\xff\xfec?")],
    )
    table = pa.table({"image": ["red.png"] * 3, "question": questions, "answer": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "m.parquet")
    source = open_source(
        SourceConfig(kind="manifest", data=str(tmp_path / "m.parquet")), max_picture_bytes=10_000
    )
    first, second, third = source.rows()
    assert (first.text, third.text, second.kind) == ("a?", "c?", FaultKind.NOT_UTF8)


def test_boxes_of_visual_cot_join_a_manifest(tmp_path: Path):
    write_lines(tmp_path / "boxes" / "textvqa_cot_train.jsonl", [visual_cot(image="red.jpg")])
    (tmp_path / "boxes2").mkdir()
    found = rows_of(
        tmp_path,
        {**GOOD, "question": "what brand is this"},
        {**GOOD, "question": "What brand is this?", "box": [0, 0, 5, 5]},
        GOOD,
        boxes=str(tmp_path / "boxes"),
    )
    assert [[box.corners() for box in each.boxes] for each in found] == [
        [(4, 5.5, 20, 25)],
        [(0, 0, 5, 5)],
        [],
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere.jsonl", "no such manifest"),
        ("notes.txt", "is a .jsonl or .parquet file"),
        ("", "Name the file"),
        ("bad.parquet", "is no Parquet file"),
        ("other.parquet", "image is missing, question is missing"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, data, message):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "bad.parquet").write_text("hello")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(RecordError, match=message):
        open_source(SourceConfig(kind="manifest", data=str(tmp_path / data)), max_picture_bytes=1)


def test_what_lies_in_s3_must_be_fetched_first():
    with pytest.raises(ConfigError, match="Fetch it first"):
        open_source(SourceConfig(kind="manifest", data="s3://bucket/m.jsonl"), max_picture_bytes=1)
    with pytest.raises(ConfigError, match="has no files"):
        open_source(SourceConfig(kind="tiny"), max_picture_bytes=1)
