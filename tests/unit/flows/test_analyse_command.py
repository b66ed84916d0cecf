"""``vlm-r3 analyse`` and ``--variant``: what cannot work is refused at once, and says what to do instead."""

from pathlib import Path

import pytest

from flows.cli import main

SERVED = ["--endpoint", "http://h/v1", "--served-model", "m"]
MME = ["--benchmark", "mme", "--data", "DATA", "--allow-partial"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["analyse", "figure4", "--sft-model", "embedded"], ["sft_path are rows of table2"]),
        (["analyse", "table2", "--sft-model", "embedded"], ["Name it too: --model"]),
        (["analyse", "figure4", "--model", "/nope"], ["/nope", "config.json"]),
        (["analyse", "figure4", "--benchmark", "mme"], ["1 --benchmark and 0 --data"]),
        (["analyse", "figure4", "--benchmark", "gqa", "--data", "DATA"], ["'gqa' is unknown"]),
        (["analyse", "figure5", *SERVED, *MME], ["attention need weights"]),
        (["analyse", "figure4", *SERVED], ["held-out questions", "--model instead of --endpoint"]),
        (["evaluate", *MME, "--variant", "boxes_41"], ["no variant 'boxes_41'", "full, no_crop"]),
        (["evaluate", *MME, "--variant", "no_crop", "--style", "direct"], ["--style direct has none"]),
        (["evaluate", "--variant", "no_crop"], ["--variant need a benchmark"]),
    ],
)
def test_bad_input_is_code_2(
    arguments: list[str],
    says: list[str],
    data: Path,
    work_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(data) if argument == "DATA" else argument for argument in arguments]
    assert main([*given, "--work-dir", str(work_dir)]) == 2
    err = capsys.readouterr().err
    for part in says:
        assert part in err
    assert "Traceback" not in err
