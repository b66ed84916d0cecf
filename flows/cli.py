"""The command line: ``vlm-r3 COMMAND``. Every stage is a command, named like its flow and its deployment.

Nothing heavy is imported before the arguments and the preset have been found good.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

from flows.manual import DESCRIPTION, MANUAL
from flows.replay_options import add_replay
from flows.team_options import add_team_commands

FLOWS = {
    "run": "the whole pipeline: data, gate, SFT, R-GRPO, controls, evaluation, registry, promotion",
    "build-vlir": "make questions and interleaved rationales",
    "validate": "judge the data before any accelerator is used",
    "sft": "fine-tune on the rationales",
    "preflight": "try on one real batch what must hold before R-GRPO's hours are spent",
    "rgrpo": "improve the policy by R-GRPO",
    "evaluate": "measure all models of a run on the held-out questions",
    "promote": "make a registered version champion, if the gate agrees",
    "retrain": "the whole pipeline, if the sources have something new since the last version",
}
# Where the commands are that are no stages.
MODULES = {
    "analyse": ("measuring_commands", "analyse"),
    "table": ("measuring_commands", "table"),
    "retrain": ("retrain_command", "retrain"),
    "ask": ("ask_command", "ask"),
    "serve": ("serve_command", "serve"),
    "replay": ("replay_command", "replay"),
    "fetch": ("store_commands", "fetch"),
    "prune": ("store_commands", "prune"),
    "rollback": ("registry_commands", "rollback"),
    "history": ("registry_commands", "history"),
    "services": ("services_command", "services"),
    "deploy": ("deploy_command", "deploy"),
    "doctor": ("commands", "doctor"),
    "completion": ("cli", "print_completion"),
}
FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
# Fields of models.serving.config.Limits, which is too slow to import for --help.
LIMITS = {
    "max-crops": "crops per answer",
    "max-tokens": "sampled tokens per answer",
    "max-choices": "answers per request",
    "max-images": "images per conversation",
    "max-image-bytes": "bytes of one encoded image",
    "max-image-pixels": "pixels of one decoded image",
    "max-text-characters": "characters of a conversation",
    "max-request-bytes": "bytes of a request",
    "max-concurrent-requests": "requests in flight; more get a 429",
    "max-seconds": "time for a whole answer",
    "max-upload-seconds": "time for a request to arrive",
    "max-download-seconds": "time for an image named by a URL",
    "max-shutdown-seconds": "time for what is in flight when the server is asked to end",
    "num-decoders": "threads that decode images",
}
# The commands that may be about one's own data.
OWN_DATA = ("run", "retrain", "build-vlir", "validate", "sft", "preflight", "rgrpo")
# Options that mean something only beside --benchmark.
_BENCHMARK_OPTIONS = (
    *("data", "split", "style", "variant", "baseline", "model", "endpoint", "served_model", "allow_partial"),
    *("data_digest", "accept_data_digest", "lock", "title", "against"),
    *("judge_endpoint", "judge_model"),
)
_MODELS = "embedded, a model folder, models:/vlm-r3@ALIAS, models:/vlm-r3/NUMBER, or s3://"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    if not options.debug:
        sys.excepthook = _report_unforeseen
    from models.errors import VLMR3Error

    try:
        code = _command(options)(options)
        sys.stdout.flush()
        return code
    except VLMR3Error as error:
        _report(error, options)
        return error.exit_code
    except KeyboardInterrupt:
        print("vlm-r3: interrupted; no process was left running.", file=sys.stderr)
        return INTERRUPTED
    except _termination_signals():
        print("vlm-r3: told to end (SIGTERM); no process was left running.", file=sys.stderr)
        return TERMINATED
    except BrokenPipeError:
        # Who read has seen enough, as `head` does; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _report(error: Exception, options: argparse.Namespace) -> None:
    if options.debug:
        traceback.print_exception(error, file=sys.stderr)
    else:
        print(f"vlm-r3: {type(error).__name__}: {error}", file=sys.stderr)


def _termination_signals() -> tuple[type[BaseException], ...]:
    """What a flow raises on SIGTERM. Where Prefect was not needed it is not imported now."""
    exceptions = sys.modules.get("prefect.exceptions")
    return (exceptions.TerminationSignal,) if exceptions else ()


def _report_unforeseen(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """What Python calls before it ends with code 1, in place of its traceback."""
    way_out = "This was not foreseen; add --debug to see where it happened."
    print(f"vlm-r3: {kind.__name__}: {error} {way_out}", file=sys.stderr)


def _command(options: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    """What a command does, from the one module that holds it: the others need not be imported."""
    module, name = MODULES.get(options.command, ("commands", "run_flow"))
    if options.command == "evaluate" and names_benchmark(options):
        module, name = "measuring_commands", "run_benchmark"
    found: Callable[[argparse.Namespace], int] = getattr(import_module(f"flows.{module}"), name)
    return found


def names_benchmark(options: argparse.Namespace) -> bool:
    """Whether a published benchmark is asked for. Raises ConfigError when only its options are given."""
    if options.benchmark:
        return True
    given = [f"--{name.replace('_', '-')}" for name in _BENCHMARK_OPTIONS if getattr(options, name)]
    if given:
        from models.errors import ConfigError

        raise ConfigError(f"{', '.join(given)} need a benchmark, and none is named. Add --benchmark NAME.")
    return False


def print_completion(options: argparse.Namespace) -> int:
    """Print a completion script."""
    import shtab

    print(shtab.complete(parser(), shell=options.shell))
    return 0


def parser() -> argparse.ArgumentParser:
    """Everything that the command line takes."""
    made = argparse.ArgumentParser(
        prog="vlm-r3",
        usage="vlm-r3 COMMAND [OPTION ...]",
        description=DESCRIPTION,
        epilog=MANUAL,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=16, width=104),
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {version('vlm-r3')}")
    # The longest name must be longer than every command, or argparse breaks the lines of the longest ones.
    commands = made.add_subparsers(
        dest="command", required=True, metavar="COMMAND [OPTION ...]", title="commands", prog="vlm-r3"
    )
    for name, purpose in FLOWS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        _add_common(command)
        command.add_argument(
            "--refresh", action="store_true", help="make everything again, whatever the cache holds"
        )
        if name in OWN_DATA:
            _add_own_data(command)
        if name == "evaluate":
            _add_benchmark(command)
            command.set_defaults(preset="")  # a known model brings its own
        if name == "preflight":
            command.add_argument("--model", default="", help=f"{_MODELS} (what the stage sft made)")
        if name == "promote":
            command.add_argument("--version", default="challenger", help="number or alias (challenger)")
    _add_analyse(commands.add_parser("analyse", help="make Table 2, Figure 4 or Figure 5 of the paper"))
    _add_using(commands)
    serve = commands.add_parser("serve", help="answer questions over HTTP, as OpenAI's interface does")
    _add_common(serve)
    _add_serving(serve)
    _add_place(add_replay(commands))
    _add_table(commands.add_parser("table", help="print the measured benchmarks beside the published ones"))
    for command in add_team_commands(commands):
        _add_place(command)
    doctor = commands.add_parser("doctor", help="say what this machine has, and what to do where it lacks")
    doctor.add_argument("--endpoint", default="", metavar="URL", help="also ask this chat endpoint")
    _add_place(doctor)
    completion = commands.add_parser("completion", help="print a script that lets a shell complete commands")
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    return made


def _add_using(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    ask = commands.add_parser("ask", help="ask a model one question about a picture")
    _add_common(ask)
    ask.add_argument("image", type=Path)
    ask.add_argument("question")
    ask.add_argument("--model", default="", help=f"{_MODELS} (the champion, if there is one)")
    ask.add_argument(
        "--picture", type=Path, metavar="FILE", help="where to draw what it looked at (./NAME-looked.png)"
    )
    ask.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    fetch = commands.add_parser("fetch", help="bring a registered model or any artifact into a folder")
    fetch.add_argument("artifact", help="models:/vlm-r3@ALIAS, models:/vlm-r3/NUMBER, s3://..., file://...")
    fetch.add_argument("folder", type=Path, metavar="DIR", help="a folder that is new or empty")
    _add_place(fetch)
    _add_registry(commands)
    prune = commands.add_parser("prune", help="list old artifacts that no registered version names")
    prune.add_argument(
        "--older-than", type=int, default=30, metavar="DAYS", help="what is younger stays (30)"
    )
    prune.add_argument("--delete", action="store_true", help="remove them, too")
    _add_place(prune)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--preset", default="tiny", help="name in infra/runs, or a YAML file (tiny)")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.KEY=VALUE",
        dest="overrides",
        help="change one value of the preset; may be repeated",
    )
    _add_place(command)


def _add_own_data(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "your own data",
        "instead of the preset's vlir.sources; the key of an endpoint: VLM_R3_API_KEY, of a judge: "
        "VLM_R3_JUDGE_API_KEY",
    )
    group.add_argument(
        "--manifest", default="", metavar="FILE", help="JSONL or Parquet: image, question, answer, maybe box"
    )
    group.add_argument(
        "--licence", default="", metavar="TEXT", help="of the data; no version is promoted without one"
    )
    group.add_argument(
        "--teacher", default="", metavar="URL", help=f"writes the rationales: an endpoint's URL, or {_MODELS}"
    )
    group.add_argument(
        "--teacher-model",
        default="",
        metavar="NAME",
        help="the teacher's name there (its only one)",
    )
    group.add_argument(
        "--judge", default="", metavar="URL", help="judges crops and reasoning, or none (the teacher's URL)"
    )
    group.add_argument(
        "--judge-model", default="", metavar="NAME", help="the judge's name at its endpoint (its only one)"
    )
    group.add_argument(
        "--connections", type=int, default=64, metavar="N", help="requests in flight together (64)"
    )


def _add_registry(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    rollback = commands.add_parser("rollback", help="make a version champion that was champion before")
    rollback.add_argument(
        "--to", default="previous", metavar="VERSION", help="number or alias (previous: the champion before)"
    )
    rollback.add_argument("--reason", default="", metavar="TEXT", help="why; kept in the history")
    _add_place(rollback)
    history = commands.add_parser("history", help="list who became champion, who did not, and why")
    history.add_argument("--checks", action="store_true", help="also every rule that was looked at")
    history.add_argument("--json", action="store_true", help="one JSON object per line")
    _add_place(history)


def _add_benchmark(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "a published benchmark",
        "instead of a run's held-out questions; the key of an endpoint: VLM_R3_API_KEY, of a judge: "
        "VLM_R3_JUDGE_API_KEY",
    )
    group.add_argument("--benchmark", default="", metavar="NAME", help="mme, mmmu, mathvista, ...")
    group.add_argument(
        "--data",
        default="",
        metavar="FOLDER",
        help="its Parquet files as published, here or s3:// ($VLM_R3_BENCHMARKS/NAME)",
    )
    group.add_argument("--split", default="", help="another split than the usual one")
    group.add_argument(
        "--style", choices=("direct", "look-again"), help="the usual prompt, or the paper's (look-again)"
    )
    group.add_argument(
        "--variant",
        default="",
        metavar="NAME,...",
        help="how crops are given: full, no_crop, low_resolution, "
        "random_region, boxes_40 to boxes_90, boxes_40_perturbed to ..._90_perturbed (full)",
    )
    group.add_argument(
        "--baseline", default="", metavar="NAME", help="a known model with its settings: infra/baselines.yaml"
    )
    group.add_argument("--model", default="", help=f"{_MODELS} (the preset's model.path)")
    group.add_argument("--endpoint", default="", metavar="URL", help="OpenAI-compatible, with its /v1")
    group.add_argument(
        "--served-model", default="", metavar="NAME", help="model name at the endpoint (its only one)"
    )
    group.add_argument("--title", default="", metavar="NAME", help="what the tracked run is called")
    group.add_argument(
        "--against",
        default="",
        metavar="RUN",
        help="an earlier run to compare with: folder or URI of its artifact, id or name of its tracked run",
    )
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


def _add_analyse(command: argparse.ArgumentParser) -> None:
    command.add_argument("analysis", choices=("table2", "figure4", "figure5"))
    _add_common(command)
    command.add_argument("--refresh", action="store_true", help="measure everything again")
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to put CSV, SVG, PNG (nowhere else)"
    )
    command.add_argument(
        "--model", default="", help=f"{_MODELS} (the run's R-GRPO model, trained if missing)"
    )
    for row, meaning in (
        ("base", "before training"),
        ("sft", "without R-GRPO"),
        ("no-sft", "without VLIR SFT"),
    ):
        command.add_argument(f"--{row}-model", default="", help=f"row of table2: the model {meaning}")
    command.add_argument("--questions", type=int, default=0, metavar="N", help="how many held-out questions")
    group = command.add_argument_group(
        "published benchmarks", "instead of held-out questions; repeat both options for several sets"
    )
    group.add_argument("--benchmark", action="append", default=[], metavar="NAME", help="mme, mmmu, ...")
    group.add_argument(
        "--data", action="append", default=[], metavar="FOLDER", help="its Parquet files, or s3://"
    )
    group.add_argument("--allow-partial", action="store_true", help="measure although rows are missing")
    group.add_argument("--endpoint", default="", metavar="URL", help="OpenAI-compatible, with its /v1")
    group.add_argument("--served-model", default="", metavar="NAME", help="model name at the endpoint")


def _add_serving(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help=_MODELS)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    command.add_argument("--port", type=int, default=8000, help="0 takes a free one (8000)")
    command.add_argument(
        "--model-name", default="vlm-r3", metavar="NAME", help="its name for clients (vlm-r3)"
    )
    command.add_argument(
        "--allow-private-urls", action="store_true", help="fetch images from addresses that are not public"
    )
    group = command.add_argument_group("limits", "clients must send the key in VLM_R3_SERVE_API_KEY, if any")
    for name, help in LIMITS.items():
        kind = float if "seconds" in name else int
        group.add_argument(f"--{name}", type=kind, metavar="NUMBER", help=help)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument("--work-dir", type=Path, help="where everything is kept (.vlm-r3)")
    command.add_argument("--debug", action="store_true", help="show tracebacks")


if __name__ == "__main__":
    sys.exit(main())
