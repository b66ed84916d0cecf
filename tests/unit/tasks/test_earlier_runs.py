"""Earlier runs of benchmarks, found by a folder or by the URI of an artifact."""

from pathlib import Path

import pytest

from models.errors import ArtifactError, ConfigError
from models.evaluation.benchmark import measure
from models.run_config import BenchmarkRun
from tasks.artifacts import ArtifactRef
from tasks.earlier_runs import check_comparable, check_named, find_run
from tasks.settings import Settings
from tasks.stage import read_store
from tests.unit.evaluation.test_benchmark import Counted, config_of, mme_rows, run_of, set_of, yes


@pytest.fixture
def config(tmp_path: Path) -> BenchmarkRun:
    return config_of("mme", tmp_path)


@pytest.fixture
def kept(tmp_path: Path, work_dir: Path, config: BenchmarkRun) -> ArtifactRef:
    """The artifact of a finished run."""
    run = run_of(tmp_path, config)
    measure(run, config, set_of("mme", tmp_path, mme_rows(2)), Counted(yes))
    folder = tmp_path / "kept"
    folder.mkdir()
    for name in ("metrics.json", "predictions.parquet"):
        (folder / name).write_bytes((run.path / name).read_bytes())
    return read_store().publish(folder, stage="benchmark", kind="benchmark")


def test_a_run_is_found_by_its_folder_and_by_its_address(kept: ArtifactRef) -> None:
    settings, folder = Settings.read(), Path(kept.uri.removeprefix("file://"))
    for name in (str(folder), kept.uri, f"{kept.uri}#{kept.sha256}"):
        assert find_run(name, settings) == folder
        check_named(name)
    with pytest.raises(ArtifactError, match="has digest"):
        find_run(f"{kept.uri}#{'0' * 64}", settings)


def test_what_is_no_run_is_refused(tmp_path: Path, work_dir: Path) -> None:
    with pytest.raises(ConfigError, match="is no earlier run of a benchmark"):
        check_named(str(tmp_path))
    with pytest.raises(ConfigError, match=r"is called 's3://bucket/a'.*#DIGEST"):
        find_run("s3://bucket/a", Settings.read())


def test_another_set_is_refused_before_a_row_is_asked(kept: ArtifactRef, config: BenchmarkRun) -> None:
    folder = Path(kept.uri.removeprefix("file://"))
    changed = config.model_copy(update={"data_digest": "f" * 64})
    with pytest.raises(
        ConfigError, match=r"'old' measured mme, split 'test', data .* measures mme.*ffffffffffff"
    ):
        check_comparable(changed, folder, "old")
