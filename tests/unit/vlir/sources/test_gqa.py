"""GQA: questions joined with pictures, and objects' boxes from scene graphs."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from models.errors import RecordError
from models.vlir.sources.base import FaultKind
from models.vlir.sources.gqa import object_ids
from models.vlir.sources.open import open_source
from models.vlir_config import SourceConfig
from tests.source_examples import (
    GQA_IMAGES,
    GQA_INSTRUCTIONS,
    gqa,
    picture,
    stored,
    visual_cot,
    write_lines,
    write_parquet,
)

COLOURS = {"b": "blue", "a": "red", "c": "green"}
GRAPHS = {
    "a": {
        "width": 40,
        "height": 30,
        "objects": {
            "1058498": {"name": "lamp", "x": 5, "y": 6, "w": 10, "h": 8, "attributes": [], "relations": []},
            "1058507": {"name": "desk", "x": 35, "y": 6, "w": 10, "h": 8},
            "1058508": {"name": "dot", "x": 60, "y": 6, "w": 0, "h": 8},
        },
    },
    "b": {"width": 40, "height": 30, "objects": {}},
}


def make(folder: Path, *rows: dict, images: dict[str, str] = COLOURS, group: int = 1) -> None:
    pictures = [{"id": id, "image": stored(colour)} for id, colour in images.items()]
    write_parquet(folder / "train_balanced_instructions/train-00000-of-00001.parquet", GQA_INSTRUCTIONS, rows)
    write_parquet(
        folder / "train_balanced_images/train-00000-of-00001.parquet", GQA_IMAGES, pictures, group=group
    )
    (folder / "train_sceneGraphs.json").write_text(json.dumps(GRAPHS))


def source_of(folder: Path, **config):
    return open_source(SourceConfig(kind="gqa", data=str(folder), **config), max_picture_bytes=100_000)


@pytest.mark.parametrize("group", [1, 2, 10])
def test_questions_come_in_rounds_over_the_pictures(tmp_path: Path, group):
    asked = ["a", "a", "b", "zz", "c", "a", "b"]
    make(tmp_path, *(gqa(str(number), image) for number, image in enumerate(asked)), group=group)
    source = source_of(tmp_path)
    whole = list(source.rows())
    # Pictures lie in the order b, a, c.
    assert [each.id for each in whole] == [f"gqa-{number}" for number in (2, 0, 4, 6, 1, 5, 3)]
    assert [each.row for each in whole] == list(range(7))
    for found in whole[:6]:
        assert found.image_bytes == picture(COLOURS[found.picture])
    assert whole[6].kind == FaultKind.MISSING_IMAGE
    assert source.num_rows() == 7
    for start in range(8):
        assert list(source.rows(start=start)) == whole[start:]


def test_boxes_are_those_of_the_answer_first(tmp_path: Path):
    make(
        tmp_path,
        gqa("1", "a", "1058507", "1058498"),
        gqa("2", "a", "1058508", "1058498"),
        gqa("3", "a", "404"),
        gqa("4", "b", "1058507"),
    )
    found = {each.id: each for each in source_of(tmp_path, scene_graphs=str(tmp_path)).rows()}
    # xywh becomes two corners, cut off at the picture's 40 pixels.
    assert [box.corners() for box in found["gqa-1"].boxes] == [(35, 6, 40, 14), (5, 6, 15, 14)]
    assert [box.corners() for box in found["gqa-2"].boxes] == [(5, 6, 15, 14)]
    assert found["gqa-2"].num_dropped_boxes == 1
    assert found["gqa-3"].boxes == found["gqa-4"].boxes == ()
    assert all(each.boxes == () for each in source_of(tmp_path).rows())


@pytest.mark.parametrize(
    "annotations",
    [
        {"answer": {"0": "7"}, "fullAnswer": {"2:3": "7", "5": "8"}, "question": {"4": "9"}},
        {
            "answer": [("0", "7")],
            "fullAnswer": [["2:3", "7"], ["5", "8"]],
            "question": [("4", "9")],
        },
    ],
)
def test_annotations_are_read_in_every_form(annotations):
    found = object_ids(annotations)
    assert [each for each in found if each in ("7", "8", "9")] == ["7", "8", "9"]
    assert object_ids(None) == object_ids({"answer": None}) == []


def test_boxes_of_visual_cot_win_over_scene_graphs(tmp_path: Path):
    make(tmp_path, gqa("1", "a", "1058498"), gqa("2", "a", "1058498", question="And this?"))
    row = visual_cot(question="What is on the desk?", image="a.jpg", dataset="gqa", bboxs=[[1, 1, 9, 9]])
    write_lines(tmp_path / "gqa_cot_train.jsonl", [row])
    first, second = source_of(tmp_path, scene_graphs=str(tmp_path), boxes=str(tmp_path)).rows()
    assert [box.corners() for box in first.boxes] == [(1, 1, 9, 9)]
    assert [box.corners() for box in second.boxes] == [(5, 6, 15, 14)]


def test_a_bad_row_costs_no_other(tmp_path: Path):
    make(
        tmp_path,
        gqa("1", "a"),
        gqa("2", "a", question=""),
        gqa("3", "a", answer=None),
        gqa("1", "a"),
        gqa("4", "a"),
    )
    found = list(source_of(tmp_path).rows())
    assert [getattr(each, "kind", "") or "" for each in found] == [
        "",
        FaultKind.NO_QUESTION,
        FaultKind.NO_ANSWER,
        FaultKind.DUPLICATE_ID,
        "",
    ]


def test_pictures_may_lie_in_a_folder_of_their_own(tmp_path: Path):
    make(tmp_path, gqa("1", "a"))
    (tmp_path / "train_balanced_images").rename(tmp_path / "elsewhere")
    with pytest.raises(RecordError, match="no Parquet file of split"):
        source_of(tmp_path)
    (found,) = source_of(tmp_path, images=str(tmp_path / "elsewhere")).rows()
    assert found.image_bytes == picture("red")


def test_other_splits_are_refused(tmp_path: Path):
    make(tmp_path, gqa("1", "a"))
    graphs = tmp_path / "val_sceneGraphs.json"
    graphs.write_text("{}")
    with pytest.raises(RecordError, match="only the training split of GQA"):
        source_of(tmp_path, scene_graphs=str(graphs))
    other = tmp_path / "other"
    schema = pa.schema([GQA_INSTRUCTIONS.field(name) for name in ("id", "imageId", "question", "isBalanced")])
    write_parquet(
        other / "testdev_balanced_instructions/testdev-00000-of-00001.parquet", schema, [gqa("1", "a")]
    )
    with pytest.raises(RecordError, match="Only the training split of GQA"):
        source_of(other)
    write_parquet(other / "train_balanced_instructions/train-00000-of-00001.parquet", schema, [gqa("1", "a")])
    with pytest.raises(RecordError, match="answer is missing"):
        source_of(other)


@pytest.mark.parametrize("text", ["", "[]x", '{"a": {"width": 4}}', '{"a": {"width": 1, "height": 1, "obj'])
def test_what_is_no_scene_graph_is_refused(tmp_path: Path, text):
    make(tmp_path, gqa("1", "a"))
    (tmp_path / "train_sceneGraphs.json").write_text(text)
    with pytest.raises(RecordError, match="scene graph"):
        source_of(tmp_path, scene_graphs=str(tmp_path))
