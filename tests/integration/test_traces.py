"""Trajectories as MLflow traces: with pictures, found by tag, open to feedback, below their run."""

from pathlib import Path

import mlflow
import pytest
from mlflow.entities import AssessmentSource, Trace

from models.evaluation.report import write_report
from models.evaluation.report_page import read_gallery
from tasks import tracking
from tasks.settings import Settings, prepare
from tasks.traces import log_traces
from tests.evaluation_examples import make_report_inputs

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(work_dir: Path) -> Settings:
    return prepare(work_dir)


def search(settings: Settings, wanted: str) -> list[Trace]:
    return mlflow.search_traces(
        locations=[tracking.experiment_id(settings)], filter_string=wanted, return_type="list"
    )


def test_a_person_finds_a_trajectory_by_tag_sees_its_pictures_and_leaves_feedback(
    settings: Settings, tmp_path: Path
) -> None:
    write_report(tmp_path / "report.html", make_report_inputs(tmp_path))
    gallery = read_gallery(tmp_path / "report.html")
    with tracking.tracked_run(settings, "pipeline") as run:
        tags, models = {"model_version": "2"}, {"rgrpo": "ab" * 32}
        ids = log_traces(settings, run.id, gallery, num=12, tags=tags, models=models)
    assert len(ids) == 12
    # R-GRPO is wrong on q0 alone, where its box was refused.
    (wrong,) = search(settings, "tags.variant = 'rgrpo' AND tags.correct = 'wrong'")
    assert wrong.info.tags["question_id"] == "q0"
    assert wrong.info.trace_metadata["mlflow.sourceRun"] == run.id
    model = tracking.logged_model(settings, name="rgrpo", digest="ab" * 32, tags={})
    assert wrong.info.trace_metadata["mlflow.modelId"] == model
    assert (wrong.info.tags["num_crops"], wrong.info.tags["model_version"]) == ("0", "2")
    looks = {span.name: span.outputs for span in wrong.data.spans}
    assert looks["look 1"] == {"refused": "inverted_box"}
    (right,) = search(settings, "tags.question_id = 'q4' AND tags.variant = 'rgrpo'")
    root, *below = right.data.spans
    question, answer = root.inputs["messages"][0], root.outputs["choices"][0]["message"]
    assert [part["type"] for part in question["content"]] == ["image_url", "text"]
    assert [part["type"] for part in answer["content"]] == ["text", "image_url", "text"]
    assert [span.name for span in below] == ["what it looked at", "look 1"]
    kept = {path.stat().st_size for path in settings.tracking_files.rglob("attachments/*")}
    assert kept, list(settings.tracking_files.rglob("*"))
    assert min(kept) > 0
    mlflow.log_feedback(
        trace_id=right.info.trace_id,
        name="sound reasoning",
        value=True,
        source=AssessmentSource(source_type="HUMAN", source_id="reader"),
    )
    found = {one.name: one.value for one in mlflow.get_trace(right.info.trace_id).info.assessments}
    assert found == {"answer": "K7", "sound reasoning": True}


def test_no_more_traces_than_asked_for(settings: Settings, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", make_report_inputs(tmp_path))
    with tracking.tracked_run(settings, "pipeline") as run:
        gallery = read_gallery(tmp_path / "report.html")
        assert len(log_traces(settings, run.id, gallery, num=3, tags={}, models={})) == 3
    assert len(search(settings, "tags.correct != 'none'")) == 3
