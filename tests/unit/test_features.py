"""Our files are read by Hugging Face ``datasets`` itself, as its users read them."""

import io
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.features import file_extension, with_features
from models.records import (
    QUESTION_SCHEMA,
    SCHEMA_VERSION,
    RationaleStep,
    read_questions,
    read_records,
    sha256,
    write_questions,
    write_records,
)
from models.region import Box
from tests.unit.test_records import question, record


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load one Parquet file without network, into a cache of this test."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    def load(path):
        return datasets.load_dataset(
            "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
        )

    return load


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 10, 10)).save(buffer, format=kind)
    return buffer.getvalue()


def _asked(kind: str):
    data = _encoded(kind)
    return question(kind, image_bytes=data, image_sha256=sha256(data))


def test_records_load_with_decoded_pictures_and_nested_steps(load, tmp_path):
    rejected = replace(record("q2"), reason="wrong_answer", steps=(RationaleStep("no look"),))
    write_records(tmp_path / "records.parquet", [record("q1"), rejected])
    found = load(tmp_path / "records.parquet")
    assert isinstance(found.features["image"], datasets.Image)
    first, second = found
    assert first["image"].size == (8, 6)
    assert first["image"].getpixel((0, 0)) == (200, 10, 10)
    assert first["answers"] == ["K7", "k 7"]
    assert first["gold_boxes"] == [[1.0, 2.0, 3.5, 4.0], [0.0, 0.0, 8.0, 6.0]]
    assert first["steps"] == [
        {"text": "<think>Look.", "box": [28.0, 28.0, 56.0, 56.5]},
        {"text": " K7</think><answer>K7</answer>", "box": None},
    ]
    assert (second["reason"], second["width"]) == ("wrong_answer", 8)


@pytest.mark.parametrize(
    ("kind", "extension"),
    [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")],
)
def test_a_stored_picture_is_named_by_its_real_format(load, tmp_path, kind, extension):
    asked = _asked(kind)
    write_questions(tmp_path / "questions.parquet", [asked])
    (stored,) = pq.read_table(tmp_path / "questions.parquet")["image"].to_pylist()
    assert stored == {"bytes": asked.image_bytes, "path": f"{asked.image_sha256}.{extension}"}
    assert load(tmp_path / "questions.parquet")[0]["image"].format == kind


def test_bytes_that_are_no_picture_get_no_picture_extension():
    assert file_extension(b"") == "bin"
    assert file_extension(_encoded("PNG")[:20]) == "bin"


def test_an_empty_shard_among_others_has_the_same_features(load, tmp_path):
    write_records(tmp_path / "shard-0.parquet", [])
    write_records(tmp_path / "shard-1.parquet", [record()])
    found = load(tmp_path / "shard-*.parquet")
    assert isinstance(found.features["image"], datasets.Image)
    assert found["id"] == ["q1"]


def test_every_column_is_a_feature_of_its_own_type(load, tmp_path):
    write_questions(tmp_path / "questions.parquet", [question()])
    found = load(tmp_path / "questions.parquet").features
    assert list(found) == QUESTION_SCHEMA.names
    assert found.arrow_schema.field("width").type == pa.int32()
    assert found.arrow_schema.field("gold_boxes").type == pa.list_(pa.list_(pa.float64()))


def test_writing_twice_gives_the_same_bytes_and_a_known_version(tmp_path):
    steps = (RationaleStep("<think>a", Box(0, 0, 9, 9, "seen")), RationaleStep("b"))
    records = [record("q1"), replace(record("q2"), steps=steps)]
    for name in ("one", "two"):
        write_records(tmp_path / f"{name}.parquet", records)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert pq.read_schema(tmp_path / "one.parquet").metadata[b"schema_version"] == SCHEMA_VERSION.encode()
    assert read_records(tmp_path / "one.parquet") == records


def test_a_file_without_the_features_is_still_read(tmp_path):
    write_questions(tmp_path / "new.parquet", [question()])
    table = pq.read_table(tmp_path / "new.parquet")
    pq.write_table(
        table.replace_schema_metadata({"schema_version": SCHEMA_VERSION}), tmp_path / "earlier.parquet"
    )
    assert read_questions(tmp_path / "earlier.parquet") == [question()]


def test_metadata_of_a_schema_is_kept():
    schema = with_features(pa.schema([("id", pa.string())]).with_metadata({"a": "b"}))
    assert schema.metadata[b"a"] == b"b"
    assert b"huggingface" in schema.metadata
