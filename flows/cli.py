"""The command line: ``vlm-r3 COMMAND``. Every stage is a command, named like its flow and its deployment.

Exit codes: 0 done, 1 the run failed, 2 bad usage or configuration, 3 a gate said no, 130 interrupted. Nothing
heavy is imported before the arguments and the preset have been found good.
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

FLOWS = {
    "run": "the whole pipeline: data, gate, SFT, R-GRPO, controls, evaluation, registry, promotion",
    "build-vlir": "make questions and interleaved rationales",
    "validate": "judge the data before any accelerator is used",
    "sft": "fine-tune on the rationales",
    "rgrpo": "improve the policy by R-GRPO",
    "evaluate": "measure all models of a run on the held-out questions",
    "promote": "make a registered version champion, if the gate agrees",
}
INTERRUPTED = 130
_MODELS = "embedded, a model folder, models:/vlm-r3@ALIAS, models:/vlm-r3/NUMBER, or s3://"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    from models.errors import VLMR3Error

    try:
        return _command(options)(options)
    except VLMR3Error as error:
        _report(error, options)
        return error.exit_code
    except KeyboardInterrupt:
        print("vlm-r3: interrupted; no process was left running.", file=sys.stderr)
        return INTERRUPTED


def _report(error: Exception, options: argparse.Namespace) -> None:
    if options.debug:
        traceback.print_exception(error, file=sys.stderr)
    else:
        print(f"vlm-r3: {type(error).__name__}: {error}", file=sys.stderr)


def _command(options: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    from flows import commands

    if options.command == "evaluate" and commands.names_benchmark(options):
        return commands.run_benchmark
    if options.command in FLOWS:
        return commands.run_flow
    return {"ask": commands.ask, "doctor": commands.doctor, "table": commands.table}[options.command]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vlm-r3", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in FLOWS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        _add_common(command)
        command.add_argument(
            "--refresh", action="store_true", help="make everything again, whatever the cache holds"
        )
        if name == "evaluate":
            _add_benchmark(command)
        if name == "promote":
            command.add_argument("--version", default="challenger", help="number or alias (challenger)")
    ask = commands.add_parser("ask", help="ask a model one question about a picture")
    _add_common(ask)
    ask.add_argument("image", type=Path)
    ask.add_argument("question")
    ask.add_argument("--model", default="", help=f"{_MODELS} (the champion, if there is one)")
    ask.add_argument(
        "--picture", type=Path, metavar="FILE", help="where to draw what it looked at (./NAME-looked.png)"
    )
    ask.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    _add_table(commands.add_parser("table", help="print the measured benchmarks beside the published ones"))
    doctor = commands.add_parser("doctor", help="say what this machine has, and what to do where it lacks")
    doctor.add_argument("--endpoint", default="", metavar="URL", help="also ask this chat endpoint")
    _add_place(doctor)
    return parser


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--preset", default="", help="name in infra/runs, or a YAML file (tiny)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.KEY=VALUE",
        dest="overrides",
        help="change one value of the preset; may be repeated",
    )
    _add_place(command)


def _add_benchmark(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "a published benchmark",
        "instead of a run's held-out questions; the key of an endpoint: VLM_R3_API_KEY, of a judge: "
        "VLM_R3_JUDGE_API_KEY",
    )
    group.add_argument("--benchmark", default="", metavar="NAME", help="mme, mmmu, mathvista, ...")
    group.add_argument(
        "--data", default="", metavar="FOLDER", help="its Parquet files as published, here or s3://"
    )
    group.add_argument("--split", default="", help="another split than the usual one")
    group.add_argument(
        "--style", choices=("direct", "look-again"), help="the usual prompt, or the paper's (look-again)"
    )
    group.add_argument(
        "--baseline", default="", metavar="NAME", help="a known model with its settings: infra/baselines.yaml"
    )
    group.add_argument("--model", default="", help=f"{_MODELS} (the preset's model.path)")
    group.add_argument("--endpoint", default="", metavar="URL", help="OpenAI-compatible, with its /v1")
    group.add_argument("--served-model", default="", metavar="NAME", help="model name at the endpoint")
    group.add_argument(
        "--judge-endpoint", default="", metavar="URL", help="a judge, OpenAI-compatible (none)"
    )
    group.add_argument("--judge-model", default="", metavar="NAME", help="the judge's name at its endpoint")
    group.add_argument("--allow-partial", action="store_true", help="measure although rows are missing")
    group.add_argument("--data-digest", default="", metavar="SHA256", help="what the data must be")
    group.add_argument(
        "--accept-data-digest", default="", metavar="SHA256", help="data that replace those measured before"
    )
    group.add_argument(
        "--lock",
        type=Path,
        metavar="FILE",
        help="digests of data measured before (WORK_DIR/benchmarks.lock.json)",
    )


def _add_table(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--runs", nargs="+", default=[], metavar="FOLDER", help="where results are (this workspace's store)"
    )
    command.add_argument("--format", choices=("text", "markdown", "csv", "html"), default="text")
    command.add_argument(
        "--paper-table", type=int, choices=(1, 2), default=1, help="1: models; 2: the paper's ablations"
    )
    _add_place(command)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--work-dir", type=Path, help="where everything is kept (.vlm-r3)")
    command.add_argument("--debug", action="store_true", help="show tracebacks")


if __name__ == "__main__":
    sys.exit(main())
