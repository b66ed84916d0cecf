"""VSR: captions about COCO's pictures, true or false."""

from pathlib import Path

import pytest

from models.errors import ConfigError, RecordError
from models.vlir.sources.base import FaultKind
from models.vlir.sources.open import open_source
from models.vlir_config import SourceConfig
from tests.source_examples import picture, visual_cot, vsr, write_lines

JPEG = picture("red", format="JPEG")


def read(folder: Path, *rows: object, place: str = "train2017", **config) -> list:
    (folder / "coco" / place).mkdir(parents=True, exist_ok=True)
    (folder / "coco" / place / "000000085637.jpg").write_bytes(JPEG)
    write_lines(folder / "vsr" / "train.jsonl", rows)
    config = {"data": str(folder / "vsr"), "images": str(folder / "coco")} | config
    source = open_source(SourceConfig(kind="vsr", **config), max_picture_bytes=100_000)
    found = list(source.rows())
    assert source.num_rows() == len(found)
    return found


def test_a_caption_becomes_a_question_of_yes_or_no(tmp_path: Path):
    true, false = read(tmp_path, vsr(), vsr(caption="The dog is on the cat.", label=0))
    assert (true.answers, false.answers) == (("yes",), ("no",))
    assert true.text == (
        "Is this statement about the picture true? The cat is at the right side of the dog. Answer yes or no."
    )
    assert (true.question, true.image_bytes) == ("The cat is at the right side of the dog.", JPEG)
    assert true.id != false.id


@pytest.mark.parametrize("place", ["", "train2017", "val2017"])
def test_a_picture_is_looked_up_as_coco_unpacks(tmp_path: Path, place):
    (found,) = read(tmp_path, vsr(), place=place)
    assert found.image_bytes == JPEG


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (vsr(caption=""), FaultKind.NO_QUESTION),
        (vsr(caption="x", label=None), FaultKind.NO_ANSWER),
        (vsr(caption="x", label=2), FaultKind.BAD_ROW),
        (vsr(caption="x", label=True), FaultKind.BAD_ROW),
        (vsr(image="000000000001.jpg"), FaultKind.MISSING_IMAGE),
        (vsr(image=""), FaultKind.MISSING_IMAGE),
        (vsr(image="../vsr/train.jsonl"), FaultKind.OUTSIDE_FOLDER),
        (vsr(), FaultKind.DUPLICATE_ID),
        (b"\xff", FaultKind.NOT_UTF8),
    ],
)
def test_a_bad_row_costs_no_other(tmp_path: Path, row, kind):
    before, found, after = read(tmp_path, vsr(), row, vsr(caption="Another."))
    assert found.kind == kind
    assert before.answers == after.answers == ("yes",)


def test_only_the_training_file_is_read(tmp_path: Path):
    read(tmp_path, vsr())
    (tmp_path / "vsr" / "train.jsonl").rename(tmp_path / "vsr" / "dev.jsonl")
    for data in ("vsr", "vsr/dev.jsonl"):
        with pytest.raises(RecordError):
            open_source(
                SourceConfig(kind="vsr", data=str(tmp_path / data), images=str(tmp_path / "coco")),
                max_picture_bytes=1,
            )


def test_another_file_or_no_folder_of_pictures_is_refused(tmp_path: Path):
    with pytest.raises(RecordError, match=r"caption is missing, label is missing\. They have question"):
        read(tmp_path, visual_cot())
    with pytest.raises(ConfigError, match="needs images"):
        read(tmp_path, vsr(), images="")
