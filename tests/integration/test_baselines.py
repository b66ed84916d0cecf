"""Known models as rows: served for the run, asked, scored, and put into the table."""

import asyncio
import shutil
from pathlib import Path

import psutil
import pytest

from flows.cli import main
from models.baselines import get_baseline
from models.config import EMBEDDED_MODEL, Style
from models.presets import load_preset
from tasks import vllm_server
from tasks.benchmark_data import Pinning
from tasks.benchmark_request import baseline_place, request_of
from tasks.settings import prepare
from tests.benchmark_examples import file_name, schema_of, small, write

pytestmark = pytest.mark.integration

SMALL = (
    "engine.dtype=float32",
    "engine.max_model_len=512",
    "engine.max_num_seqs=2",
    "engine.kv_cache_gib=0.25",
    "engine.enforce_eager=true",
    "engine.num_threads=1",
    "look.max_pixels=12544",
    "look.max_sampled_tokens=256",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A miniature of MME."""
    published, split, rows = small("mme")
    write(tmp_path / "mme" / file_name(split), rows, schema_of(published))
    return tmp_path / "mme"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The embedded model at a place that no other test's processes name."""
    return Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))


def run(name: str, model: Path, data: Path, work_dir: Path, *, style: Style = "direct") -> dict[str, float]:
    """The numbers of MME by a known model, as the task of `vlm-r3 evaluate --baseline` makes them."""
    settings, baseline = prepare(work_dir), get_baseline(name)
    place = baseline_place(baseline, model=str(model), endpoint="", served_model="")
    request = request_of(
        "mme",
        str(data),
        load_preset(baseline.preset, [*baseline.overrides(), *SMALL, *place]),
        style=style,
        allow_partial=True,
        settings=settings,
        pinning=Pinning(settings.benchmark_lock),
        baseline=baseline,
    )
    from tasks.benchmark import run_benchmark  # Prefect and MLflow read their settings when imported

    output = asyncio.run(run_benchmark.fn(request))
    return {name.removeprefix("benchmark/mme/"): value for name, value in output.metrics.items()}


def rows_of_table(work_dir: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The measured rows by the name of the model."""
    assert main(["table", "--work-dir", str(work_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("PARTIAL SET, 2 rows where test has 2374" in line for line in lines)
    return {line.split()[0]: line for line in lines if "measured, " in line}


def processes_that_name(folder: Path) -> list[int]:
    found = psutil.process_iter(["pid", "cmdline"])
    return [each.info["pid"] for each in found if str(folder) in " ".join(each.info["cmdline"] or [])]


def test_a_model_is_served_for_its_run(
    data: Path,
    model: Path,
    work_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(vllm_server, "_MODULE", "tests.small_server")  # quick, and always says Yes
    numbers = run("qwen2.5-vl-7b", model, data, work_dir)
    assert (numbers["num_scored"], numbers["table_number"]) == (2, 50)
    assert "50.0" in rows_of_table(work_dir, capsys)["qwen2.5-vl-7b"]
    assert processes_that_name(model) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_architectures_become_rows_by_vllms_own_server(
    data: Path, model: Path, work_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny_llava import save_tiny_llava

    llava = save_tiny_llava(tmp_path / "llava")
    for name, served, style in (
        ("llava-next-8b", llava, "direct"),
        ("qwen2.5-vl-7b", model, "look-again"),
    ):
        numbers = run(name, served, data, work_dir, style=style)
        assert (numbers["num_scored"], numbers["num_failed"]) == (2, 0)
        assert numbers["tokens_per_question"] > 0
        assert processes_that_name(served) == []
    rows = rows_of_table(work_dir, capsys)
    assert "measured, direct" in rows["llava-next-8b"]
    assert "measured, look-again" in rows["qwen2.5-vl-7b"]
