"""Training sources in a real S3 server: only what training reads is fetched, and read as from a folder."""

import json
from pathlib import Path

import pytest

from models.errors import ConfigError, RecordError
from models.vlir.sources.base import FaultKind
from models.vlir.sources.open import open_source
from models.vlir_config import SourceConfig
from tasks.settings import Settings
from tasks.source_files import check_source, local_source, source_files
from tests.s3_proxy import Proxy
from tests.s3_server import BUCKET, S3Server
from tests.source_examples import (
    GQA_IMAGES,
    GQA_INSTRUCTIONS,
    TEXTVQA,
    gqa,
    picture,
    stored,
    textvqa,
    visual_cot,
    vsr,
    write_lines,
    write_parquet,
)

pytestmark = pytest.mark.integration

MAX_BYTES = 100_000
JPEG = picture(format="JPEG")


@pytest.fixture
def settings(work_dir: Path, s3_proxy: Proxy) -> Settings:
    """An empty work directory, and S3."""
    return Settings.read()


@pytest.fixture
def prefix(s3: S3Server, tmp_path: Path) -> str:
    """A public set, metadata, and a manifest of one's own, with files beside them that nobody needs."""
    folder = tmp_path / "sets"
    write_parquet(folder / "textvqa/data/train-00000-of-00001.parquet", TEXTVQA, [textvqa()])
    write_parquet(folder / "textvqa/data/test-00000-of-00001.parquet", TEXTVQA, [textvqa()])
    write_parquet(
        folder / "gqa/train_balanced_instructions/train-00000-of-00001.parquet",
        GQA_INSTRUCTIONS,
        [gqa("1", "a", "7")],
    )
    write_parquet(
        folder / "gqa/train_balanced_images/train-00000-of-00001.parquet",
        GQA_IMAGES,
        [{"id": "a", "image": stored()}],
    )
    graph = {"a": {"width": 40, "height": 30, "objects": {"7": {"x": 1, "y": 2, "w": 3, "h": 4}}}}
    (folder / "gqa/train_sceneGraphs.json").write_text(json.dumps(graph))
    (folder / "gqa/val_sceneGraphs.json").write_text("{}")
    write_lines(folder / "boxes/textvqa_cot_train.jsonl", [visual_cot()])
    write_lines(folder / "boxes/textvqa_cot_val.jsonl", [visual_cot(split="val")])
    write_lines(folder / "vsr/train.jsonl", [vsr(), vsr(image="none.jpg")])
    write_lines(folder / "vsr/test.jsonl", [vsr()])
    own = [
        {"image": "pictures/red.png", "question": "a?", "answer": "x"},
        {"image": "pictures/none.png", "question": "b?", "answer": "x"},
        {"image": "../boxes/secret.png", "question": "c?", "answer": "x"},
        {"image": f"s3://{BUCKET}/else/{tmp_path.name}/blue.png", "question": "d?", "answer": "x"},
        {"image": f"s3://{BUCKET}/else/{tmp_path.name}/none.png", "question": "e?", "answer": "x"},
        {"image": "s3://", "question": "f?", "answer": "x"},
        b"\xff",
    ]
    write_lines(folder / "own/manifest.jsonl", own)
    for name in ("own/pictures/red.png", "own/pictures/unused.png", "boxes/secret.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture("red"))
    for name in ("train2017/000000085637.jpg", "train2017/000000000001.jpg"):
        (folder / "coco" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "coco" / name).write_bytes(JPEG)
    s3.put_folder(folder, f"sources/{tmp_path.name}")
    s3.client().put_object(Bucket=BUCKET, Key=f"else/{tmp_path.name}/blue.png", Body=picture("blue"))
    return f"s3://{BUCKET}/sources/{tmp_path.name}"


def read(config: SourceConfig, settings: Settings) -> tuple[list, set[str]]:
    """The rows, and the names of all files that were fetched."""
    check_source(config, max_picture_bytes=MAX_BYTES)
    local = local_source(config, settings)
    again = local_source(config, settings)
    assert again == local
    assert all(file.is_absolute() for file in source_files(local))
    rows = list(open_source(local, max_picture_bytes=MAX_BYTES).rows())
    fetched = {path.name for path in settings.mirror.rglob("*") if path.is_file()}
    return rows, {name for name in fetched if not name.endswith(".json") or "Graphs" in name}


def test_of_a_public_set_the_training_files_are_fetched(prefix, settings):
    config = SourceConfig(kind="textvqa", data=f"{prefix}/textvqa", boxes=f"{prefix}/boxes/")
    (found,), fetched = read(config, settings)
    assert [box.corners() for box in found.boxes] == [(4, 5.5, 20, 25)]
    assert fetched == {"train-00000-of-00001.parquet", "textvqa_cot_train.jsonl"}


def test_tables_and_scene_graphs_are_fetched(prefix, settings):
    for graphs in (f"{prefix}/gqa", f"{prefix}/gqa/train_sceneGraphs.json"):
        config = SourceConfig(kind="gqa", data=f"{prefix}/gqa", scene_graphs=graphs)
        (found,), fetched = read(config, settings)
        assert [box.corners() for box in found.boxes] == [(1, 2, 4, 6)]
        assert fetched == {"train-00000-of-00001.parquet", "train_sceneGraphs.json"}


def test_of_a_folder_of_pictures_those_that_rows_name_are_fetched(prefix, settings):
    config = SourceConfig(kind="vsr", data=f"{prefix}/vsr", images=f"{prefix}/coco")
    (found, missing), fetched = read(config, settings)
    assert (found.image_bytes, missing.kind) == (JPEG, FaultKind.MISSING_IMAGE)
    assert fetched == {"train.jsonl", "000000085637.jpg"}


@pytest.mark.parametrize("place", ["own", "own/manifest.jsonl"])
def test_a_manifest_and_what_it_names_are_fetched(prefix, settings, place):
    config = SourceConfig(kind="manifest", data=f"{prefix}/{place}")
    rows, fetched = read(config, settings)
    assert [row.image_bytes for row in (rows[0], rows[3])] == [picture("red"), picture("blue")]
    assert [row.kind for row in (*rows[1:3], *rows[4:])] == [
        FaultKind.MISSING_IMAGE,
        FaultKind.OUTSIDE_FOLDER,
        FaultKind.MISSING_IMAGE,
        FaultKind.BAD_ADDRESS,
        FaultKind.NOT_UTF8,
    ]
    assert fetched == {"manifest.jsonl", "red.png", "blue.png"}


def test_a_local_manifest_may_name_pictures_in_s3(prefix, settings, tmp_path: Path):
    write_lines(
        tmp_path / "mine.jsonl",
        [{"image": f"{prefix}/own/pictures/red.png", "question": "a?", "answer": "x"}],
    )
    (found,), fetched = read(SourceConfig(kind="manifest", data=str(tmp_path / "mine.jsonl")), settings)
    assert found.image_bytes == picture("red")
    assert fetched == {"red.png"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "textvqa", "data": "/nowhere"}, "there is nothing under this prefix"),
        ({"kind": "m3cot", "data": "/boxes"}, "Only the training split of M3CoT"),
        ({"kind": "vsr", "data": "/boxes", "images": "/coco"}, "none of train.jsonl"),
        ({"kind": "manifest", "data": "/own/none.jsonl"}, "there is no such object"),
        ({"kind": "textvqa", "data": "/textvqa", "boxes": "/own"}, "none of"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_fetched(prefix, settings, config, message):
    places = {name: value if name == "kind" else prefix + value for name, value in config.items()}
    with pytest.raises((ConfigError, RecordError), match=message):
        check_source(SourceConfig(**places), max_picture_bytes=MAX_BYTES)
    assert not settings.mirror.exists()


def test_a_local_source_is_checked_where_it_lies(settings, tmp_path: Path):
    write_parquet(tmp_path / "set/train-00000-of-00001.parquet", TEXTVQA, [textvqa()])
    config = SourceConfig(kind="textvqa", data=str(tmp_path / "set"))
    check_source(config, max_picture_bytes=MAX_BYTES)
    assert local_source(config, settings) == config
    assert list(source_files(config)) == [tmp_path / "set/train-00000-of-00001.parquet"]
    missing = config.model_copy(update={"boxes": str(tmp_path / "none.jsonl")})
    with pytest.raises(RecordError, match="no metadata of Visual CoT"):
        check_source(missing, max_picture_bytes=MAX_BYTES)
