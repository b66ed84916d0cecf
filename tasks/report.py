"""The page about a pipeline run, and the closing lines of the command line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import task

from models.config import Preset
from models.evaluation import table
from models.evaluation.report import write_report
from models.evaluation.report_inputs import Check, Fact, Promotion, ReportInputs, StageTime
from models.evaluation.results import Results
from models.vlir.build import MANIFEST, QUESTIONS
from tasks import tracking
from tasks.data import read_verdict
from tasks.evaluation import FINAL, read_results
from tasks.progress import board, duration
from tasks.registry import Verdict
from tasks.settings import Settings
from tasks.stage import StageOutput, read_store
from tasks.versions import Version

HEADLINE = (FINAL, "sft")


@task(name="report", persist_result=False)
async def report(
    preset: Preset,
    outputs: dict[str, StageOutput],
    version: Version,
    verdict: Verdict,
    label: str = "report",
    parent: str = "",
) -> str:
    """Write the page, keep it with the tracked run, and return its path."""
    settings, store = Settings.read(), read_store()
    evaluation = store.fetch(outputs["evaluate"].artifacts["evaluation"])
    data = store.fetch(outputs["build_vlir"].artifacts["data"])
    results, _ = read_results(evaluation)
    path = settings.work_dir / "reports" / f"{preset.name}-version-{version.number}" / "report.html"
    inputs = ReportInputs(
        title=f"VLM-R3, preset {preset.name}, version {version.number}",
        results=results,
        headline=HEADLINE,
        promotion=Promotion(verdict.is_champion, version.number, verdict.reasons),
        look=preset.look,
        questions_path=data / QUESTIONS / "test.parquet",
        predictions=_predictions(evaluation, results),
        facts=_facts(version),
        validation=_checks(store.fetch(outputs["validate"].artifacts["verdict"])),
        data=_data(data),
        stages=stage_times(outputs),
        sft_metrics=_lines(store.fetch(outputs["sft"].artifacts["record"])),
        rgrpo_metrics=_lines(store.fetch(outputs["rgrpo"].artifacts["record"])),
    )
    write_report(path, inputs)
    if parent:
        tracking.TrackedRun(settings, parent).log_file(path, "report")
    return str(path)


def closing_table(outputs: Mapping[str, StageOutput]) -> str:
    """The table of results as text."""
    results, _ = read_results(read_store().fetch(outputs["evaluate"].artifacts["evaluation"]))
    return table.to_text(results)


def stage_times(outputs: Mapping[str, StageOutput]) -> list[StageTime]:
    """How long every stage on the board took; a cached one shows what it took when it was made."""
    times = []
    for label, row in board().rows.items():
        is_cached = row.is_cached and label in outputs
        seconds = outputs[label].seconds if is_cached else row.seconds
        times.append(StageTime(label, seconds, "from the cache" if is_cached else ""))
    return times


def time_lines(times: list[StageTime], total_seconds: float) -> str:
    """Where the minutes went, as text."""
    width = max((len(found.name) for found in times), default=0)
    lines = [
        f"  {found.name.ljust(width)}  {duration(found.seconds):>12}  {found.remark}".rstrip()
        for found in times
    ]
    return "\n".join([f"where the time went ({duration(total_seconds)} in all)", *lines])


def _predictions(evaluation: Path, results: Results) -> dict[str, Path]:
    folder = evaluation / "predictions"
    return {row.name: folder / f"{row.name}.parquet" for row in results.variants}


def _facts(version: Version) -> list[Fact]:
    shown = (
        "preset_name",
        "git_commit",
        "code_digest",
        "data_digest",
        "base_digest",
        "model_digest",
        "licence",
    )
    return [Fact(name, version.evidence.get(name, "")) for name in shown]


def _checks(folder: Path) -> list[Check]:
    return [
        Check(found.name, found.success, ", ".join([found.detail, *found.example_ids]).strip(", "))
        for found in read_verdict(folder).expectations
    ]


def _data(folder: Path) -> list[Fact]:
    """What the data manifest says about both splits that have rationales."""
    manifest = json.loads((folder / MANIFEST).read_text())
    train: Mapping[str, Any] = manifest["train"]
    counts = [Fact(name, f"{train[name]:g}") for name in ("num_questions", "num_tries", "num_records")]
    rejected = [Fact(f"rejected: {reason}", str(count)) for reason, count in train["rejected"].items()]
    return [*counts, Fact("acceptance", f"{train['acceptance']:.1%}"), *rejected]


def _lines(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (record / "metrics.jsonl").read_text().splitlines()]
