"""Visual CoT as a source of its own, from its JSONL files and from LLaVA's form of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError, RecordError
from models.vlir.sources.base import FaultKind
from models.vlir.sources.open import open_source
from models.vlir_config import SourceConfig
from tests.source_examples import picture, visual_cot, write_lines

REQUEST = (
    " Please provide the bounding box coordinate of the region that can help you answer the question better."
)


def read(folder: Path, data: str, *, start: int = 0) -> list:
    for place in ("textvqa/0054c91397f2fe05.jpg", "cot/gqa/7.jpg"):
        (folder / "pictures" / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / "pictures" / place).write_bytes(picture(format="JPEG"))
    config = SourceConfig(kind="visual_cot", data=str(folder / data), images=str(folder / "pictures"))
    source = open_source(config, max_picture_bytes=100_000)
    found = list(source.rows(start=start))
    assert source.num_rows() == start + len(found)
    return found


def conversation(images: object, *turns: str) -> dict[str, Any]:
    speakers = ("human", "gpt") * 2
    said = [{"from": speaker, "value": turn} for speaker, turn in zip(speakers, turns, strict=False)]
    return {"image": images, "conversations": said}


def corners(found) -> list:
    return [box.corners() for box in found.boxes]


def test_rows_of_all_files_are_read_in_name_order(tmp_path: Path):
    write_lines(tmp_path / "metadata/textvqa_cot_train.jsonl", [visual_cot()])
    write_lines(
        tmp_path / "metadata/gqa_cot_train.jsonl",
        [visual_cot(image="7.jpg", dataset="gqa", answer=["a", "b"], bboxs=[], full_answer="A b.")],
    )
    first, second = read(tmp_path, "metadata")
    assert (first.answers, corners(first), first.picture) == (("a", "b"), [], "gqa/7.jpg")
    assert (second.text, corners(second)) == ("What brand is this?", [(4, 5.5, 20, 25)])
    assert read(tmp_path, "metadata", start=1) == [second]
    assert second.id.startswith("visual_cot-textvqa-")


def test_textcaps_has_the_pictures_of_textvqa(tmp_path: Path):
    write_lines(tmp_path / "textcap_cot_train.jsonl", [visual_cot(dataset="textcap")])
    (found,) = read(tmp_path, "textcap_cot_train.jsonl")
    assert found.image_bytes == picture(format="JPEG")


@pytest.mark.parametrize(
    ("boxes", "expected", "num_dropped"),
    [
        ([[-3, -3, 10, 10]], [(0, 0, 10, 10)], 0),
        ([[30, 20, 80, 80]], [(30, 20, 40, 30)], 0),
        ([[586, 4435, 1083, 4517]], [], 1),
        ([[20, 5, 10, 9], [0, 0, 5, 5]], [(0, 0, 5, 5)], 1),
    ],
)
def test_boxes_out_of_range_are_clamped_or_dropped(tmp_path: Path, boxes, expected, num_dropped):
    write_lines(tmp_path / "dude_cot_train.jsonl", [visual_cot(bboxs=boxes)])
    (found,) = read(tmp_path, "dude_cot_train.jsonl")
    assert (corners(found), found.num_dropped_boxes) == (expected, num_dropped)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (visual_cot(question=""), FaultKind.NO_QUESTION),
        (visual_cot(answer=""), FaultKind.NO_ANSWER),
        (visual_cot(image="none.jpg"), FaultKind.MISSING_IMAGE),
        (visual_cot(image="../../secret.jpg"), FaultKind.OUTSIDE_FOLDER),
        (visual_cot(question="other", bboxs=[[1, 2, 3]]), FaultKind.BAD_BOX),
        (visual_cot(question="other", bboxs="none"), FaultKind.BAD_BOX),
        (visual_cot(), FaultKind.DUPLICATE_ID),
        (b"{", FaultKind.BAD_ROW),
    ],
)
def test_a_bad_row_costs_no_other(tmp_path: Path, row, kind):
    (tmp_path / "secret.jpg").write_bytes(picture(format="JPEG"))
    write_lines(tmp_path / "textvqa_cot_train.jsonl", [visual_cot(), row, visual_cot(question="last?")])
    before, found, after = read(tmp_path, "textvqa_cot_train.jsonl")
    assert found.kind == kind
    assert corners(before) == corners(after) == [(4, 5.5, 20, 25)]


def test_conversations_give_pixels_or_shares_of_the_padded_square(tmp_path: Path):
    path = "cot/textvqa/0054c91397f2fe05.jpg"
    asked = f"<image>\nWhat brand is this?{REQUEST}"
    turns = (asked, "[0.1, 0.25, 0.5, 0.75]", "<image>", "nokia")
    rows = [
        conversation([path, f"{path}###[4, 5, 20, 25]"], *turns),
        # No pixels: 40 x 30 was padded to 40 x 40, so 0.25 of the side is 0.25 * 40 - 5 = 5.
        conversation([path], asked.replace("brand", "make"), *turns[1:]),
        conversation(path, "<image>\nDescribe it.", "a phone"),
        {"conversations": []},
    ]
    (tmp_path / "viscot_363k.json").write_text(json.dumps(rows))
    pixels, shares, plain, bad = read(tmp_path, "viscot_363k.json")
    assert (pixels.text, pixels.answers) == ("What brand is this?", ("nokia",))
    assert corners(pixels) == corners(shares) == [(4, 5, 20, 25)]
    assert (plain.text, plain.answers, plain.boxes) == ("Describe it.", ("a phone",), ())
    assert bad.kind == FaultKind.BAD_ROW


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("docvqa_cot_val.jsonl", "only the training split of Visual CoT"),
        ("viscot_benchmark_test.json", "only the training split of Visual CoT"),
        ("empty", "no metadata of Visual CoT"),
        ("other_cot_train.jsonl", "bboxs is missing"),
        ("broken.json", "no JSON list of conversations"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name, message):
    (tmp_path / "empty").mkdir()
    if name != "empty":
        (tmp_path / name).write_text('{"image": "a.jpg", "question": "?", "answer": "b"}\n')
    with pytest.raises(RecordError, match=message):
        read(tmp_path, name)


def test_a_row_of_another_split_is_an_error(tmp_path: Path):
    write_lines(tmp_path / "a_cot_train.jsonl", [visual_cot(), visual_cot(split="val")])
    with pytest.raises(RecordError, match="row 1 of Visual CoT is of split 'val'"):
        read(tmp_path, "a_cot_train.jsonl")


def test_its_pictures_lie_in_a_folder_that_must_be_named(tmp_path: Path):
    write_lines(tmp_path / "a_cot_train.jsonl", [visual_cot()])
    with pytest.raises(ConfigError, match="needs images"):
        open_source(SourceConfig(kind="visual_cot", data=str(tmp_path)), max_picture_bytes=1)
