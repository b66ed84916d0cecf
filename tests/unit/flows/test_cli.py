"""The command line refuses what cannot work at once, and says what to do instead."""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import FLOWS, LIMITS, main, parser
from flows.manual import MANUAL
from models.presets import DEFAULT_PRESET, load_preset, preset_names

# What is promised. A loaded machine gets more tries; a heavy import (seconds) fails them all.
HELP_SECONDS, REFUSAL_SECONDS = 0.5, 2.0
NUM_TRIES = 10

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


def run(*arguments: str, within_seconds: float) -> tuple[str, str]:
    """What a fresh process printed, on both streams; it must once have ended in time."""
    for _ in range(NUM_TRIES):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", PROBE.format(heavy=HEAVY), *arguments], capture_output=True, text=True
        )
        if time.monotonic() - began < within_seconds:
            return done.stdout, done.stderr
    return pytest.fail(f"{arguments} took more than {within_seconds} s in {NUM_TRIES} tries")


def test_help_is_quick_and_names_every_command() -> None:
    out, _ = run("--help", within_seconds=HELP_SECONDS)
    assert "CODE 0 LOADED []" in out
    others = (
        "ask",
        "serve",
        "table",
        "analyse",
        "fetch",
        "prune",
        "rollback",
        "history",
        "doctor",
        "completion",
    )
    assert all(f"\n    {name}" in out for name in (*FLOWS, *others))
    assert all(part in out for part in ("examples:", "exit codes:", "environment:", "VLM_R3_API_KEY"))


def test_the_examples_of_the_manual_are_commands_that_work() -> None:
    examples = MANUAL.split("examples:\n")[1].split("\n\n")[0].splitlines()
    for example in examples[:-1]:  # the last one is about --help
        words = shlex.split(re.split(r"\s{3,}", example.strip())[0])
        options = parser().parse_args(words[1:])
        if "overrides" in options:
            load_preset(options.preset or DEFAULT_PRESET, options.overrides)
    assert len(examples) > 5


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    piped = f"{sys.executable} -m flows.cli completion zsh | head -1"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("#compdef vlm-r3\n", "")


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_what_nobody_foresaw_is_one_line_too(options: list[str]) -> None:
    unforeseen = "from flows import cli; cli.MODULES['history'] = ('manual', 'nothing'); cli.main({})"
    command = [sys.executable, "-c", unforeseen.format(["history", *options])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    if options:
        assert "Traceback" in done.stderr
    else:
        assert done.stderr == (
            "vlm-r3: AttributeError: module 'flows.manual' has no attribute 'nothing' "
            "This was not foreseen; add --debug to see where it happened.\n"
        )


def test_places_where_nothing_can_be_written_and_trackers_of_no_kind_are_refused(
    tmp_path: Path, work_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["prune", "--work-dir", str(tmp_path / "file")]) == 2
    assert "cannot be written to: File exists. Name another one by --work-dir" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://somebody:secret@tracker")
    assert main(["history"]) == 2
    said = capsys.readouterr().err
    assert "'ftp://tracker'" in said
    assert "sqlite" in said


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_can_complete_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*FLOWS, "--preset", "--served-model"))
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert shell != "bash" or checked.returncode == 0, checked.stderr


def test_the_table_is_quick_and_light(tmp_path: Path) -> None:
    out, _ = run("table", "--work-dir", str(tmp_path), within_seconds=REFUSAL_SECONDS)
    assert "CODE 0 LOADED []" in out
    assert "Ours 7B" in out


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
    out, err = run("run", *arguments, within_seconds=REFUSAL_SECONDS)
    assert "CODE 2 LOADED []" in out, err
    for part in says:
        assert part in err
    assert "Traceback" not in err


def test_debug_shows_where_it_happened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--preset", "tinny", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere"], ["/nowhere", "config.json"]),
        (["embedded", "--max-crops", "9"], ["max_crops 9", "engine.max_images"]),
        (["embedded", "--max-seconds", "0"], ["max_seconds", "greater than 0"]),
        (["embedded", "--port", "70000"], ["--port 70000"]),
        (["embedded", "--model-name", ""], ["--model-name"]),
        (["models:/vlm-r3@champion"], ["champion"]),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    arguments: list[str], says: list[str], work_dir: Path
) -> None:
    out, err = run("serve", *arguments, within_seconds=REFUSAL_SECONDS)
    assert "CODE 2 LOADED []" in out, err
    for part in says:
        assert part in err


def test_every_limit_of_the_server_has_a_flag() -> None:
    from models.serving.config import Limits

    assert {name.replace("-", "_") for name in LIMITS} == set(Limits.model_fields)


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
