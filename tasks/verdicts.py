"""Verdicts of the gate: what one says, where the previous one is, and the page about one."""

import json
from pathlib import Path

from models.config import Preset
from models.evaluation.report_inputs import Check
from models.evaluation.report_page import Page, Section
from models.evaluation.report_sections import figure_3, validation
from models.vlir.validate import STATISTICS_FILE
from models.vlir.verdict import VERDICT, ValidationVerdict
from tasks.artifacts import ArtifactRef, store_of
from tasks.model_source import has_registry
from tasks.publication import publish_page
from tasks.settings import Settings
from tasks.tracking import TrackedRun
from tasks.versions import CHAMPION, find_version


def read_verdict(folder: Path) -> ValidationVerdict:
    """The verdict in an artifact of kind ``verdict``."""
    return ValidationVerdict.from_json((folder / VERDICT).read_text())


def checks_of(verdict: ValidationVerdict) -> list[Check]:
    """The rows of a verdict for a page."""
    return [
        Check(
            found.name,
            found.success,
            found.detail,
            bounds=found.bounds,
            observed=found.observed,
            num_unexpected=found.unexpected_count,
            examples=found.example_ids,
            skipped=found.skipped,
        )
        for found in verdict.expectations
    ]


def previous_verdict(preset: Preset, data: ArtifactRef) -> ArtifactRef | None:
    """The verdict on the data that the champion learned from.

    None where there is nothing to compare ``data`` with: no champion, one of another preset or of this very
    data, or bounds that nothing can break.
    """
    bounds = preset.validation
    if bounds.max_size_drift == bounds.max_source_drift == 1 or not has_registry(Settings.read()):
        return None
    champion = find_version(CHAMPION)
    if champion is None or champion.tags.get("preset_name") != preset.name:
        return None
    uri, digest = (champion.tags.get(f"validation_{name}", "") for name in ("uri", "digest"))
    if not uri or champion.tags.get("data_digest") == data.sha256:
        return None
    return ArtifactRef(uri=uri, sha256=digest, kind="verdict")


def statistics_path(verdict: ArtifactRef, settings: Settings) -> Path:
    """The statistics of the data that a verdict is about. Raises ArtifactError when it is not there."""
    return store_of(verdict.uri, settings).fetch(verdict) / STATISTICS_FILE


async def show_verdict(page: Path, folder: Path, verdict: ValidationVerdict, tracked: TrackedRun) -> None:
    """Write the page about a verdict, and keep page, verdict, and suite with the tracked run."""
    statistics = json.loads((folder / STATISTICS_FILE).read_text())
    state = "may be trained on" if verdict.passed else "may not be trained on"
    Page(
        f"data {verdict.data_digest[:12]}",
        f"{verdict.num_records} records: {state}",
        [
            Section("validation", "Validation", validation(checks_of(verdict)), "Validation"),
            Section("data", "Data", figure_3(statistics), "Data"),
        ],
    ).write(page)
    for path in sorted(folder.glob("*.json")):
        tracked.log_file(path)
    await publish_page(page, tracked.id, num=0, tags={}, models={}, name="validation")
