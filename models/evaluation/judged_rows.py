"""The rows of a benchmark's run scored with a judge.

The judge's numbers stand beside the rule's, over the same rows: a row that the judge failed at has failed and
is in neither. Its answer is kept, so the next start asks the judge again and not the model.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from models.benchmarks.judging import find_judging
from models.benchmarks.scorer import Row
from models.errors import ScoringError
from models.evaluation.benchmark_rows import AskedRow
from models.evaluation.judge import Judge, Judgement
from models.evaluation.judged import JudgedAnswer, JudgeResults, judge_answers

log = logging.getLogger(__name__)


def judge_rows(
    judge: Judge,
    asked: Sequence[tuple[Row, AskedRow]],
    *,
    max_failed: float,
) -> tuple[list[tuple[Row, AskedRow]], JudgeResults]:
    """The rows of a run with their scores by the judge, and the results; a row without one has failed.

    Raises ScoringError as soon as the judge has failed at more than ``max_failed`` answers.
    """
    reasons: list[str] = []

    def watch(judgement: Judgement) -> None:
        if judgement.verdict is None:
            reasons.append(judgement.reason)
            log.warning("no verdict from %s", judgement.reason)
        if len(reasons) > max_failed:
            raise ScoringError(
                f"There is no verdict on {len(reasons)} answers, above evaluation.max_unscored_share; the "
                f"last is from {reasons[-1]}. Answers and verdicts are kept: start again to ask for the rest."
            )

    scored = [place for place, (_, found) in enumerate(asked) if found.outcome == "scored"]
    answers = [(asked[place][0], asked[place][1].prediction or "") for place in scored]
    judged, results = judge_answers(judge, answers, on_judged=watch)
    rows = list(asked)
    for place, each in zip(scored, judged, strict=True):
        row, found = asked[place]
        rows[place] = row, _with_judge(found, each)
    return rows, results


def num_needs_llm(benchmark: str, asked: Sequence[tuple[Row, AskedRow]]) -> int | None:
    """How many answers the benchmark's rule cannot read, a judge or none; None where judges have no use."""
    judging = find_judging(benchmark)
    if judging is None:
        return None
    return sum(
        judging.needs_llm(row, found.prediction or "") for row, found in asked if found.outcome == "scored"
    )


def _with_judge(found: AskedRow, judged: JudgedAnswer) -> AskedRow:
    if judged.score is None:
        return replace(found, outcome="failed", reason=judged.reason, score=None)
    return replace(found, judged=judged.score)
