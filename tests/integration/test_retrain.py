"""Retraining on a manifest, as a schedule starts it: nothing new, rows that came in, and the way back.

The runs build on each other, in the order of the tests; each is started once. The commands are the README's.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.records import RECORD_SCHEMA, read_records, read_rows
from models.source_versions import all_digest
from models.vlir.checks import read_manifest
from tasks.evaluation import read_results
from tests.trained import NUM_ROWS, Done, Trained

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

RETRAIN = (
    "vlm-r3 retrain --preset one-gpu --manifest my.jsonl --teacher http://HOST:8000/v1 "
    '--licence "CC BY 4.0" --set retrain.teacher=champion'
)
ROLLBACK = 'vlm-r3 rollback --reason "it misreads signs"'
NUM_MORE = 10


def num_tracked(place: Trained) -> int:
    experiment = place.client.get_experiment_by_name("vlm-r3")
    assert experiment is not None
    return len(place.client.search_runs([experiment.experiment_id]))


def children(place: Trained) -> dict[Path, int]:
    """When the child process of every run directory was started."""
    return {path: path.stat().st_mtime_ns for path in place.work_dir.glob("runs/*/process.json")}


def accepted(folder: Path) -> dict[str, dict[str, Any]]:
    """Every accepted row of both splits as it is stored, by its id."""
    parts = (folder / "records", folder / "validation")
    return {row["id"]: row for part in parts for row in read_rows(part, RECORD_SCHEMA)}


@pytest.fixture(scope="module")
def grown(trained: Trained) -> Done:
    """The champion writes the rationales of new rows. It learned nothing: they are all wrong, and of what is
    left only another learning rate makes another model."""
    trained.add_rows(NUM_ROWS, NUM_ROWS + NUM_MORE)
    path = trained.folder / "small.yaml"
    preset = yaml.safe_load(path.read_text())
    preset["sft"]["learning_rate"] = 3e-4
    path.write_text(yaml.safe_dump(preset, sort_keys=False))
    done = trained.run(RETRAIN)
    assert done.code == 0, f"{done.out}\n{done.err}"
    return done


def test_the_run_after_the_build_goes_on_from_it_and_its_version_names_the_data(trained: Trained) -> None:
    assert trained.first is not None
    assert re.search(r"^\[\d+/11\] build_vlir: from the cache", trained.first.err, re.MULTILINE)
    assert "registered  vlm-r3 version 1 (challenger, champion)" in trained.first.out
    evidence = trained.evidence("1")
    assert evidence.data.sources["manifest"].num_rows == NUM_ROWS
    assert evidence.data.earlier is None
    assert evidence.missing() == ()


def test_nothing_new_runs_nothing_and_says_so(trained: Trained) -> None:
    assert trained.first is not None
    before = (num_tracked(trained), children(trained), sorted(trained.work_dir.glob("artifacts/*/*")))
    (num_flows,) = trained.prefect("SELECT count(*) FROM flow_run")[0]
    done = trained.run(RETRAIN)
    assert done.code == 0, done.err
    digest = all_digest(trained.evidence("1").data.sources)[:12]
    said = f"Nothing new: version 1 was trained on exactly these sources (manifest: {NUM_ROWS} rows"
    assert done.out == f"{said}; digest {digest}). Nothing was run.\n"
    assert "build_vlir" not in done.err
    assert done.cpu_seconds < trained.first.cpu_seconds / 2
    after = (num_tracked(trained), children(trained), sorted(trained.work_dir.glob("artifacts/*/*")))
    assert after == before
    # One flow run, and in it the look alone; its state, its artifact and its log say why.
    runs = trained.prefect(
        "SELECT flow_run.id, flow_run_state.type, flow_run_state.message FROM flow_run"
        " JOIN flow_run_state ON flow_run.state_id = flow_run_state.id"
        f" ORDER BY flow_run.created LIMIT -1 OFFSET {num_flows}"
    )
    ((run, state, message),) = runs
    assert state == "COMPLETED"
    assert message == done.out.strip()
    ((task,),) = trained.prefect(f"SELECT name FROM task_run WHERE flow_run_id = '{run}'")
    assert task.startswith("look_for_news")
    ((text,),) = trained.prefect(f"SELECT data FROM artifact WHERE flow_run_id = '{run}'")
    assert said in text
    logged = trained.prefect(f"SELECT message FROM log WHERE flow_run_id = '{run}'")
    assert any(said in line for (line,) in logged)


def test_rows_that_came_in_are_trained_on_with_what_there_was(trained: Trained, grown: Done) -> None:
    assert grown.out.startswith(f"New since version 1: manifest has {NUM_MORE} rows more")
    assert "What did not change keeps its records of version 1." in grown.out
    before, after = accepted(trained.data("1")), accepted(trained.data("2"))
    assert before
    assert {id: after[id] for id in before} == before
    kept = read_manifest(trained.data("2"))["earlier"]["kept"]
    assert sum(sum(split.values()) for split in kept.values()) == len(before)
    evidence = trained.evidence("2")
    assert evidence.parent_version == "1"
    assert evidence.data.sources["manifest"].num_rows == NUM_ROWS + NUM_MORE
    assert evidence.data.earlier is not None
    assert evidence.data.earlier.name.startswith(trained.data("1").as_uri() + "#")
    assert evidence.data.earlier.num_kept == len(before)


def test_the_champion_writes_the_rationales_of_new_rows_only(trained: Trained, grown: Done) -> None:
    assert "The champion, version 1, writes the rationales of new rows." in grown.out
    folder = trained.data("2")
    assert read_manifest(folder)["teacher"] == "models:/vlm-r3/1"
    rejected = list(read_records(folder / "rejected"))
    assert {record.teacher for record in rejected} == {"models:/vlm-r3/1"}
    assert 0 < len({record.question.id for record in rejected}) <= NUM_MORE
    assert {row["teacher"] for row in accepted(folder).values()} == {"simulated"}


def test_champion_and_challenger_answer_the_same_questions(trained: Trained, grown: Done) -> None:
    evidence = trained.evidence("2").evaluation
    assert evidence.baseline == "champion"
    results, models = read_results(Path(evidence.artifact.uri.removeprefix("file://")))
    assert models["champion"] == trained.evidence("1").model.sha256
    compared = results.comparison("rgrpo", "champion")
    assert compared is not None
    assert (compared.num_questions, compared.num_unscored) == (20, 0)


def test_any_version_that_had_these_sources_is_enough(trained: Trained, grown: Done) -> None:
    manifest = trained.folder / "my.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:NUM_ROWS]))
    said = trained.run(RETRAIN).out
    assert said.startswith("Nothing new: version 1 was trained on exactly these sources")


def test_the_champion_before_is_champion_again(trained: Trained, grown: Done) -> None:
    done = trained.run(ROLLBACK)
    assert done.code == 0, done.err
    assert "vlm-r3 version 1 is champion." in done.out
    assert trained.client.get_model_version_by_alias("vlm-r3", "champion").version in (1, "1")
    assert re.search(r"rolled-back +version 1 .*it misreads signs", trained.run("vlm-r3 history").out)
