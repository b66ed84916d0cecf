"""The report inside MLflow's own pages: it is drawn, filters and follows its links in the frame there."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models.evaluation.report import write_report
from tasks import tracking
from tasks.ports import free_port
from tasks.settings import Settings
from tests.evaluation_examples import make_report_inputs
from tests.integration.browser import chromium, watch

pytestmark = pytest.mark.integration


@pytest.fixture
def address(settings: Settings) -> Iterator[str]:
    """MLflow's server on the tracker of the settings."""
    tracking.experiment_id(settings)  # makes the tables, so that the server finds them
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    try:
        deadline = time.monotonic() + 120
        while not is_up(f"http://127.0.0.1:{port}"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def test_it_works_among_the_artifacts_of_a_run(settings: Settings, address: str, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", make_report_inputs(tmp_path))
    with tracking.tracked_run(settings, "pipeline") as run:
        run.log_file(tmp_path / "report.html")
    experiment = tracking.experiment_id(settings)
    with chromium() as browser:
        page = watch(browser).page
        place = f"experiments/{experiment}/runs/{run.id}/artifacts/report.html"
        page.goto(f"{address}/#/{place}", wait_until="domcontentloaded")
        frame = page.wait_for_selector("iframe", timeout=60_000).content_frame()
        assert frame is not None
        frame.wait_for_selector(".row", timeout=60_000)
        assert frame.inner_text(".hero h2") == "R-GRPO is better than SFT."
        frame.select_option("#f-right", "wrong")
        assert frame.inner_text("#count").startswith("1 of 6 questions")
        frame.click("nav a[href='#gallery']")
        # The page forbids "eval", so conditions are selectors and no scripts.
        frame.wait_for_selector("#gallery:focus")
        frame.focus("#list")
        page.keyboard.press("ArrowRight")
        frame.wait_for_selector("#step:has-text('Step 1')")
