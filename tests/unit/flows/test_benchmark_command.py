"""``vlm-r3 evaluate --benchmark``: what cannot work is refused at once, and says what to do instead."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from models.baselines import get_baseline
from models.config import EMBEDDED_MODEL, JudgeConfig, Preset
from models.presets import load_preset
from models.run_config import BenchmarkRun, DirectPrompt
from tasks.benchmark_data import Pinning
from tasks.benchmark_request import baseline_place, judge_overrides, model_overrides, request_of
from tasks.settings import Settings

ROOT = Path(__file__).parents[3]
JUDGE = ["--judge-endpoint", "http://h/v1", "--judge-model", "m"]
PARTIAL = ["--benchmark", "mme", "--data", "DATA", "--allow-partial"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--benchmark", "gqa", "--data", "DATA"], ["'gqa' is unknown", "mme, mmmu"]),
        (["--benchmark", "mme"], ["files of 'mme'", "--data FOLDER", "VLM_R3_BENCHMARKS"]),
        (["--benchmark", "mme", "--data", "DATA"], ["2 rows in 1 files; mme has 2374", "--allow-partial"]),
        (["--benchmark", "mme", "--data", "/nowhere"], ["/nowhere: no Parquet file of split 'test'"]),
        ([*PARTIAL, "--split", "val"], ["no split 'val', only test"]),
        (["--style", "direct", "--split", "x"], ["--split, --style need", "Add --benchmark NAME"]),
        ([*PARTIAL, "--model", "/nope"], ["/nope holds no config.json"]),
        ([*PARTIAL, "--model", "models:/other@x"], ["Write models:/vlm-r3@ALIAS or models:/vlm-r3/NUMBER"]),
        ([*PARTIAL, "--model", "models:/vlm-r3/9"], ["no version of vlm-r3 has the alias or number '9'"]),
        ([*PARTIAL, "--data-digest", "abc"], ["--data-digest 'abc' is no sha256"]),
        (["--lock", "x"], ["--lock need a benchmark"]),
        ([*PARTIAL, "--endpoint", "http://127.0.0.1:9/v1"], ["http://127.0.0.1:9/v1/models", "not answer"]),
        ([*PARTIAL, "--served-model", "m"], ["--served-model m needs --endpoint"]),
        ([*PARTIAL, "--endpoint", "h", "--served-model", "m"], ["Endpoint 'h' is no URL", "http://127"]),
        ([*PARTIAL, "--model", "embedded", "--endpoint", "http://h/v1"], ["both say who answers"]),
        (["--baseline", "o1"], ["--baseline need a benchmark"]),
        ([*PARTIAL, "--baseline", "gpt4o"], ["Baseline 'gpt4o' is unknown", "Did you mean 'gpt-4o'"]),
        ([*PARTIAL, "--baseline", "qwen2.5-vl-7b"], ["needs --model FOLDER", "Qwen/Qwen2.5-VL-7B-Instruct"]),
        ([*PARTIAL, "--baseline", "gpt-4o", "--model", "embedded"], ["gpt-4o has no weights"]),
        ([*PARTIAL, "--baseline", "mulberry-7b", "--model", "BASE"], ["is Qwen2VLForConditionalGeneration"]),
        ([*PARTIAL, "--judge-model", "m"], ["--judge-model m needs --judge-endpoint"]),
        ([*PARTIAL, "--judge-endpoint", "h", "--judge-model", "m"], ["Endpoint 'h' is no URL"]),
        (["--judge-model", "m"], ["--judge-model need", "Add --benchmark NAME"]),
        (
            ["--benchmark", "docvqa", "--data", "DATA", *JUDGE],
            ["docvqa is scored by its rule alone", "mathvista"],
        ),
        (
            [*PARTIAL, "--set", "judge.endpoint=http://h/v1"],
            ["a judge is a base URL and the name of a model"],
        ),
    ],
)
def test_bad_input_is_code_2(
    arguments: list[str], says: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"DATA": str(data), "BASE": str(EMBEDDED_MODEL)}
    given = [places.get(argument, argument) for argument in arguments]
    assert main(["evaluate", *given]) == 2
    err = capsys.readouterr().err
    for part in says:
        assert part in err
    assert "Traceback" not in err


def asked(preset: Preset, data: Path, **choice: object) -> BenchmarkRun:
    settings = Settings.read()
    pinning = Pinning(settings.benchmark_lock)
    return request_of(
        "mme",
        str(data),
        preset,
        **{"style": "direct", "allow_partial": True, "settings": settings, "pinning": pinning, **choice},
    )


def test_a_baseline_brings_its_name_its_prompt_and_its_settings(data: Path, work_dir: Path) -> None:
    mulberry = get_baseline("mulberry-7b")
    place = baseline_place(mulberry, model="", endpoint="http://h/v1", served_model="m")
    run = asked(load_preset(mulberry.preset, [*mulberry.overrides(), *place]), data, baseline=mulberry)
    assert (run.model_name, run.direct.answer) == ("mulberry-7b", "final_answer_is")
    assert run.direct.ask("Is it red?").endswith("\n\nIs it red?")
    assert (run.engine.kind, run.engine.max_model_len) == ("http", 32768)
    assert asked(load_preset("tiny"), data).direct == DirectPrompt()


def test_who_answers_is_a_model_or_an_endpoint(data: Path, work_dir: Path) -> None:
    def request(**choice: str):
        given = {"model": "", "endpoint": "", "served_model": "", **choice}
        preset = load_preset("tiny", model_overrides(**given))
        return asked(preset, data)

    assert (request().model_path, request().split) == ("embedded", "test")
    served = request(endpoint="http://h:8000/v1", served_model="org/it's 7")
    assert served.model_path == ""
    assert (served.engine.kind, served.engine.served_model) == ("http", "org/it's 7")


def test_the_judge_is_not_part_of_what_names_a_run() -> None:
    """Another judge reads the same answers, so the run that holds them is the same."""
    preset = load_preset("tiny", judge_overrides(endpoint="http://h/v1", model="it's 7"))
    assert preset.judge == JudgeConfig(endpoint="http://h/v1", served_model="it's 7")
    config = BenchmarkRun(
        benchmark="mme",
        data_path="/data",
        split="test",
        model_path="embedded",
        look=preset.look,
        engine=preset.engine,
        seed=0,
    )
    judged = config.model_copy(update={"judge": preset.judge, "verdicts_path": "/verdicts"})
    assert judged != config
    assert judged.without_judge == config


def test_an_earlier_run_that_is_none_is_refused_at_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(data) if argument == "DATA" else argument for argument in PARTIAL]
    assert main(["evaluate", *given, "--against", str(tmp_path)]) == 2
    assert "is no earlier run of a benchmark" in capsys.readouterr().err
    assert main(["evaluate", "--against", "first", "--title", "second"]) == 2
    assert "--title, --against need a benchmark" in capsys.readouterr().err


def test_bad_input_is_refused_in_a_moment_and_imports_nothing_heavy() -> None:
    """In a process of its own; its time is that of the processor, so that a busy machine does not count."""
    heavy = ("torch", "transformers", "vllm", "prefect", "mlflow", "boto3", "pandas", "matplotlib", "sympy")
    program = (
        "import sys, time\nfrom flows.cli import main\n"
        "code = main(['evaluate', '--benchmark', 'mme', '--data', '/nowhere', '--against', '/nowhere'])\n"
        f"print(code, time.process_time(), [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    code, seconds, found = done.stdout.split(maxsplit=2)
    assert (code, found.strip()) == ("2", "[]")
    assert float(seconds) < 3.0
