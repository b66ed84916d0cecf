"""Tasks of the stages build_vlir and validate: the data, and the gate before any accelerator."""

import json
from pathlib import Path

from prefect import task

from models.config import ValidationConfig
from models.errors import GateError
from models.run_config import ValidationRun, VLIRRun
from models.rundir import write_atomically
from models.vlir.statistics_files import NAME, STATISTICS
from tasks.artifacts import ArtifactRef
from tasks.caching import cached
from tasks.shown import show_markdown
from tasks.stage import StageOutput, StageRun, stage_run
from tasks.verdicts import read_verdict, show_verdict, statistics_path

_BUILD = "models.vlir.build"
_VALIDATE = "models.vlir.validate"
_VALIDATED = "validated.json"


@task(**cached("build_vlir", _BUILD))
async def build_data(request: VLIRRun, label: str = "build_vlir", parent: str = "") -> StageOutput:
    """Questions and rationales; artifact ``data``."""
    async with stage_run("build_vlir", label=label, parent=parent, params=request.model_dump()) as stage:
        # Rows that are there already are not asked again when a source has grown: the child decides.
        unchanged = request.model_copy(update={"sources_digest": ""})
        run, result = await stage.child(
            _BUILD, request, inputs=(), num_threads=1, is_repeated=True, named_by=unchanged
        )
        data = stage.publish(run, [result.artifacts["data"]], kind="vlir")
        await _show_statistics(stage, run.path / result.artifacts["data"] / STATISTICS)
        return stage.output(run, result, {"data": data})


@task(**cached("validate", _VALIDATE))
async def validate_data(
    data: ArtifactRef,
    config: ValidationConfig,
    previous: ArtifactRef | None = None,
    label: str = "validate",
    parent: str = "",
) -> StageOutput:
    """The verdict on the data; artifact ``verdict``, and ``data_docs`` where they are wanted.

    ``previous`` is the verdict on the previous version. Raises GateError when the verdict says no.
    """
    async with stage_run("validate", label=label, parent=parent, params=config.model_dump()) as stage:
        request = ValidationRun(
            records_path=str(stage.store.fetch(data)),
            validation=config,
            previous_path=str(statistics_path(previous, stage.settings)) if previous else "",
        )
        inputs = [data] if previous is None else [data, previous]
        run, result = await stage.child(_VALIDATE, request, inputs=inputs)
        folder = run.path / result.artifacts["verdict"]
        write_atomically(folder / _VALIDATED, json.dumps({"data": data.sha256}))
        kept = {name: stage.publish(run, [path], kind=name) for name, path in result.artifacts.items()}
        output = stage.output(run, result, kept)
        found = read_verdict(folder)
        await show_verdict(run.path / "report.html", folder, found, stage.tracked)
        if not found.passed:
            raise GateError(f"The data set may not be trained on. {found.summary()}")
        return output


def read_validated_data(folder: Path) -> str:
    """The digest of the data that the verdict in an artifact is about; empty when it does not say."""
    path = folder / _VALIDATED
    return str(json.loads(path.read_text())["data"]) if path.is_file() else ""


async def _show_statistics(stage: StageRun, folder: Path) -> None:
    """Figure 3 of the data, with the tracked run and in Prefect."""
    for path in sorted(folder.glob(f"{NAME}.*")):
        stage.tracked.log_file(path)
        if path.suffix == ".md":
            await show_markdown("data statistics", path.read_text(), description="Figure 3 of the data")
