"""The gate as a stage: its verdict is kept and shown, and data are compared with those of the champion."""

import asyncio
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.config import Preset, QuestionMix, ValidationConfig, VLIRConfig
from models.errors import GateError
from models.presets import load_preset
from models.vlir.build import build_vlir
from tasks.artifacts import ArtifactRef
from tasks.data import validate_data
from tasks.settings import Settings, prepare
from tasks.stage import StageOutput, read_store
from tasks.tracking import client
from tasks.verdicts import previous_verdict, read_verdict
from tasks.versions import CHAMPION
from tests.integration.test_registry import evaluation, evidence, model, registered

pytestmark = pytest.mark.integration

KINDS = {"read": 0.6, "add": 0.25, "where": 0.15}
CONFIG = ValidationConfig(min_records=20, min_acceptance=0.4)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "vlir"
    build_vlir(
        VLIRConfig(num_questions=40, num_validation_questions=8, kinds=KINDS),
        load_preset("tiny").look,
        seed=0,
        out=out,
        rgrpo_questions=QuestionMix(num_questions=8, kinds=KINDS),
        evaluation_questions=QuestionMix(num_questions=8, kinds=KINDS),
    )
    return out


@pytest.fixture(autouse=True)
def settings(work_dir: Path) -> Settings:
    prepare(work_dir)
    return Settings.read()


def publish(folder: Path) -> ArtifactRef:
    return read_store().publish(folder, stage="build_vlir", kind="vlir")


def judge(data: ArtifactRef, config: ValidationConfig = CONFIG, **inputs: ArtifactRef | None) -> StageOutput:
    return asyncio.run(validate_data.fn(data, config, **inputs))


def crown(tmp_path: Path, data: ArtifactRef, verdict: ArtifactRef, **changed: str) -> None:
    """Make a champion that learned from these data."""
    weights = model(tmp_path, "champion")
    kept = evaluation(tmp_path, low=0.1, old="sft", models={"rgrpo": weights})
    known = {
        "preset_name": "tiny",
        "data_digest": data.sha256,
        "validation_uri": verdict.uri,
        "validation_digest": verdict.sha256,
        **changed,
    }
    version = registered(weights, evidence(kept, **known))
    client(Settings.read()).set_registered_model_alias("vlm-r3", CHAMPION, version.number)


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
