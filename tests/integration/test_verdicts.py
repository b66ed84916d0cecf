"""The gate as a stage: its verdict is kept and shown, and data are compared with those of the champion."""

import asyncio
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.config import Preset, ValidationConfig
from models.errors import GateError
from models.evidence import DataEvidence, Kept, ValidationEvidence
from models.presets import load_preset
from tasks.artifacts import ArtifactRef
from tasks.data import validate_data
from tasks.registry import promote_version, register
from tasks.settings import Settings
from tasks.stage import StageOutput, read_store
from tasks.tracking import client
from tasks.verdicts import previous_verdict, read_verdict
from tests.evidence_examples import POLICY
from tests.registry_examples import stored_evidence, stored_model
from tests.small_set import build_small_set

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("settings")]

CONFIG = ValidationConfig(min_records=20, min_acceptance=0.4)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build_small_set(tmp_path_factory.mktemp("built") / "vlir")


def publish(folder: Path) -> ArtifactRef:
    return read_store().publish(folder, stage="build_vlir", kind="vlir")


def judge(data: ArtifactRef, config: ValidationConfig = CONFIG, **inputs: ArtifactRef | None) -> StageOutput:
    return asyncio.run(validate_data.fn(data, config, **inputs))


def crown(folder: Path, data: ArtifactRef, verdict: ArtifactRef) -> None:
    """Make a champion that learned from these data."""
    weights = stored_model(folder, "champion")
    evidence = stored_evidence(
        folder,
        weights,
        data=DataEvidence(
            artifact=Kept(uri=data.uri, sha256=data.sha256), num_records=30, licences=("ours",)
        ),
        validation=ValidationEvidence(
            artifact=Kept(uri=verdict.uri, sha256=verdict.sha256),
            data_sha256=data.sha256,
            passed=True,
            summary="",
        ),
    )
    version = asyncio.run(register.fn(weights, evidence))
    assert asyncio.run(promote_version.fn(version, POLICY)).is_champion


@pytest.fixture
def other(built: Path, tmp_path: Path) -> ArtifactRef:
    """The same set from another source."""
    folder = tmp_path / "other"
    shutil.copytree(built, folder)
    for shard in (folder / "records").glob("*.parquet"):
        table = pq.read_table(shard)
        sources = pa.array(["gqa"] * table.num_rows)
        pq.write_table(table.set_column(table.schema.get_field_index("source"), "source", sources), shard)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"source_mix": {"gqa": 1.0}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return publish(folder)


def test_data_that_drifted_from_those_of_the_champion_are_refused_with_a_page(built, other, tmp_path):
    preset = load_preset("tiny")
    data = publish(built)
    first = judge(data).artifacts["verdict"]
    crown(tmp_path, data, first)
    previous = previous_verdict(preset, other)
    assert previous == first
    with pytest.raises(GateError, match=r"fails 1 of \d+ expectations:\n  source_drift: 1 unexpected, for"):
        judge(other, previous=previous)
    (page,) = (
        page
        for page in Settings.read().runs.glob("validate-*/report.html")
        if "may not be trained on" in page.read_text()
    )
    assert "gqa from 0.0% to 100.0%" in page.read_text()
    tracked = client(Settings.read())
    (failed,) = (
        run
        for run in tracked.search_runs([tracked.get_experiment_by_name("vlm-r3").experiment_id])
        if run.info.status == "FAILED"
    )
    kept = {file.path for file in tracked.list_artifacts(failed.info.run_id)}
    assert {"verdict.json", "statistics.json", "report.html"} <= kept
    assert any(name.startswith("suite-") for name in kept)


def test_the_verdict_is_kept_with_its_suite_and_pages_on_request(built):
    output = judge(publish(built), CONFIG.model_copy(update={"data_docs": True}))
    folder = read_store().fetch(output.artifacts["verdict"])
    verdict = read_verdict(folder)
    assert (folder / f"suite-{verdict.suite_digest[:12]}.json").is_file()
    assert (read_store().fetch(output.artifacts["data_docs"]) / "index.html").is_file()


def _preset(**bounds: float) -> Preset:
    preset = load_preset("tiny")
    return preset.model_copy(update={"validation": preset.validation.model_copy(update=bounds)})


def test_what_is_no_previous_version_is_not_compared(built, other, tmp_path):
    assert previous_verdict(_preset(), other) is None  # no champion
    data = publish(built)
    verdict = ArtifactRef(uri="file:///verdict", sha256="0", kind="verdict")
    crown(tmp_path, data, verdict)
    assert previous_verdict(_preset(), other) == verdict
    assert previous_verdict(_preset(max_size_drift=1.0), other) == verdict
    assert previous_verdict(_preset(max_size_drift=1.0, max_source_drift=1.0), other) is None
    assert previous_verdict(_preset(), data) is None  # the very data of the champion
    assert previous_verdict(load_preset("tiny-smoke"), other) is None
