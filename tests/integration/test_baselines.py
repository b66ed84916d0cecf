"""Known models as rows: random tiny ones behind vLLM's real server, from the command to the table."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from models.config import EMBEDDED_MODEL
from tests.benchmark_examples import file_name, schema_of, small, write

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = {
    "engine.dtype": "float32",
    "engine.max_model_len": "512",
    "engine.max_num_seqs": "2",
    "engine.kv_cache_gib": "0.25",
    "engine.enforce_eager": "true",
    "engine.num_threads": "1",
    "engine.server_start_seconds": "600",
    "look.max_pixels": "12544",
    "look.max_sampled_tokens": "256",
}


def vlm_r3(*arguments: str) -> str:
    """What the command prints, once it has ended well."""
    done = subprocess.run([sys.executable, "-m", "flows.cli", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def evaluate(place: Sequence[str], *, benchmark: str, baseline: str, model: Path, style: str) -> str:
    changes = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    who = ["--baseline", baseline, "--model", str(model), "--style", style]
    return vlm_r3("evaluate", "--benchmark", benchmark, "--allow-partial", *place, *who, *changes)


def test_two_architectures_become_rows_of_the_table(tmp_path: Path) -> None:
    from tests.tiny_llava import save_tiny_llava

    work, data = ["--work-dir", str(tmp_path / "work")], tmp_path / "mme"
    published, split, rows = small("mme")
    write(data / file_name(split), rows, schema_of(published))
    place = [*work, "--data", str(data)]
    llava = save_tiny_llava(tmp_path / "llava")
    said = evaluate(place, benchmark="mme", baseline="llava-next-8b", model=llava, style="direct")
    assert "2 scored, 0 failed, 0 not asked" in said
    said = evaluate(
        place, benchmark="mme", baseline="qwen2.5-vl-7b", model=EMBEDDED_MODEL, style="look-again"
    )
    assert "2 scored, 0 failed, 0 not asked" in said

    lines = vlm_r3("table", *work).splitlines()
    for name, asked in (("llava-next-8b", "direct"), ("qwen2.5-vl-7b", "look-again")):
        (row,) = (line for line in lines if line.startswith(name))
        assert f"measured, {asked}" in row
    assert "PARTIAL SET, 2 rows where test has 2374" in "\n".join(lines)
    servers = [
        each.pid
        for each in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(each.info["cmdline"] or [])
    ]
    assert servers == []
