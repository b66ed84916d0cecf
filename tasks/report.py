"""The page about a pipeline run or an evaluation, and the closing lines of the command line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import task

from models.config import Preset
from models.evaluation import table
from models.evaluation.report import write_report
from models.evaluation.report_inputs import Fact, Figure, Promotion, ReportInputs, StageTime
from models.rundir import ROLLOUTS
from models.vlir.layout import MANIFEST, QUESTIONS
from tasks import tracking
from tasks.analysis import ANALYSIS, TABLE
from tasks.artifacts import ArtifactRef
from tasks.evaluation import FINAL, read_results
from tasks.progress import board, duration
from tasks.publication import publish_page
from tasks.registry import Verdict
from tasks.settings import Settings
from tasks.stage import StageOutput, read_store
from tasks.verdicts import checks_of, read_verdict
from tasks.versions import Version

HEADLINE = (FINAL, "sft")
PAGE = "report.html"
# What `vlm-r3 analyse` draws, by file.
_FIGURES = {
    "figure4": "Figure 4: accuracy against the accuracy of grounding",
    "figure5": "Figure 5: attention to the pictures along the answer",
    "table2": "Table 2: ablations",
}


@task(name="report", persist_result=False)
async def report(
    preset: Preset,
    outputs: dict[str, StageOutput],
    version: Version | None = None,
    verdict: Verdict | None = None,
    label: str = "report",
    parent: str = "",
) -> str:
    """Write the page, keep it with the tracked run, link it from the flow run, and return its path.

    Without a version and its verdict the page is about an evaluation alone.
    """
    evaluation = read_store().fetch(outputs["evaluate"].artifacts["evaluation"])
    run = parent or outputs["evaluate"].tracking_run
    name = f"{preset.name}-version-{version.number}" if version else f"{preset.name}-{run[:12]}"
    path = Settings.read().work_dir / "reports" / name / PAGE
    subject = f"version {version.number}" if version else "evaluation"
    results, digests = read_results(evaluation)
    inputs = ReportInputs(
        title=f"{preset.name}, {subject}",
        results=results,
        headline=HEADLINE,
        look=preset.look,
        trained=_trained(preset, outputs),
        promotion=Promotion(verdict.is_champion, verdict.version, verdict.reasons) if verdict else None,
        facts=_facts(version, outputs),
        stages=stage_times(outputs, preset),
        config=preset.report,
        **_shown(outputs, evaluation),
    )
    write_report(path, inputs)
    await publish_page(
        path,
        run,
        num=preset.report.num_traces,
        tags={"model_version": version.number} if version else {},
        models={row: digests[row] for row in HEADLINE},
    )
    return str(path)


def closing_table(outputs: Mapping[str, StageOutput]) -> str:
    """The table of results as text."""
    results, _ = read_results(read_store().fetch(outputs["evaluate"].artifacts["evaluation"]))
    return table.to_text(results)


def stage_times(outputs: Mapping[str, StageOutput], preset: Preset) -> list[StageTime]:
    """How long every stage on the board took; a cached one shows what it took when it was made."""
    ranks = {
        **dict.fromkeys(("sft", "more_sft"), preset.sft.num_ranks),
        **dict.fromkeys(("rgrpo", "no_sft"), preset.rgrpo.num_ranks),
        "evaluate": preset.evaluation.num_ranks,
    }
    times = []
    for label, row in board().rows.items():
        is_cached = row.is_cached and label in outputs
        seconds = outputs[label].seconds if is_cached else row.seconds
        times.append(StageTime(label, seconds, "from the cache" if is_cached else "", ranks.get(label, 1)))
    return times


def time_lines(times: list[StageTime], total_seconds: float) -> str:
    """Where the minutes went, as text."""
    width = max((len(found.name) for found in times), default=0)
    lines = [
        f"  {found.name.ljust(width)}  {duration(found.seconds):>12}  {found.remark}".rstrip()
        for found in times
    ]
    return "\n".join([f"where the time went ({duration(total_seconds)} in all)", *lines])


def _shown(outputs: Mapping[str, StageOutput], evaluation: Path) -> dict[str, Any]:
    """The parts of the page that are read from the artifacts of the stages."""
    store = read_store()
    data = store.fetch(outputs["build_vlir"].artifacts["data"])
    manifest = json.loads((data / MANIFEST).read_text())
    rollouts = outputs["rgrpo"].artifacts.get(ROLLOUTS)
    return {
        "questions_path": data / QUESTIONS / "test.parquet",
        "predictions": {path.stem: path for path in (evaluation / "predictions").glob("*.parquet")},
        "rollouts": _rollouts(store.fetch(rollouts)) if rollouts else {},
        "rollout_questions_path": data / QUESTIONS / "train.parquet",
        "validation": checks_of(read_verdict(store.fetch(outputs["validate"].artifacts["verdict"]))),
        "data": _data(manifest["train"]),
        "statistics": manifest["train"]["statistics"],
        "figures": _figures(store.fetch(outputs["rgrpo"].artifacts["model"])),
        "sft_metrics": _lines(store.fetch(outputs["sft"].artifacts["record"])),
        "rgrpo_metrics": _lines(store.fetch(outputs["rgrpo"].artifacts["record"])),
    }


def _figures(model: Path) -> list[Figure]:
    """What `vlm-r3 analyse` has drawn about this model so far; of the same figure the newest."""
    kept = tracking.find_artifacts(
        Settings.read(), stage="analyse", name=ANALYSIS, param="model_path", value=str(model)
    )
    drawn: dict[str, Path] = {}
    for one in kept:
        uri, _, digest = one.partition("#")
        folder = read_store().fetch(ArtifactRef(uri=uri, sha256=digest, kind=ANALYSIS))
        drawn |= {path.stem: path for path in folder.glob("*.svg")}
    return [
        Figure(_FIGURES.get(name, name), path.read_bytes(), (path.parent / TABLE).read_text())
        for name, path in sorted(drawn.items())
    ]


def _rollouts(folder: Path) -> dict[str, Path]:
    """The files of the first, the middle and the last step, by name; metrics count from 1, files from 0."""
    steps = {int(path.stem.removeprefix("step-")): path for path in folder.rglob("step-*.parquet")}
    numbers = sorted(steps)
    chosen = dict.fromkeys((numbers[0], numbers[len(numbers) // 2], numbers[-1]))
    return {f"step {number + 1}": steps[number] for number in chosen}


def _trained(preset: Preset, outputs: Mapping[str, StageOutput]) -> str:
    """What was trained, in two sentences."""
    records = outputs["build_vlir"].metrics["vlir/records"]
    base = "the embedded tiny model" if preset.model.path == "embedded" else preset.model.path
    config = preset.rgrpo
    return (
        f"Trained from {base} on {records:.0f} accepted rationales ({preset.sft.num_epochs} epochs of SFT), "
        f"then {config.num_steps} steps of R-GRPO with {config.questions_per_step} questions and "
        f"{config.group_size} rollouts of each. Seed {preset.seed}."
    )


def _facts(version: Version | None, outputs: Mapping[str, StageOutput]) -> list[Fact]:
    if version is None:
        return [Fact(name, output.tracking_run, "tracked run") for name, output in outputs.items()]
    shown = (
        "preset_name",
        "git_commit",
        "code_digest",
        "data_digest",
        "base_digest",
        "model_digest",
        "licence",
    )
    return [Fact(name.replace("_", " "), version.tags.get(name, "")) for name in shown]


def _data(train: Mapping[str, Any]) -> list[Fact]:
    """What the data manifest says about the training split."""
    names = {
        "num_questions": "questions",
        "num_tries": "tries of the teacher",
        "num_records": "accepted rationales",
    }
    counts = [Fact(name, f"{train[key]:g}") for key, name in names.items()]
    rejected = [
        Fact(f"rejected: {reason.replace('_', ' ')}", str(count))
        for reason, count in train["rejected"].items()
    ]
    return [*counts, Fact("acceptance", f"{train['acceptance']:.1%}"), *rejected]


def _lines(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (record / "metrics.jsonl").read_text().splitlines()]
