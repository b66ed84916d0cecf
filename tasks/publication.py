"""Where a finished page goes: to the tracked run, to the flow run, and a sample of it to MLflow's traces."""

from collections.abc import Mapping
from pathlib import Path

from models.evaluation.report_page import read_gallery
from tasks import tracking
from tasks.settings import Settings
from tasks.shown import show_link
from tasks.traces import log_traces


async def publish_page(
    page: Path,
    run_id: str,
    *,
    num: int,
    tags: Mapping[str, str],
    models: Mapping[str, str],
    name: str = "report",
) -> None:
    """Keep a report with a tracked run, log ``num`` of its trajectories as traces, and link it in Prefect.

    ``tags`` go to every trace, ``models`` are digests of weights by column of the gallery. ``name`` is the
    link's key.
    """
    settings = Settings.read()
    tracking.TrackedRun(settings, run_id).log_file(page)
    if num:
        with tracking.tolerated("traces"):
            log_traces(settings, run_id, read_gallery(page), num=num, tags=tags, models=models)
    await show_link(
        name,
        _address(settings, page, run_id),
        text="Report of this run",
        description=f"As a file: `{page}`. Also among the artifacts of MLflow run {run_id}.",
    )


def _address(settings: Settings, page: Path, run_id: str) -> str:
    """Where a person opens the page: in the tracker's pages when it has a server, else from disk."""
    if not settings.tracking_uri.startswith(("http://", "https://")):
        return page.as_uri()
    server, experiment = tracking.place(settings).rstrip("/"), tracking.experiment_id(settings)
    return f"{server}/#/experiments/{experiment}/runs/{run_id}/artifacts/{page.name}"
