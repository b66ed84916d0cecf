"""Score a file of predictions by a benchmark's rule: no model, no network, the same numbers every time.

    python -m models.evaluation.score BENCHMARK FILE.jsonl [--judge-endpoint URL --judge-model NAME]

Each line of the file is a JSON object with ``id``, ``row`` (the benchmark's row as its authors publish it,
pictures left out) and ``prediction`` (text); further fields are ignored, but for the few that a rule needs
(``kind`` for mathvista, ``judge_verdict`` for hallusionbench). Prints one JSON object per line, the id and
what the rule found, and at last one with the metrics. Nothing is printed when a line is malformed.

With a judge each object also has ``judge``: the score with it, or ``failed`` with the reason; the last one
has the judge's results (:class:`models.evaluation.judged.JudgeResults`). All other fields are those of the
rule alone. Verdicts are kept in a folder, so that a second run asks only what the first did not learn; when
the judge failed at a line, the exit code is 1. The judge's key is ``VLM_R3_JUDGE_API_KEY``.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.benchmarks.scorer import BENCHMARKS, Row, Score, Scorer, get_scorer, row_of, summary
from models.config import JudgeConfig
from models.endpoints import check_judge
from models.errors import ConfigError, ScoringError, VLMR3Error
from models.evaluation.judge import Judge
from models.evaluation.judged import JudgedAnswer, JudgeResults, judge_answers

# What a message quotes of a line.
_MAX_QUOTED = 80
# Every field that a line must have: its type, and the type in words.
_FIELDS: Mapping[str, tuple[Any, str]] = {
    "id": (str | int, "text or a whole number"),
    "row": (dict, "an object"),
    "prediction": (str, "text"),
}
_WAY_OUT = 'Each line is an object like {"id": "1", "row": {...}, "prediction": "B"}.'


@dataclass(frozen=True, slots=True)
class Scored:
    """One line of predictions and what the rule found."""

    id: str | int
    row: Row
    prediction: str
    score: Score


def score_file(scorer: Scorer, path: Path) -> list[Scored]:
    """Every line of a file, scored, in order. Raises ConfigError that names the first malformed line."""
    found = []
    for number, line in _lines(path):
        try:
            row = row_of(line, scorer)
            score = scorer.score(row, line["prediction"])
        except ScoringError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
        found.append(Scored(line["id"], row, line["prediction"], score))
    if not found:
        raise ConfigError(f"{path} holds no line. Give one JSON object per prediction.")
    return found


def report(
    scorer: Scorer,
    scored: Sequence[Scored],
    judged: tuple[Sequence[JudgedAnswer], JudgeResults] | None = None,
) -> Iterator[str]:
    """The lines to print: one per prediction, and the metrics; ``judged`` is what a judge made of them."""
    metrics = summary(
        scorer,
        [each.row for each in scored],
        [each.prediction for each in scored],
        [each.score for each in scored],
    )
    for place, each in enumerate(scored):
        beside = {} if judged is None else {"judge": _with_judge(judged[0][place])}
        yield json.dumps({"id": each.id, **each.score, **beside}, ensure_ascii=False)
    beside = {} if judged is None else {"judge": judged[1].model_dump()}
    yield json.dumps({**metrics, **beside}, ensure_ascii=False)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m models.evaluation.score",
        description="Score a file of predictions by a benchmark's rule.",
    )
    parser.add_argument("benchmark", metavar="BENCHMARK", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "file", metavar="FILE.jsonl", type=Path, help="one JSON object a line: id, row, prediction"
    )
    _add_judge(parser)
    options = parser.parse_args(arguments)
    try:
        scorer, judge = get_scorer(options.benchmark), _judge(options)
        scored = score_file(scorer, options.file)
        judged = None if judge is None else judge_answers(judge, [(e.row, e.prediction) for e in scored])
        lines = list(report(scorer, scored, judged))
    except VLMR3Error as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    # Half a surrogate pair, which JSON may hold, has no UTF-8; inside a JSON text its escape means the same.
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    print("\n".join(lines))
    if judged is not None and judged[1].num_failed:
        print(_failures(judged[1], judged[0]), file=sys.stderr)
        return ScoringError.exit_code
    return 0


def _add_judge(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a judge", "beside the rule; its key: VLM_R3_JUDGE_API_KEY")
    group.add_argument("--judge-endpoint", default="", metavar="URL", help="OpenAI-compatible, with its /v1")
    group.add_argument("--judge-model", default="", metavar="NAME", help="model name at the endpoint")
    group.add_argument(
        "--verdicts",
        default=Path(".vlm-r3/verdicts"),
        metavar="FOLDER",
        type=Path,
        help="where verdicts are kept (.vlm-r3/verdicts)",
    )


def _judge(options: argparse.Namespace) -> Judge | None:
    check_judge(endpoint=options.judge_endpoint, model=options.judge_model)
    if not options.judge_endpoint:
        return None
    config = JudgeConfig(endpoint=options.judge_endpoint, served_model=options.judge_model)
    key = os.environ.get("VLM_R3_JUDGE_API_KEY", "")
    return Judge(options.benchmark, config, options.verdicts, api_key=key)


def _with_judge(judged: JudgedAnswer) -> dict[str, Any]:
    return {"failed": judged.reason} if judged.score is None else judged.score


def _failures(results: JudgeResults, judged: Sequence[JudgedAnswer]) -> str:
    first = next(each.reason for each in judged if each.score is None)
    return (
        f"The judge failed at {results.num_failed} of {results.num_asked} answers, which have no score with "
        f"it. The first: {first}. Run again to ask for the rest."
    )


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, checked, with their line numbers from 1."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Name a file of JSON lines.") from error
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {number}: not UTF-8 ({error.reason}). Save it as UTF-8.") from error
    # Not splitlines, which cuts at more characters than JSON does.
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if line or number < len(lines):
            yield number, _object(f"{path}, line {number}", line)


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of brackets
        raise ConfigError(f"{place}: {_quoted(line)} is not JSON ({error}). {_WAY_OUT}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{place}: {_quoted(line)} is not a JSON object. {_WAY_OUT}")
    for name, (kind, in_words) in _FIELDS.items():
        if name not in found:
            raise ConfigError(f"{place}: field {name!r} is missing, there are {sorted(found)}. {_WAY_OUT}")
        if not isinstance(found[name], kind):
            raise ConfigError(
                f"{place}: field {name!r} is {_quoted(json.dumps(found[name]))}, not {in_words}. {_WAY_OUT}"
            )
    return found


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "...")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
