"""TextVQA, DocVQA, InfographicVQA and M3CoT from files of their published schema."""

from pathlib import Path

import pyarrow as pa
import pytest

from models.errors import RecordError
from models.vlir.sources.base import Fault, FaultKind
from models.vlir.sources.open import open_source
from models.vlir_config import SourceConfig
from tests import source_examples as examples
from tests.source_examples import (
    docvqa,
    infographicvqa,
    m3cot,
    picture,
    stored,
    textvqa,
    visual_cot,
    write_lines,
    write_parquet,
)

SETS = {
    "textvqa": ("data", examples.TEXTVQA, textvqa, "question_id"),
    "docvqa": ("DocVQA", examples.DOCVQA, docvqa, "questionId"),
    "infographicvqa": ("InfographicVQA", examples.INFOGRAPHICVQA, infographicvqa, "questionId"),
    "m3cot": ("data", examples.M3COT, m3cot, "id"),
}


def put(folder: Path, kind: str, *rows: dict, name: str = "train-00000-of-00001", group: int = 1000) -> None:
    place, schema, _, _ = SETS[kind]
    write_parquet(folder / place / f"{name}.parquet", schema, rows, group=group)


def source_of(folder: Path, kind: str, **config):
    return open_source(SourceConfig(kind=kind, data=str(folder), **config), max_picture_bytes=100_000)


def read(folder: Path, kind: str, *, start: int = 0, **config) -> list:
    return list(source_of(folder, kind, **config).rows(start=start))


def test_textvqa_keeps_its_ten_answers(tmp_path: Path):
    put(tmp_path, "textvqa", textvqa())
    (found,) = read(tmp_path, "textvqa", name="scene text")
    assert found.id == "scene text-7"
    assert found.answers == ("nokia",) * 6 + ("Nokia", "nokia", "nokia 3310", "nokia")
    assert (found.text, found.picture) == ("what brand is this?", "0054c91397f2fe05")
    assert (found.image_bytes, found.boxes, found.split) == (picture("red"), (), "")


def test_two_configurations_may_lie_beside_each_other(tmp_path: Path):
    put(tmp_path, "docvqa", docvqa())
    put(tmp_path, "infographicvqa", infographicvqa())
    (page,), (graphic,) = read(tmp_path, "docvqa"), read(tmp_path, "infographicvqa")
    assert (page.id, page.answers, page.picture) == ("docvqa-337", ("1/8/93", "1/8/1993"), "xnbl0037_1")
    assert (graphic.id, graphic.answers) == ("infographicvqa-65718", ("facebook",))
    # The folder of one configuration is enough.
    assert read(tmp_path / "DocVQA", "docvqa") == [page]


def test_m3cot_shows_context_and_options_and_wants_a_letter(tmp_path: Path):
    put(tmp_path, "m3cot", m3cot(), m3cot(id="2", context="", choices=["yes", "no"], answer="A"))
    first, second = read(tmp_path, "m3cot")
    assert first.text == (
        "Context: Look at the three objects.\nWhich object conducts electricity best?\n"
        "A. wood\nB. copper\nC. glass\nAnswer with the option's letter from the given choices directly."
    )
    assert (first.answers, first.question) == (("B",), "Which object conducts electricity best?")
    assert "metal" not in first.text  # its rationale gives the answer away
    assert second.text.startswith("Which object conducts electricity best?\nA. yes\nB. no\n")


@pytest.mark.parametrize("kind", SETS)
def test_licences_are_the_sets_own_unless_another_is_named(tmp_path: Path, kind):
    put(tmp_path, kind, SETS[kind][2]())
    assert source_of(tmp_path, kind).licence
    assert source_of(tmp_path, kind, licence="ours").licence == "ours"


@pytest.mark.parametrize("kind", SETS)
def test_only_the_training_split_is_read(tmp_path: Path, kind):
    row, id_column = SETS[kind][2], SETS[kind][3]
    with pytest.raises(RecordError, match="no such file or folder"):
        source_of(tmp_path / "nowhere", kind)
    for name in ("validation-00000-of-00001", "test-00000-of-00001"):
        put(tmp_path, kind, row(), name=name)
    with pytest.raises(RecordError, match="Only the training split of"):
        source_of(tmp_path, kind)
    put(tmp_path, kind, row(**{id_column: "9" if id_column != "question_id" else 9}))
    assert [found.id for found in read(tmp_path, kind)] == [f"{kind}-9"]


@pytest.mark.parametrize(
    ("kind", "column"),
    [("textvqa", "set_name"), ("docvqa", "data_split"), ("infographicvqa", "data_split"), ("m3cot", "split")],
)
def test_a_row_of_another_split_is_an_error(tmp_path: Path, kind, column):
    put(tmp_path, kind, SETS[kind][2](), SETS[kind][2](**{SETS[kind][3]: None, column: "train"}))
    assert [type(found).__name__ for found in read(tmp_path, kind)] == ["Sample", "Fault"]
    put(tmp_path, kind, SETS[kind][2](**{column: "val"}))
    with pytest.raises(RecordError, match="of split 'val'"):
        read(tmp_path, kind)


@pytest.mark.parametrize("kind", SETS)
def test_the_columns_of_another_set_are_refused_by_name(tmp_path: Path, kind):
    place, schema, row, _ = SETS[kind]
    renamed = pa.schema([field.with_name("asked") if field.name == "question" else field for field in schema])
    write_parquet(tmp_path / place / "train-00000-of-00001.parquet", renamed, [row()])
    with pytest.raises(RecordError, match=r"question is missing\. It has .*asked"):
        source_of(tmp_path, kind)
    place_of_image = schema.get_field_index("image")
    plain = schema.set(place_of_image, pa.field("image", pa.string()))
    write_parquet(tmp_path / place / "train-00000-of-00001.parquet", plain, [row(image="a.png")])
    with pytest.raises(RecordError, match="image is string instead of image"):
        source_of(tmp_path, kind)


def test_docvqa_is_no_infographicvqa(tmp_path: Path):
    write_parquet(tmp_path / "train-00000-of-00001.parquet", examples.DOCVQA, [docvqa()])
    with pytest.raises(RecordError, match="answer_type is missing"):
        source_of(tmp_path, "infographicvqa")


@pytest.mark.parametrize(
    ("kind", "changes", "fault"),
    [
        ("textvqa", {"question": " "}, FaultKind.NO_QUESTION),
        ("textvqa", {"answers": []}, FaultKind.NO_ANSWER),
        ("textvqa", {"answers": None}, FaultKind.NO_ANSWER),
        ("textvqa", {"answers": ["", " "]}, FaultKind.NO_ANSWER),
        ("textvqa", {"image": None}, FaultKind.MISSING_IMAGE),
        ("docvqa", {"image": {"bytes": None, "path": "page.png"}}, FaultKind.MISSING_IMAGE),
        ("m3cot", {"answer": "D"}, FaultKind.BAD_ROW),
        ("m3cot", {"answer": "1"}, FaultKind.BAD_ROW),
        ("m3cot", {"answer": ""}, FaultKind.NO_ANSWER),
        ("m3cot", {"choices": []}, FaultKind.BAD_ROW),
        ("m3cot", {"choices": None}, FaultKind.BAD_ROW),
        ("m3cot", {"image": None}, FaultKind.MISSING_IMAGE),
    ],
)
def test_a_bad_row_costs_no_other(tmp_path: Path, kind, changes, fault):
    _, _, row, id_column = SETS[kind]
    ids = [1, 2, 3] if kind == "textvqa" else ["1", "2", "3"]
    put(tmp_path, kind, *(row(**{id_column: id}, **(changes if id in (2, "2") else {})) for id in ids))
    before, found, after = read(tmp_path, kind)
    assert (found.row, found.id, found.kind) == (1, f"{kind}-2", fault)
    assert not isinstance(before, Fault)
    assert not isinstance(after, Fault)


@pytest.mark.parametrize("group", [1, 3, 100])
def test_reading_may_start_anywhere_over_shards_and_row_groups(tmp_path: Path, group):
    rows = [textvqa(question_id=number % 9, question=f"{number}?") for number in range(12)]
    put(tmp_path, "textvqa", *rows[:5], name="train-00000-of-00002", group=group)
    put(tmp_path, "textvqa", *rows[5:], name="train-00001-of-00002", group=group)
    whole = read(tmp_path, "textvqa")
    assert source_of(tmp_path, "textvqa").num_rows() == 12
    assert [found.row for found in whole] == list(range(12))
    assert [found.row for found in whole if isinstance(found, Fault)] == [9, 10, 11]
    for start in range(13):
        assert read(tmp_path, "textvqa", start=start) == whole[start:]


def test_a_damaged_file_is_an_error_and_not_a_row(tmp_path: Path):
    put(tmp_path, "textvqa", *(textvqa(question_id=number) for number in range(3)))
    (path,) = (tmp_path / "data").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * 200 + whole[300:])
    with pytest.raises(RecordError, match="is damaged"):
        read(tmp_path, "textvqa")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match="is no Parquet file, or only a part of one"):
        read(tmp_path, "textvqa")


@pytest.mark.parametrize(
    ("kind", "row", "changes"),
    [
        ("textvqa", textvqa(), {}),
        (
            "docvqa",
            docvqa(image=stored()),
            {"image": "xnbl0037_1.png", "question": docvqa()["question"]},
        ),
        (
            "infographicvqa",
            infographicvqa(image=stored(path="20471.jpeg"), image_url=""),
            {"image": "20471.jpeg", "question": infographicvqa()["question"]},
        ),
        (
            "infographicvqa",
            infographicvqa(image=stored(path="x.png")),
            {"image": "20471.jpeg", "question": infographicvqa()["question"]},
        ),
        # Nobody kept its name: question, size and answer tell.
        (
            "infographicvqa",
            infographicvqa(image=stored(path="x.png"), image_url=""),
            {"image": "30.jpeg", "question": infographicvqa()["question"], "answer": "Facebook"},
        ),
    ],
)
def test_boxes_of_visual_cot_are_joined(tmp_path: Path, kind, row, changes):
    put(tmp_path / "set", kind, row)
    write_lines(tmp_path / "boxes" / "metadata" / "any_cot_train.jsonl", [visual_cot(**changes)])
    (found,) = read(tmp_path / "set", kind, boxes=str(tmp_path / "boxes"))
    assert [box.corners() for box in found.boxes] == [(4, 5.5, 20, 25)]


@pytest.mark.parametrize(
    "metadata",
    [
        [visual_cot(question="another one?")],
        [visual_cot(image="another.jpg", width=400, height=300)],
        [visual_cot(image="another.jpg", answer="samsung")],
        # Two pictures of this size have this question and answer.
        [visual_cot(image="another.jpg"), visual_cot(image="third.jpg", bboxs=[[0, 0, 9, 9]])],
    ],
)
def test_another_questions_boxes_are_not_joined(tmp_path: Path, metadata):
    put(tmp_path / "set", "textvqa", textvqa())
    write_lines(tmp_path / "boxes" / "textvqa_cot_train.jsonl", metadata)
    (found,) = read(tmp_path / "set", "textvqa", boxes=str(tmp_path / "boxes"))
    assert (found.boxes, found.num_dropped_boxes) == ((), 0)


def test_a_joined_box_that_encloses_nothing_is_dropped_and_counted(tmp_path: Path):
    put(tmp_path / "set", "textvqa", textvqa())
    row = visual_cot(bboxs=[[50, 50, 60, 60], [-4, 2, 10, 99]])
    write_lines(tmp_path / "boxes" / "textvqa_cot_train.jsonl", [row, b"damaged", visual_cot(bboxs=7)])
    (found,) = read(tmp_path / "set", "textvqa", boxes=str(tmp_path / "boxes"))
    assert [box.corners() for box in found.boxes] == [(0, 2, 10, 30)]
    assert found.num_dropped_boxes == 1
