"""Benchmark data and models in a real S3 server: checked before they are fetched, and fetched once."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.cli import main
from models.benchmarks.sets import read_set
from models.config import EMBEDDED_MODEL
from models.errors import ArtifactError, ConfigError, ObjectChangedError
from models.evaluation.switch import folder_digest
from models.presets import load_preset
from models.run_config import BenchmarkRun
from tasks.artifacts import Manifest, open_store
from tasks.benchmark_data import Pinning, check_set, fetch_set
from tasks.benchmark_request import check_request, request_of
from tasks.model_source import find_model
from tasks.settings import Settings
from tests.benchmark_examples import file_name, schema_of, small, write
from tests.s3_proxy import Fault, Proxy, first
from tests.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.integration

PUBLISHED, SPLIT, ROWS = small("mme")
# Pictures of half a megabyte that do not compress: what a check must not fetch.
HEAVY = [{**row, "image": {"bytes": os.urandom(500_000), "path": None}} for row in ROWS]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """The set in two shards, as a clone of the hub has it, with a file beside it that nobody asked for."""
    folder = tmp_path / "local"
    for shard, row in enumerate(HEAVY):
        write(folder / "data" / file_name(SPLIT, shard, 2), [row], schema_of(PUBLISHED))
    (folder / "README.md").write_text("card")
    return folder


@pytest.fixture
def settings(work_dir: Path, s3_proxy: Proxy) -> Settings:
    """An empty work directory, and S3 behind the proxy."""
    return Settings.read()


@pytest.fixture
def data(s3: S3Server, local: Path, tmp_path: Path) -> str:
    """The same set under a prefix."""
    s3.put_folder(local, f"sets/{tmp_path.name}")
    return f"s3://{BUCKET}/sets/{tmp_path.name}/"


def fetched(data: str, settings: Settings, *, allow_partial: bool = False):
    return fetch_set(PUBLISHED, data, SPLIT, allow_partial=allow_partial, settings=settings)


def test_a_set_in_s3_is_the_same_set(
    data: str, local: Path, settings: Settings, s3_proxy: Proxy, tmp_path: Path
) -> None:
    found = fetched(data, settings)
    assert found.digest == read_set(PUBLISHED, local, SPLIT).digest
    assert found.folder.is_relative_to(settings.work_dir / "mirror" / BUCKET)
    names = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
    assert names == {f"data/{file_name(SPLIT, shard, 2)}" for shard in range(2)}
    source = json.loads(found.folder.with_suffix(".json").read_text())
    assert source["uri"] == data.rstrip("/")
    # Once is enough: the second time only the list and the ends of the files are read.
    s3_proxy.reset()
    assert fetched(data, settings) == found
    assert s3_proxy.sent < 200_000


def test_columns_and_rows_are_checked_before_anything_is_fetched(
    data: str, s3: S3Server, s3_proxy: Proxy, tmp_path: Path, settings: Settings
) -> None:
    check_set(PUBLISHED, data, SPLIT, allow_partial=False)
    last = f"data/{file_name(SPLIT, 1, 2)}"
    s3.client().delete_object(Bucket=BUCKET, Key=f"sets/{tmp_path.name}/{last}")
    with pytest.raises(ConfigError, match=r"s3://.*: 1 rows in 1 files; mme has 2 .*--allow-partial"):
        fetched(data, settings)

    schema = schema_of(PUBLISHED)
    path = tmp_path / "wrong.parquet"
    write(path, HEAVY[1:], schema.remove(schema.get_field_index("answer")))
    s3.client().put_object(Bucket=BUCKET, Key=f"sets/{tmp_path.name}/{last}", Body=path.read_bytes())
    with pytest.raises(ConfigError, match=r"s3://.*00001-of-00002.parquet: .*answer is missing"):
        fetched(data, settings)

    # Three times the ends of two files: far less than the megabyte that they have.
    assert s3_proxy.sent < 600_000
    assert not list(settings.mirror.rglob("*.parquet"))


def test_a_file_that_is_replaced_between_check_and_fetch_is_noticed(
    data: str, s3: S3Server, s3_proxy: Proxy, tmp_path: Path, settings: Settings
) -> None:
    key = f"sets/{tmp_path.name}/data/{file_name(SPLIT, 0, 2)}"
    path = tmp_path / "other.parquet"
    write(path, [{**HEAVY[0], "answer": "No"}], schema_of(PUBLISHED))

    def replace() -> None:
        s3.client().put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())

    seen = [0]

    def rule(call):
        # The end of the file is read first, for its columns; then it is fetched.
        seen[0] += call.method == "GET" and call.key.endswith(key)
        return Fault(before=replace) if seen[0] == 2 else None

    s3_proxy.reset(rule)
    with pytest.raises(ObjectChangedError, match=r"00000-of-00002.parquet changed while it was read"):
        fetched(data, settings)
    s3_proxy.reset()
    found = fetched(data, settings)
    assert pq.read_table(found.files[0], columns=["answer"]).to_pylist() == [{"answer": "No"}]


def test_an_empty_prefix_is_a_wrong_argument(s3_proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--benchmark", "mme", "--data", f"s3://{BUCKET}/nothing-here"]
    assert main(arguments) == 2
    assert "there is nothing under this prefix" in capsys.readouterr().err
    assert main([*arguments[:-1], "s3://"]) == 2
    assert "Write s3://bucket/prefix" in capsys.readouterr().err
    assert main([*arguments[:-1], "s3://no-such-bucket/x"]) == 1
    assert "there is no bucket 'no-such-bucket'" in capsys.readouterr().err


def test_a_model_in_s3_is_fetched_and_named(
    s3: S3Server, s3_proxy: Proxy, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    prefix = f"models/{tmp_path.name}"
    s3.put_folder(folder, prefix)
    uri = f"s3://{BUCKET}/{prefix}"
    found = find_model(uri, settings)
    assert found.source == uri
    assert folder_digest(Path(found.path)) == folder_digest(EMBEDDED_MODEL)
    weights = "model.safetensors"
    s3_proxy.reset()
    assert find_model(uri, settings) == found
    assert s3_proxy.made("GET", weights) == []

    s3.client().delete_object(Bucket=BUCKET, Key=f"{prefix}/{weights}")
    with pytest.raises(ConfigError, match=r"holds no model: config.json and \*.safetensors are wanted"):
        find_model(uri, settings)


def test_a_published_model_is_checked_file_by_file(
    s3: S3Server, s3_proxy: Proxy, settings: Settings, tmp_path: Path
) -> None:
    root = f"s3://{BUCKET}/store/{tmp_path.name}"
    ref = open_store(root, cache=tmp_path / "cache").publish(EMBEDDED_MODEL, stage="sft", kind="model")
    found = find_model(ref.uri, settings)
    assert found.source == ref.uri
    assert Manifest.of(Path(found.path)).sha256 == ref.sha256
    shutil.rmtree(settings.fetched)
    key = f"{ref.uri.removeprefix(f's3://{BUCKET}/')}/config.json"
    size = (EMBEDDED_MODEL / "config.json").stat().st_size
    s3.client().put_object(Bucket=BUCKET, Key=key, Body=b" " * size)
    with pytest.raises(ArtifactError, match=r"config.json has sha256 .*, its manifest says"):
        find_model(ref.uri, settings)


def test_a_request_holds_what_was_fetched(
    data: str, s3: S3Server, s3_proxy: Proxy, settings: Settings, tmp_path: Path
) -> None:
    s3.put_folder(EMBEDDED_MODEL, f"base/{tmp_path.name}")
    preset = load_preset("tiny", [f"model.path=s3://{BUCKET}/base/{tmp_path.name}"])
    check_request("mme", data, preset, allow_partial=True, settings=settings)
    assert s3_proxy.made("GET", "model.safetensors") == []
    request = request_of(
        "mme",
        data,
        preset,
        style="direct",
        allow_partial=True,
        settings=settings,
        pinning=Pinning(settings.benchmark_lock),
    )
    assert request.model_source == preset.model.path
    assert (Path(request.model_path) / "config.json").is_file()
    assert request.data_digest == read_set(PUBLISHED, Path(request.data_path), SPLIT).digest
    # A run directory names the copy; nothing in it says how to get into the store.
    assert "owner" not in BenchmarkRun.model_dump_json(request)


def test_a_slow_and_failing_store_only_takes_longer(data: str, s3_proxy: Proxy, settings: Settings) -> None:
    s3_proxy.reset(first(4, Fault(status=503, seconds=0.1)))
    assert fetched(data, settings).num_rows == 2
