"""A benchmark from the command line, twice: what is kept of it in MLflow and Prefect, and that it repeats."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from models.evaluation.benchmark_report import PAGE
from models.evaluation.benchmark_results import BenchmarkResults
from models.evaluation.benchmark_rows import AskedRow, read_asked
from models.evaluation.report_page import read_gallery
from tasks.artifacts import digest_of, local_path
from tasks.services import prefect_server
from tasks.settings import prepare
from tests.benchmark_examples import ROWS, file_name, schema_of, small, write
from tests.environment import work_dir_at
from tests.readme import arguments_of

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
NUM_PAIRS = 6


@dataclass
class Done:
    out: str
    folder: Path

    @property
    def results(self) -> BenchmarkResults:
        return BenchmarkResults.load(self.folder / "metrics.json")

    @property
    def rows(self) -> list[AskedRow]:
        return [replace(row, seconds=0.0) for row in read_asked(self.folder / "predictions.parquet")]


@dataclass
class Place:
    """Where both runs happened, with a Prefect server that outlives them."""

    work: Path
    api_url: str
    first: Done
    second: Done

    def tracked(self, title: str) -> Run:
        client = self.client
        experiment = client.get_experiment_by_name("vlm-r3")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{title}'")
        return client.get_run(run.info.run_id)  # a search leaves out the models

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=f"sqlite:///{self.work}/mlflow.db")


def evaluate(folder: Path, documented: str, *arguments: str) -> Done:
    """A command of the README, on the two rows in a folder."""
    options = [*arguments_of(documented), "--allow-partial", "--set", "engine.kind=transformers"]
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *options, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^benchmark +(file://\S+)$", done.stdout, re.MULTILINE)
    assert found is not None
    return Done(done.stdout, local_path(found[1]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("evidence")
    published, split, _ = small("mme")
    rows = [
        {**row, "question_id": f"OCR/{number}.png", "category": "OCR" if number < 4 else "count"}
        for number in range(NUM_PAIRS)
        for row in ROWS["mme"][1]
    ]
    write(folder / "FOLDER" / file_name(split), rows, schema_of(published))
    with work_dir_at(folder / "work") as work, prefect_server(prepare(work)) as server:
        assert server is not None
        server.wait()
        first = evaluate(
            folder, "vlm-r3 evaluate --benchmark mme --data FOLDER --style direct --title before"
        )
        # Everything made again, by one rank instead of the preset's two.
        second = evaluate(
            folder,
            "vlm-r3 evaluate --benchmark mme --data FOLDER --against before",
            *("--style", "direct", "--title", "after"),
            *("--refresh", "--set", "evaluation.num_ranks=1"),
        )
        yield Place(work, server.api_url, first, second)


def test_the_same_model_and_data_give_the_same_rows_and_numbers(place: Place) -> None:
    first, second = place.first, place.second
    assert first.rows == second.rows
    assert len(first.rows) == 2 * NUM_PAIRS
    clock = {"seconds_per_question": 0.0, "comparison": None}
    assert first.results.model_copy(update=clock) == second.results.model_copy(update=clock)
    assert second.results.model.digest


def test_the_second_run_is_compared_with_the_first_by_its_name(place: Place) -> None:
    found = place.second.results.comparison
    assert found is not None
    assert (found.against.name, found.num_rows, found.num_left_out) == ("before", 2 * NUM_PAIRS, 0)
    assert (found.difference.low, found.difference.value, found.difference.high) == (0.0, 0.0, 0.0)
    assert "to 'before'" in place.second.out
    assert place.first.results.comparison is None


def test_the_tracker_has_the_rows_the_chart_the_data_and_the_model(place: Place) -> None:
    run, results = place.tracked("before"), place.first.results
    params = run.data.params
    assert (params["benchmark"], params["style"], params["seed"]) == ("mme", "direct", "0")
    assert (params["scorer"], params["scorer_version"]) == ("mme", results.scorer_version)
    assert params["set_digest"] == results.data.digest
    assert params["model_digest"] == results.model.digest
    assert run.data.metrics["benchmark/mme/headline"] == results.headline.value
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, results.data.digest.startswith(data.dataset.digest)) == ("mme/test", True)
    assert "FOLDER" in json.loads(data.dataset.source)["uri"]
    (model,) = run.inputs.model_inputs
    logged = place.client.get_logged_model(model.model_id)
    assert logged.tags["model_digest"] == digest_of(ROOT / "models" / "tiny" / "base")
    linked = {metric.key: metric.value for metric in logged.metrics or () if metric.run_id == run.info.run_id}
    assert linked["benchmark/mme/headline"] == results.headline.value
    # One record for the model of both runs.
    assert place.tracked("after").inputs.model_inputs[0].model_id == model.model_id
    files = place.work / "mlflow" / run.info.run_id / "artifacts"
    table = json.loads((files / "rows.json").read_text())
    columns = dict(zip(table["columns"], zip(*table["data"], strict=True), strict=True))
    assert list(columns["id"]) == [row.id for row in place.first.rows]
    assert list(columns["prediction"]) == [row.prediction for row in place.first.rows]
    assert set(columns["gold"]) == {"Yes", "No"}
    assert "<svg" in (files / "chart.html").read_text()


def test_both_runs_have_a_page_and_traces(place: Place) -> None:
    files = place.work / "mlflow" / place.tracked("after").info.run_id / "artifacts"
    (rows,) = read_gallery(files / "report.html")["sets"]
    assert len(rows["questions"]) == 2 * NUM_PAIRS
    # The earlier run stands beside the second one.
    assert [len(one["columns"]) for one in (rows, *read_gallery(place.first.folder / PAGE)["sets"])] == [2, 1]
    traces = place.client.search_traces(
        locations=[place.tracked("before").info.experiment_id], filter_string="tags.benchmark = 'mme'"
    )
    runs = {trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces}
    assert runs == {place.tracked("before").info.run_id, place.tracked("after").info.run_id}


def test_prefect_shows_the_numbers_through_its_api(place: Place) -> None:
    found = httpx.post(f"{place.api_url}/artifacts/filter", json={}, timeout=60).json()
    artifacts = {one["key"]: one for one in found if one["key"]}
    assert set(artifacts) == {"benchmark-before", "benchmark-after", "report"}
    assert "report.html" in artifacts["report"]["data"]
    shown = artifacts["benchmark-after"]
    assert shown["type"] == "table"
    facts = {row["what"]: row["value"] for row in json.loads(shown["data"])}
    assert facts["data"] == place.second.results.data.digest
    assert facts["rows"] == f"{2 * NUM_PAIRS} scored, 0 failed, 0 not asked"
    field = place.second.results.headline_field
    assert all("[" in facts[key] for key in (f"{field}, %", f"{field} of OCR, %"))
    assert facts["difference to before, points"].startswith("0.0 [0.0, 0.0] over 12 rows")
    assert facts["artifact"].startswith("file://")
