"""The whole factory on preset tiny-smoke, as a user runs it: twice, and once interrupted.

One run feeds several tests; it takes minutes, all else seconds.
"""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from models.evaluation.report_page import read_gallery
from models.evidence import Evidence
from models.rundir import RunDir
from tests.planted import SECRETS, holding, words
from tests.readme import arguments_of
from tests.trained import Done, cpu_seconds_of_children

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
# Commands of the README, on a smaller preset.
SMOKE = {"--preset tiny": "--preset tiny-smoke"}
RUN = arguments_of("vlm-r3 run --preset tiny", SMOKE)
EVALUATE = arguments_of("vlm-r3 evaluate --preset tiny", SMOKE)
RETRAIN = arguments_of("vlm-r3 retrain --preset tiny", SMOKE)
PREFLIGHT = arguments_of("vlm-r3 preflight --preset tiny", SMOKE)
# The smoke preset learns nothing, so its gate is opened by hand: this is about the machinery.
OPEN_GATE = (
    *("--set", "promotion.min_gain=-1"),
    *("--set", "promotion.max_kind_loss=1"),
    *("--set", "promotion.max_protocol_error_rate=1"),
)
STAGES = ("build_vlir", "validate", "sft", "rgrpo", "more_sft", "no_sft", "evaluate")
ROWS = ("base (direct)", "base (look-again)", "SFT", "more SFT", "R-GRPO", "no SFT", "no crop injected")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", *arguments]


def environment() -> dict[str, str]:
    """That of a user with many secrets: none of the variables that other tests or services may have set."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VLM_R3_", "PREFECT_", "MLFLOW_"))
    }
    return {**plain, **SECRETS}


def run(work_dir: Path, *arguments: str) -> Done:
    began = cpu_seconds_of_children()
    done = subprocess.run(
        command(*arguments, "--work-dir", str(work_dir)),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return Done(done.returncode, done.stdout, done.stderr, cpu_seconds_of_children() - began)


def processes_of(work_dir: Path) -> list[str]:
    """Processes that belong to a run: its work directory is in their arguments or their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            texts = [*process.cmdline(), process.environ().get("VLM_R3_WORK_DIR", "")]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if any(str(work_dir) in text for text in texts) and process.pid != os.getpid():
            found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline") / "work"


@pytest.fixture(scope="module")
def first(place: Path) -> Done:
    done = run(place, *RUN, *OPEN_GATE)
    assert done.code == 0, f"{done.out}\n{done.err}"
    return done


@pytest.fixture(scope="module")
def client(place: Path, first: Done) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")


@pytest.fixture(scope="module")
def runs(client: MlflowClient) -> dict[str, Run]:
    """The tracked runs of the first pipeline by name."""
    experiment = client.get_experiment_by_name("vlm-r3")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return {run.info.run_name: run for run in reversed(found)}


def test_it_ends_with_the_table_the_minutes_the_version_and_the_report(first: Done, place: Path) -> None:
    for row in ROWS:
        assert re.search(rf"^{re.escape(row)} ", first.out, re.MULTILINE), first.out
    assert "where the time went" in first.out
    assert all(re.search(rf"^  {stage} .* s$", first.out, re.MULTILINE) for stage in STAGES)
    assert "registered  vlm-r3 version 1 (challenger, champion)" in first.out
    report = re.search(r"^report +(.+)$", first.out, re.MULTILINE)
    assert report is not None
    page = Path(report[1])
    assert page.is_relative_to(place)
    assert "</html>" in page.read_text()


def test_a_person_sees_where_it_is(first: Done) -> None:
    for stage in STAGES:
        assert re.search(rf"^\[\d+/11\] {stage}: done in \d+ ", first.err, re.MULTILINE), first.err
    assert re.search(r"^\[\d+/11\] sft: .*loss \d", first.err, re.MULTILINE)


def test_nothing_is_left_running(first: Done, place: Path) -> None:
    assert processes_of(place) == []


def test_every_stage_is_tracked_under_one_parent(runs: dict[str, Run]) -> None:
    parent = runs["pipeline tiny-smoke"]
    for stage in STAGES:
        assert runs[stage].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert runs[stage].info.status == "FINISHED"
        assert runs[stage].data.params
        assert parent.data.tags[f"stage.{stage}"] == runs[stage].info.run_id
    assert parent.data.params["rgrpo.group_size"] == "4"


def test_every_metric_of_every_step_reached_the_tracker(
    client: MlflowClient, runs: dict[str, Run], place: Path
) -> None:
    (folder,) = place.glob("runs/sft-*")
    written = {line["step"]: line["sft/loss"] for line in RunDir(folder).metrics() if "sft/loss" in line}
    history = client.get_metric_history(runs["sft"].info.run_id, "sft/loss")
    assert {point.step: point.value for point in history} == pytest.approx(written)
    assert len(written) > 1
    assert "rgrpo/reward" in runs["rgrpo"].data.metrics
    kept = {file.path for file in client.list_artifacts(runs["rgrpo"].info.run_id)}
    assert kept >= {"config.json", "metrics.jsonl", "result.json", "log.txt"}


def test_the_version_carries_its_evidence_and_points_at_the_only_copy(
    client: MlflowClient, place: Path
) -> None:
    champion = client.get_model_version_by_alias("vlm-r3", "champion")
    assert champion.version == client.get_model_version_by_alias("vlm-r3", "challenger").version
    evidence = Evidence.read(Path(champion.tags["evidence_uri"].removeprefix("file://")))
    assert evidence.missing() == ()
    assert evidence.preset["name"] == "tiny-smoke"
    assert evidence.guards.passed
    assert evidence.validation.data_sha256 == champion.tags["data_digest"]
    looked_at = [check.name for check in evidence.preflight.checks]
    assert looked_at[:5] == ["base model", "pixel factor", "engine", "micro-batch", "tracker"]
    assert {"image pads", "engine and trainer", "caches", "reward floor"} <= set(looked_at)
    assert {limit.name for limit in evidence.guards.limits} >= {"rgrpo/mismatch_kl", "rgrpo/entropy"}
    assert champion.source.startswith("models:/")
    assert champion.tags["model_uri"].startswith(place.as_uri() + "/artifacts/rgrpo/")
    weights = [path.stat() for path in place.rglob("model.safetensors")]
    # SFT, R-GRPO and the two controls; the run directory and the store share each file.
    assert len({status.st_ino for status in weights}) == 4
    assert all(status.st_nlink == 2 for status in weights)
    assert list((place / "mlflow").rglob("*.safetensors")) == []


def test_the_report_is_tracked_traced_and_linked_from_the_flow_run(
    client: MlflowClient, runs: dict[str, Run], place: Path
) -> None:
    parent = runs["pipeline tiny-smoke"].info
    assert "report.html" in {file.path for file in client.list_artifacts(parent.run_id)}
    traces = client.search_traces(locations=[parent.experiment_id], filter_string="tags.variant = 'rgrpo'")
    assert traces
    assert traces[0].info.trace_metadata["mlflow.sourceRun"] == parent.run_id
    assert traces[0].info.tags["model_version"] == "1"
    (page,) = place.glob("reports/*/report.html")
    with sqlite3.connect(place / "prefect" / "prefect.db") as prefect:
        linked = prefect.execute(
            "SELECT data FROM artifact JOIN flow_run ON flow_run.id = artifact.flow_run_id"
            " WHERE artifact.key = 'report' AND flow_run.parent_task_run_id IS NULL"
        ).fetchall()
    assert page.as_uri() in linked[0][0]
    sets = [one["label"] for one in read_gallery(page)["sets"]]
    assert sets == ["held-out", "R-GRPO rollouts, step 1", "R-GRPO rollouts, step 2"]


def test_no_secret_is_in_anything_that_was_written(first: Done, place: Path, tmp_path: Path) -> None:
    assert holding(place, words()) == []
    assert not any(word in (first.out + first.err).encode() for word in words())
    for number, secret in enumerate(SECRETS.values()):  # it would be found
        (tmp_path / str(number)).write_text(f"?{secret}?")
    assert len(holding(tmp_path, words())) == len(SECRETS)


def test_a_second_run_does_only_what_changed(place: Path, first: Done, client: MlflowClient) -> None:
    started = {path: path.stat().st_mtime_ns for path in place.glob("runs/*/process.json")}
    again = run(place, *RUN, *OPEN_GATE)
    assert again.code == 0, again.err
    for stage in STAGES:
        assert re.search(rf"^\[\d+/11\] {stage}: from the cache", again.err, re.MULTILINE), again.err
    assert {path: path.stat().st_mtime_ns for path in place.glob("runs/*/process.json")} == started
    assert again.cpu_seconds < min(60, first.cpu_seconds / 2)
    assert "registered  vlm-r3 version 1 (challenger, champion)" in again.out
    assert len(client.search_model_versions("name = 'vlm-r3'")) == 1
    # The numbers are those of the first run, to the letter.
    table = first.out.split("where the time went")[0]
    assert again.out.startswith(table)


def test_nothing_is_retrained_on_the_sources_of_a_version(place: Path, first: Done) -> None:
    again = run(place, *RETRAIN, *OPEN_GATE)
    assert again.code == 0, again.err
    assert again.out.startswith("Nothing new: version 1 was trained on exactly these sources (tiny-world: ")
    assert "build_vlir" not in again.err


def test_one_batch_is_looked_at_before_the_hours(place: Path, first: Done) -> None:
    done = run(place, *PREFLIGHT, *OPEN_GATE)
    assert done.code == 0, done.err
    assert re.search(r"^\[\d+/\d+\] sft: from the cache", done.err, re.MULTILINE)
    said = [line for line in done.out.splitlines() if line]
    assert len(said) > 5
    assert all(line.startswith("ok   ") for line in said), done.out


def test_an_evaluation_alone_ends_with_a_page_of_its_own(place: Path, first: Done) -> None:
    done = run(place, *EVALUATE, *OPEN_GATE)
    assert done.code == 0, done.err
    found = re.search(r"^report +file://(.+)$", done.out, re.MULTILINE)
    assert found is not None, done.out
    text = (Path(found[1]) / "report.html").read_text()
    assert "tiny-smoke, evaluation" in text
    assert "promoted to champion" not in text


def test_a_gate_that_says_no_ends_with_code_3_and_its_reasons(place: Path, first: Done) -> None:
    refused = run(place, "validate", "--preset", "tiny-smoke", "--set", "validation.min_records=100000")
    assert refused.code == 3
    assert "GateError" in refused.err
    assert "num_records" in refused.err
    assert "Traceback" not in refused.err


@pytest.fixture
def training(place: Path, first: Done) -> Iterator["subprocess.Popen[str]"]:
    """A stage in the middle of its heavy work: two ranks under a launcher."""
    process = subprocess.Popen(
        command(
            "sft",
            "--preset",
            "tiny-smoke",
            "--work-dir",
            str(place),
            "--set",
            "sft.num_epochs=50",
        ),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    # Both ranks name their run directory; so do their launcher and its supervisor.
    while sum("models.sft.train" in found for found in processes_of(place)) < 4:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "told to end (SIGTERM)")],
)
def test_an_interrupted_run_leaves_no_process(
    training: "subprocess.Popen[str]", place: Path, number: signal.Signals, code: int, says: str
) -> None:
    training.send_signal(number)
    _, err = training.communicate(timeout=120)
    assert training.returncode == code
    assert f"vlm-r3: {says}; no process was left running." in err
    deadline = time.monotonic() + 60
    while processes_of(place) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(place) == []
