"""Retraining on preset tiny-smoke, as a schedule starts it: first time, nothing new, and a world that grew.

The runs build on each other, in the order of the tests; each is started once.
"""

import os
import re
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from models.evidence import Evidence
from models.records import RECORD_SCHEMA, read_records, read_rows
from models.source_versions import all_digest
from models.vlir.checks import read_manifest
from tasks.evaluation import read_results

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
# As small as it gets, with an open gate: this is about the machinery.
SMALL = (
    *(
        "controls=false",
        "engine.kind=transformers",
        "validation.min_records=5",
        "validation.max_size_drift=1",
    ),
    *("vlir.num_questions=40", "vlir.num_validation_questions=8", "sft.num_ranks=1"),
    *("rgrpo.num_steps=1", "rgrpo.questions_per_step=2", "evaluation.num_sampled_questions=0"),
    *("promotion.min_gain=-1", "promotion.max_kind_loss=1", "promotion.max_protocol_error_rate=1"),
)
GROWN = ("vlir.num_questions=60", "vlir.num_validation_questions=10")


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Place:
    """A work directory, and what Prefect and MLflow know of it."""

    work_dir: Path

    def retrain(self, *overrides: str) -> Done:
        foreign = ("VLM_R3_", "PREFECT_", "MLFLOW_")
        began = time.monotonic()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "flows.cli", "retrain", "--preset", "tiny-smoke"),
                *("--work-dir", str(self.work_dir)),
                *(word for override in (*SMALL, *overrides) for word in ("--set", override)),
            ],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=f"sqlite:///{self.work_dir}/mlflow.db")

    def num_tracked(self) -> int:
        experiment = self.client.get_experiment_by_name("vlm-r3")
        assert experiment is not None
        return len(self.client.search_runs([experiment.experiment_id]))

    def children(self) -> dict[Path, int]:
        """When the child process of every run directory was started."""
        return {path: path.stat().st_mtime_ns for path in self.work_dir.glob("runs/*/process.json")}

    def prefect(self, query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.work_dir / "prefect" / "prefect.db") as database:
            return database.execute(query).fetchall()

    def evidence(self, version: str) -> Evidence:
        tags = self.client.get_model_version("vlm-r3", version).tags
        return Evidence.read(folder_of(tags["evidence_uri"]))

    def data(self, version: str) -> Path:
        return folder_of(self.client.get_model_version("vlm-r3", version).tags["data_uri"])


def folder_of(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def accepted(folder: Path) -> dict[str, dict[str, Any]]:
    """Every accepted row of both splits as it is stored, by its id."""
    parts = (folder / "records", folder / "validation")
    return {row["id"]: row for part in parts for row in read_rows(part, RECORD_SCHEMA)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("retrain") / "work")


@pytest.fixture(scope="module")
def first(place: Place) -> Done:
    done = place.retrain()
    assert done.code == 0, f"{done.out}\n{done.err}"
    return done


@pytest.fixture(scope="module")
def grown(place: Place, first: Done) -> Done:
    done = place.retrain(*GROWN)
    assert done.code == 0, f"{done.out}\n{done.err}"
    return done


def test_the_first_time_everything_is_new(place: Place, first: Done) -> None:
    assert first.out.startswith("New (nothing was trained on it so far): tiny-world is new (48 rows)")
    assert "registered  vlm-r3 version 1 (challenger, champion)" in first.out
    evidence = place.evidence("1")
    assert evidence.data.sources["tiny-world"].num_rows == 48
    assert evidence.data.earlier is None
    assert evidence.missing() == ()


def test_nothing_new_runs_nothing_and_says_so(place: Place, first: Done) -> None:
    before = (place.num_tracked(), place.children(), sorted(place.work_dir.glob("artifacts/*/*")))
    (num_flows,) = place.prefect("SELECT count(*) FROM flow_run")[0]
    done = place.retrain()
    assert done.code == 0, done.err
    digest = all_digest(place.evidence("1").data.sources)[:12]
    said = "Nothing new: version 1 was trained on exactly these sources (tiny-world: 48 rows"
    assert done.out == f"{said}; digest {digest}). Nothing was run.\n"
    assert "build_vlir" not in done.err
    assert done.seconds < first.seconds / 2
    assert (place.num_tracked(), place.children(), sorted(place.work_dir.glob("artifacts/*/*"))) == before
    # One flow run, and in it the look alone; its state, its artifact and its log say why.
    runs = place.prefect(
        "SELECT flow_run.id, flow_run_state.type, flow_run_state.message FROM flow_run"
        " JOIN flow_run_state ON flow_run.state_id = flow_run_state.id"
        f" ORDER BY flow_run.created LIMIT -1 OFFSET {num_flows}"
    )
    ((run, state, message),) = runs
    assert state == "COMPLETED"
    assert message == done.out.strip()
    ((task,),) = place.prefect(f"SELECT name FROM task_run WHERE flow_run_id = '{run}'")
    assert task.startswith("look_for_news")
    ((text,),) = place.prefect(f"SELECT data FROM artifact WHERE flow_run_id = '{run}'")
    assert said in text
    logged = place.prefect(f"SELECT message FROM log WHERE flow_run_id = '{run}'")
    assert any(said in line for (line,) in logged)


def test_a_world_that_grew_is_trained_on_with_what_there_was(place: Place, grown: Done) -> None:
    assert grown.out.startswith("New since version 1: tiny-world has 22 rows more (70)")
    assert "What did not change keeps its records of version 1." in grown.out
    before, after = accepted(place.data("1")), accepted(place.data("2"))
    assert before
    assert {id: after[id] for id in before} == before
    assert len(after) > len(before)
    manifest = read_manifest(place.data("2"))
    kept = manifest["earlier"]["kept"]
    assert sum(sum(split.values()) for split in kept.values()) == 48
    asked = {record.question.id for record in read_records(place.data("2") / "rejected")} | after.keys()
    assert len(asked) == 70
    evidence = place.evidence("2")
    assert evidence.parent_version == "1"
    assert evidence.data.sources["tiny-world"].num_rows == 70
    assert evidence.data.earlier is not None
    assert evidence.data.earlier.name.startswith(place.data("1").as_uri() + "#")
    assert evidence.data.earlier.num_kept == len(before)


def test_champion_and_challenger_answer_the_same_questions(place: Place, grown: Done) -> None:
    evidence = place.evidence("2").evaluation
    assert evidence.baseline == "champion"
    results, models = read_results(folder_of(evidence.artifact.uri))
    assert models["champion"] == place.evidence("1").model.sha256
    compared = results.comparison("rgrpo", "champion")
    assert compared is not None
    assert (compared.num_questions, compared.num_unscored) == (20, 0)


def test_any_version_that_had_these_sources_is_enough(place: Place, grown: Done) -> None:
    assert place.retrain().out.startswith("Nothing new: version 1 was trained on exactly these sources")


def test_the_champion_writes_the_rationales_of_new_rows(place: Place, grown: Done) -> None:
    more = ("vlir.num_questions=64", "vlir.num_validation_questions=10")
    # It learned nothing in a minute: what it writes is judged, and the gate is told to end the run there.
    done = place.retrain(*more, "retrain.teacher=champion", "validation.min_records=100000")
    assert done.code == 3, done.err
    assert "num_records" in done.err
    folders = [path.parent for path in place.work_dir.glob("artifacts/build_vlir/*/manifest.json")]
    (folder,) = [one for one in folders if read_manifest(one)["teacher"] == "models:/vlm-r3/2"]
    tries = [*read_records(folder / "rejected"), *read_records(folder / "records")]
    by = {record.question.id: record.teacher for record in tries}
    assert [*by.values()].count("models:/vlm-r3/2") == 4
    before = accepted(place.data("2"))
    assert {id: accepted(folder)[id] for id in before} == before
    assert {row["teacher"] for row in before.values()} == {"embedded"}
    assert re.search(r"version 2, writes the rationales", "".join(log_lines(place)))


def log_lines(place: Place) -> list[str]:
    return [message for (message,) in place.prefect("SELECT message FROM log")]
