"""The gate with the real Great Expectations: a sound set passes, and every planted fault stops it by name."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.config import QuestionMix, ValidationConfig, VLIRConfig
from models.errors import RecordError
from models.presets import load_preset
from models.records import RECORD_SCHEMA, SCHEMA_VERSION, read_questions, sha256
from models.run_config import ValidationRun
from models.rundir import RunDir
from models.vlir.build import build_vlir
from models.vlir.validate import validate_vlir
from models.vlir.verdict import ValidationVerdict

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = {"read": 0.6, "add": 0.25, "where": 0.15}
CONFIG = ValidationConfig(min_records=20, min_acceptance=0.4)
Row = dict


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vlir")
    build_vlir(
        VLIRConfig(num_questions=40, num_validation_questions=8, kinds=KINDS),
        load_preset("tiny").look,
        seed=0,
        out=out,
        rgrpo_questions=QuestionMix(num_questions=8, kinds=KINDS),
        evaluation_questions=QuestionMix(num_questions=8, kinds=KINDS),
    )
    return out


@pytest.fixture
def plant(built, tmp_path) -> Callable[..., tuple[Path, list[str]]]:
    """A copy of the set in which one function changed the rows in place; with the ids of its rows before."""

    def plant(change: Callable[[list[Row]], None]) -> tuple[Path, list[str]]:
        folder = tmp_path / "planted"
        shutil.copytree(built, folder)
        shard = folder / "records" / "shard-00000.parquet"
        rows = pq.read_table(shard).to_pylist()
        ids = [row["id"] for row in rows]
        change(rows)
        schema = RECORD_SCHEMA.with_metadata({"schema_version": SCHEMA_VERSION})
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), shard)
        return folder, ids

    return plant


def _looking(rows: list[Row]) -> list[Row]:
    """The rows with a look."""
    return [row for row in rows if row["steps"][0]["box"] is not None]


def _set_first_box(rows: list[Row], box: list[float]) -> None:
    for row in _looking(rows)[:4]:
        row["steps"][0]["box"] = box


def _duplicate(rows: list[Row]) -> None:
    rows.append(dict(rows[0]))


def _outside(rows: list[Row]) -> None:
    _set_first_box(rows, [100.0, 10.0, 130.0, 20.0])


def _inverted(rows: list[Row]) -> None:
    _set_first_box(rows, [20.0, 10.0, 10.0, 20.0])


def _drop_crop(rows: list[Row]) -> None:
    _looking(rows)[0]["steps"][0]["box"] = None


def _break_json(rows: list[Row]) -> None:
    step = _looking(rows)[0]["steps"][0]
    step["text"] = step["text"].replace("]}", ", }")


def _answer_twice(rows: list[Row]) -> None:
    rows[0]["steps"][-1]["text"] += "<answer>K7</answer>"


def _answer_wrongly(rows: list[Row]) -> None:
    rows[0]["answers"] = ["not this"]


def _damage_picture(rows: list[Row]) -> None:
    rows[0]["image"]["bytes"] = rows[0]["image"]["bytes"][:-10]


def _truncate_picture(rows: list[Row]) -> None:
    data = rows[0]["image"]["bytes"][:2000]
    rows[0]["image"]["bytes"] = data
    rows[0]["image_sha256"] = sha256(data)


def _other_split(rows: list[Row]) -> None:
    rows[0]["split"] = "test"


def _empty_question(rows: list[Row]) -> None:
    rows[0]["text"] = "  "


def _other_view(rows: list[Row]) -> None:
    rows[0]["seen_width"] = 224


def _keep_rejected(rows: list[Row]) -> None:
    rows[0]["reason"] = "incoherent"


def test_a_sound_set_passes_quickly(built):
    started = time.monotonic()
    verdict = validate_vlir(built, CONFIG)
    assert verdict.passed, verdict.summary()
    assert verdict.failures == ()
    assert verdict.num_records >= 20
    assert verdict.metrics()["validate/failed_expectations"] == 0
    assert ValidationVerdict.from_json(verdict.to_json()) == verdict
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("change", "expectation"),
    [
        (_duplicate, "id_is_unique"),
        (_outside, "boxes_are_inside"),
        (_inverted, "boxes_are_inside"),
        (_drop_crop, "crops_equal_boxes_in_text"),
        (_break_json, "boxes_parse"),
        (_answer_twice, "has_one_answer"),
        (_answer_wrongly, "answer_matches_gold"),
        (_damage_picture, "image_is_intact"),
        (_truncate_picture, "image_is_intact"),
        (_other_split, "split_is_train"),
        (_empty_question, "question_length"),
        (_other_view, "seen_size_follows_look"),
        (_keep_rejected, "was_accepted"),
    ],
)
def test_a_planted_fault_fails_by_name_with_its_rows(plant, change, expectation):
    folder, ids = plant(change)
    verdict = validate_vlir(folder, CONFIG)
    assert not verdict.passed
    outcome = next(outcome for outcome in verdict.failures if outcome.name == expectation)
    assert outcome.unexpected_count == {_outside: 4, _inverted: 4, _duplicate: 2}.get(change, 1)
    assert len(outcome.example_ids) == min(3, outcome.unexpected_count)
    assert set(outcome.example_ids) <= set(ids)
    assert f"{expectation}: {outcome.unexpected_count} unexpected" in verdict.summary()
    assert outcome.example_ids[0] in verdict.summary()


def test_a_picture_of_the_evaluation_set_among_the_records_is_found(built, plant):
    held_out = read_questions(built / "questions" / "test.parquet")[0]

    def leak(rows: list[Row]) -> None:
        rows[2]["image"]["bytes"] = held_out.image_bytes
        rows[2]["image_sha256"] = held_out.image_sha256

    folder, ids = plant(leak)
    (failure,) = validate_vlir(folder, CONFIG).failures
    assert (failure.name, failure.example_ids) == ("image_is_not_held_out", (ids[2],))


def test_too_few_records_and_too_little_acceptance_fail_with_what_was_observed(built):
    verdict = validate_vlir(built, ValidationConfig(min_records=1000, min_acceptance=0.99))
    few, little = (
        next(outcome for outcome in verdict.failures if outcome.name == name)
        for name in ("num_records", "acceptance")
    )
    assert few.unexpected_count == 1000 - verdict.num_records
    assert few.detail == f"observed {verdict.num_records}"
    manifest = json.loads((built / "manifest.json").read_text())
    assert str(manifest["train"]["acceptance"]) in little.detail


def test_an_empty_set_fails(plant):
    folder, _ = plant(lambda rows: rows.clear())
    verdict = validate_vlir(folder, CONFIG)
    assert [failure.name for failure in verdict.failures] == ["records_per_source", "num_records"]


def test_wrong_columns_stop_before_the_rows(built, tmp_path):
    folder = tmp_path / "planted"
    shutil.copytree(built, folder)
    shard = folder / "records" / "shard-00000.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.drop_columns(["answers", "steps"]), shard)
    verdict = validate_vlir(folder, CONFIG)
    (failure,) = verdict.failures
    assert failure.name == "columns_have_type"
    assert failure.unexpected_count == 2
    assert failure.example_ids == ("shard-00000.parquet:answers", "shard-00000.parquet:steps")
    assert len(verdict.expectations) == 1


def _run_child(run_path: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "models.vlir.validate", str(run_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_the_child_process_leaves_a_verdict_and_a_result(built, tmp_path):
    strict = CONFIG.model_copy(update={"min_records": 1000})
    run = RunDir.create(tmp_path / "run", ValidationRun(records_path=str(built), validation=strict))
    child = _run_child(run.path)
    assert child.returncode == 0, child.stderr
    result = run.result()
    # A verdict of "no" is a result; what follows from it is for the caller to decide.
    assert result.status == "done"
    folder = run.path / result.artifacts["verdict"]
    verdict = ValidationVerdict.from_json((folder / "verdict.json").read_text())
    assert [failure.name for failure in verdict.failures] == ["num_records"]
    *progress, last = run.metrics()
    assert progress[-1]["progress/done"] == progress[-1]["progress/total"] == verdict.num_records
    assert last["validate/passed"] == 0


def test_the_child_process_reports_a_set_that_was_never_finished(tmp_path):
    run = RunDir.create(tmp_path / "run", ValidationRun(records_path=str(tmp_path / "no"), validation=CONFIG))
    child = _run_child(run.path)
    assert child.returncode == 1
    assert run.result().status == "failed"
    assert "did not finish" in run.result().reason


def test_an_unfinished_set_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="did not finish"):
        validate_vlir(tmp_path, CONFIG)
