"""The command line refuses what cannot work at once, and says what to do instead."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import FLOWS, main
from models.presets import preset_names

# The promise is 0.5 s and 2 s; a loaded machine gets some slack, a heavy import (seconds) does not.
HELP_SECONDS, REFUSAL_SECONDS = 0.5, 2.0
LOADED_MACHINE = 2.0

HEAVY = ("torch", "transformers", "vllm", "deepspeed", "prefect", "mlflow", "great_expectations")
PROBE = """
import sys
from flows.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
loaded = sorted(name for name in {heavy!r} if name in sys.modules)
print("CODE", code, "LOADED", loaded)
"""


def run(*arguments: str) -> tuple[str, str, float]:
    """What a fresh process printed, on both streams, and the fastest of two tries in seconds."""
    best = float("inf")
    for _ in range(2):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", PROBE.format(heavy=HEAVY), *arguments], capture_output=True, text=True
        )
        best = min(best, time.monotonic() - began)
    return done.stdout, done.stderr, best


def test_help_is_quick_and_names_every_command() -> None:
    out, _, seconds = run("--help")
    assert "CODE 0 LOADED []" in out
    assert all(name in out for name in [*FLOWS, "ask", "doctor"])
    assert seconds < HELP_SECONDS * LOADED_MACHINE


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "sft.lerning_rate=1"], ["sft.lerning_rate: unknown key", "Did you mean 'learning_rate'"]),
        (["--set", "look.max_crops=9"], ["engine.max_images 4", "look.max_crops + 1 = 10"]),
        (["--set", "model.path=/nowhere"], ["/nowhere", "config.json", "'embedded'"]),
        (["--preset", "tinny"], ["'tinny' does not exist", "tiny"]),
        (["--set", "sft.num_epochs"], ["stage.key=value"]),
        (["--set", "sft.num_epochs=many"], ["sft.num_epochs", "valid integer", "'many'"]),
        (
            [
                "--set",
                "engine.kind=http",
                "--set",
                "engine.endpoint=http://h/v1",
                "--set",
                "engine.served_model=m",
            ],
            ["engine.kind is 'http'", "Use 'vllm'"],
        ),
    ],
)
def test_bad_configuration_stops_before_anything_heavy(arguments: list[str], says: list[str]) -> None:
    out, err, seconds = run("run", *arguments)
    assert "CODE 2 LOADED []" in out, err
    for part in says:
        assert part in err
    assert "Traceback" not in err
    assert seconds < REFUSAL_SECONDS * LOADED_MACHINE


def test_debug_shows_where_it_happened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--preset", "tinny", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["trian"], ["run", "--presett", "tiny"], ["ask", "picture.png"]])
def test_bad_usage_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: vlm-r3" in capsys.readouterr().err


def test_a_file_that_is_no_picture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "picture.png").write_text("no picture")
    assert main(["ask", str(tmp_path / "picture.png"), "What?"]) == 2
    assert "cannot be read as a picture" in capsys.readouterr().err
    assert main(["ask", str(tmp_path / "none.png"), "What?"]) == 2


def test_a_work_directory_in_use_is_refused(work_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tasks.services import sole_use
    from tasks.settings import Settings

    with sole_use(Settings.read()):
        assert main(["run", "--work-dir", str(work_dir)]) == 2
    assert "is using" in capsys.readouterr().err


def test_doctor_lists_what_it_found(capsys: pytest.CaptureFixture[str], work_dir: Path) -> None:
    assert main(["doctor"]) in (0, 1)
    out = capsys.readouterr().out
    assert "torch" in out
    assert str(work_dir) in out


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name: str) -> None:
    from models.presets import load_preset

    assert load_preset(name).name == name
