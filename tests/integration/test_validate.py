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

from models.config import ValidationConfig
from models.errors import RecordError
from models.records import RECORD_SCHEMA, SCHEMA_VERSION, read_questions, sha256
from models.run_config import ValidationRun
from models.rundir import RunDir
from models.vlir.suite import suites
from models.vlir.validate import validate_vlir
from models.vlir.verdict import ValidationVerdict
from tests.small_set import build_small_set

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = ValidationConfig(min_records=20, min_acceptance=0.4)
Row = dict


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return build_small_set(tmp_path_factory.mktemp("built") / "vlir")


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


def _talk_on(rows: list[Row]) -> None:
    rows[0]["steps"][-1]["text"] += " I am sure."


def _talk_before_the_crop(rows: list[Row]) -> None:
    _looking(rows)[0]["steps"][0]["text"] += " Let me see."


def _crop_at_the_end(rows: list[Row]) -> None:
    steps = _looking(rows)[0]["steps"]
    steps[-1]["box"] = steps[0]["box"]


def _forget_to_think(rows: list[Row]) -> None:
    rows[0]["steps"][0]["text"] = rows[0]["steps"][0]["text"].replace("<think>", "")


def _move_a_box(rows: list[Row]) -> None:
    step = _looking(rows)[0]["steps"][0]
    step["box"] = [step["box"][0] - 1.0, *step["box"][1:]]


def _think_in_french(rows: list[Row]) -> None:
    last = rows[0]["steps"][-1]
    last["text"] = "Je regarde la carte de plus près, et je lis le code dessus. " * 5 + last["text"]


def _ask_in_chinese(rows: list[Row]) -> None:
    rows[0]["text"] = "这张卡片上写的是什么代码"


def _ask_at_length(rows: list[Row]) -> None:
    rows[0]["text"] *= 200


def _ramble(rows: list[Row]) -> None:
    rows[0]["steps"][0]["text"] = "<think>Let me think about it. " * 1000


def _lose_the_id(rows: list[Row]) -> None:
    rows[0]["id"] = ""


def test_a_sound_set_passes_quickly(built):
    started = time.process_time()
    verdict = validate_vlir(built, CONFIG)
    assert verdict.passed, verdict.summary()
    assert verdict.failures == ()
    assert verdict.num_records >= 20
    assert verdict.metrics()["validate/failed_expectations"] == 0
    assert ValidationVerdict.from_json(verdict.to_json()) == verdict
    assert time.process_time() - started < 60


FAULTS = [
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
    (_talk_on, "ends_with_answer"),
    (_talk_before_the_crop, "steps_end_with_a_box"),
    (_crop_at_the_end, "steps_take_turns"),
    (_drop_crop, "steps_take_turns"),
    (_forget_to_think, "is_well_formed"),
    (_move_a_box, "boxes_are_those_in_text"),
    (_think_in_french, "text_language"),
    (_ask_in_chinese, "text_language"),
    (_ask_at_length, "question_length"),
    (_ramble, "rationale_length"),
    (_lose_the_id, "has_id"),
]
# What is broken by the set as a whole, in tests of their own.
OF_THE_SET = {
    "columns_have_type",
    "files_have_split",
    "acceptance",
    "size_drift",
    "source_drift",
    "records_per_source",
    "num_records",
    "image_is_not_held_out",
}


def test_every_expectation_is_broken_by_some_test():
    names = {name for suite in suites(CONFIG).values() for name in suite}
    assert names == {expectation for _, expectation in FAULTS} | OF_THE_SET


@pytest.mark.parametrize(("change", "expectation"), FAULTS)
def test_a_planted_fault_fails_by_name_with_its_rows(plant, change, expectation):
    folder, ids = plant(change)
    verdict = validate_vlir(folder, CONFIG)
    assert not verdict.passed
    outcome = next(outcome for outcome in verdict.failures if outcome.name == expectation)
    assert outcome.unexpected_count == {_outside: 4, _inverted: 4, _duplicate: 2}.get(change, 1)
    assert len(outcome.example_ids) == min(3, outcome.unexpected_count)
    assert set(outcome.example_ids) <= {*ids, "shard-00000.parquet row 0"}
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
    assert failure.detail == "found questions/test"


def test_a_picture_of_a_benchmark_that_was_kept_out_is_found(built, plant):
    folder, ids = plant(lambda rows: None)
    (shard,) = (folder / "records").glob("*.parquet")
    pictures = pq.read_table(shard)["image_sha256"].to_pylist()
    kept = {"image_sha256": ["0" * 64, pictures[5]], "origin": ["mme", "docvqa"]}
    pq.write_table(pa.table(kept), folder / "held_out.parquet")
    (failure,) = validate_vlir(folder, CONFIG).failures
    assert failure.name == "image_is_not_held_out"
    assert failure.detail == "found docvqa"
    assert failure.example_ids == tuple(
        name for name, picture in zip(ids, pictures, strict=True) if picture == pictures[5]
    )


def test_a_file_of_another_split_than_its_name_says_fails(plant):
    folder, _ = plant(lambda rows: None)
    (folder / "questions" / "test.parquet").write_bytes((folder / "questions" / "train.parquet").read_bytes())
    verdict = validate_vlir(folder, CONFIG)
    failure = next(outcome for outcome in verdict.failures if outcome.name == "files_have_split")
    assert failure.example_ids == ("questions/test.parquet",)
    assert "train" in failure.detail


def test_a_source_with_too_few_records_fails_by_name(plant):
    folder, _ = plant(lambda rows: rows[0].update(source="gqa"))
    verdict = validate_vlir(folder, CONFIG.model_copy(update={"min_records_per_source": 2}))
    (failure,) = verdict.failures
    assert (failure.name, failure.unexpected_count) == ("records_per_source", 1)
    assert failure.example_ids == ("gqa",)
    assert (failure.bounds, failure.detail) == ("at least 2", "found 1")


def test_a_source_that_was_asked_for_and_gave_nothing_fails(plant):
    folder, _ = plant(lambda rows: None)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["settings"]["vlir"]["sources"].append({"kind": "gqa", "name": ""})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (failure,) = validate_vlir(folder, CONFIG).failures
    assert (failure.name, failure.example_ids) == ("records_per_source", ("gqa",))


@pytest.fixture(scope="module")
def statistics(built, tmp_path_factory) -> Path:
    """What validating the sound set leaves for the next version."""
    out = tmp_path_factory.mktemp("run")
    validate_vlir(built, CONFIG, out=out)
    return out / "verdict" / "statistics.json"


def test_the_same_data_have_not_drifted(built, statistics):
    verdict = validate_vlir(built, CONFIG, previous=statistics)
    assert verdict.passed
    drifts = {outcome.name: outcome for outcome in verdict.expectations if outcome.name.endswith("_drift")}
    assert {name: found.observed for name, found in drifts.items()} == {
        "size_drift": "0",
        "source_drift": "0",
    }
    assert verdict.metrics()["validate/skipped_expectations"] == 0


def test_without_a_previous_version_drift_is_skipped_and_said_so(built):
    verdict = validate_vlir(built, CONFIG)
    skipped = [outcome for outcome in verdict.expectations if outcome.skipped]
    assert [outcome.name for outcome in skipped] == ["size_drift", "source_drift"]
    assert {outcome.detail for outcome in skipped} == {"skipped: no previous version to compare with"}
    assert verdict.summary().endswith("2 were skipped.")


@pytest.mark.parametrize(
    ("counts", "expectation", "changed"),
    [
        ("crops_per_size", "size_drift", {"very_small": 0, "small": 0, "medium": 0, "large": 50}),
        ("records_per_source", "source_drift", {"tiny-world": 1, "gqa": 1}),
    ],
)
def test_drift_beyond_its_bound_fails_with_what_moved_and_records_that_show_it(
    built, statistics, tmp_path, counts, expectation, changed
):
    earlier = json.loads(statistics.read_text()) | {counts: changed}
    (tmp_path / "statistics.json").write_text(json.dumps(earlier))
    verdict = validate_vlir(built, CONFIG, previous=tmp_path / "statistics.json")
    (failure,) = verdict.failures
    assert failure.name == expectation
    assert failure.bounds == "at most 0.2"
    assert "from" in failure.detail
    if expectation == "source_drift":
        # Half of the earlier version was gqa, of this one nothing is.
        assert failure.observed == "0.5"
    wide = {"max_size_drift": 1.0, "max_source_drift": 1.0}
    assert validate_vlir(built, CONFIG.model_copy(update=wide), previous=tmp_path / "statistics.json").passed


def test_what_is_no_statistics_of_a_version_is_refused(built, tmp_path):
    (tmp_path / "other.json").write_text('{"crops_per_size": 3}')
    with pytest.raises(RecordError, match=r"other\.json holds no statistics"):
        validate_vlir(built, CONFIG, previous=tmp_path / "other.json")


def test_the_suite_is_kept_beside_the_verdict_and_named_by_its_digest(built, tmp_path):
    strict = CONFIG.model_copy(update={"max_size_drift": 0.1})
    for name, config in (("one", CONFIG), ("two", CONFIG), ("strict", strict)):
        verdict = validate_vlir(built, config, out=tmp_path / name)
        (suite,) = (tmp_path / name / "verdict").glob("suite-*.json")
        assert sha256(suite.read_bytes()) == verdict.suite_digest
        assert suite.name == f"suite-{verdict.suite_digest[:12]}.json"
        found = json.loads(suite.read_text())
        assert found["bounds"]["max_size_drift"] == config.max_size_drift
        drift = found["expectations"]["set"]["size_drift"]
        assert drift["type"] == "expect_column_values_to_be_between"
        assert drift["kwargs"]["max_value"] == config.max_size_drift
    names = {name: sorted(path.name for path in (tmp_path / name / "verdict").iterdir()) for name in ("one",)}
    assert len(names["one"]) == 3
    for path in (tmp_path / "one" / "verdict").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "verdict" / path.name).read_bytes()
    assert not (tmp_path / "strict" / "verdict" / names["one"][1]).exists()


def test_data_docs_are_built_only_when_asked_for(built, tmp_path):
    validate_vlir(built, CONFIG, out=tmp_path / "plain")
    assert not (tmp_path / "plain" / "data_docs").exists()
    validate_vlir(built, CONFIG.model_copy(update={"data_docs": True}), out=tmp_path / "asked")
    assert "vlm-r3" in (tmp_path / "asked" / "data_docs" / "index.html").read_text()
    pages = [path.read_text() for path in (tmp_path / "asked" / "data_docs").rglob("validations/**/*.html")]
    assert any("held_out_in" in page for page in pages)


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
