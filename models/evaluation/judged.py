"""Answers to a benchmark scored with a judge, and what that comes to beside the rule's numbers.

An answer that the judge failed at has no score with the judge; it is counted, and in none of its numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.benchmarks.judging import Judging, is_cut
from models.benchmarks.scorer import Row, Score
from models.errors import ScoringError
from models.evaluation.judge import Judge, Judgement
from models.evaluation.metrics import wilson_interval
from models.evaluation.results import Estimate, Frozen

Answer = tuple[Row, str]


class JudgeResults(Frozen):
    """What a judge did and what came of it. ``num_asked`` answers were put to it, ``num_cached`` of them in
    an earlier run, ``num_failed`` without a verdict; of ``num_cut`` it saw only both ends.

    ``headline`` is the share of right answers over the ``num_scored`` rows that have a score with the judge,
    None without any; ``metrics`` are the benchmark's with the judge, None, with ``metrics_note``, where rows
    are missing that they need.
    """

    model: str
    endpoint: str
    version: str
    num_asked: int
    num_cached: int
    num_failed: int
    num_cut: int
    num_scored: int
    headline: Estimate | None
    metrics: dict[str, Any] | None
    metrics_note: str

    def numbers(self) -> Mapping[str, float | None]:
        """The numbers for ``metrics.jsonl``, without those of the benchmark's own metrics."""
        headline = self.headline
        return {
            "headline": headline.value if headline else None,
            "headline_low": headline.low if headline else None,
            "headline_high": headline.high if headline else None,
            "num_asked": self.num_asked,
            "num_cached": self.num_cached,
            "num_failed": self.num_failed,
            "num_cut": self.num_cut,
        }


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """An answer's score with the judge; None when the judge failed, for ``reason``.

    The score has ``verdict`` and ``reply``, None where the judge was not asked.
    """

    score: Score | None
    reason: str = ""


def judge_answers(
    judge: Judge,
    answers: Sequence[Answer],
    *,
    on_judged: Callable[[Judgement], None] = lambda judgement: None,
) -> tuple[list[JudgedAnswer], JudgeResults]:
    """Every answer scored with the judge, in order, and the results; for ``on_judged`` see :class:`Judge`."""
    judging = judge.judging
    places = [place for place, answer in enumerate(answers) if judging.asks(*answer)]
    judgements = judge.judge([answers[place] for place in places], on_judged=on_judged)
    by_place = dict(zip(places, judgements, strict=True))
    judged = [_judged(judging, row, text, by_place.get(place)) for place, (row, text) in enumerate(answers)]
    headline, metrics, note = _summed_up(judging, answers, judged)
    results = JudgeResults(
        model=judge.config.served_model,
        endpoint=judge.config.endpoint,
        version=judge.version,
        num_asked=len(judgements),
        num_cached=sum(each.is_cached for each in judgements),
        num_failed=sum(each.verdict is None for each in judgements),
        num_cut=sum(is_cut(answers[place][1]) for place in places),
        num_scored=sum(each.score is not None for each in judged),
        headline=headline,
        metrics=metrics,
        metrics_note=note,
    )
    return judged, results


def judge_lines(judge: JudgeResults) -> Iterator[str]:
    """What a table says about the judge, ASCII."""
    unit = judge.headline
    share = f"{100 * unit.value:.1f} % [{100 * unit.low:.1f}, {100 * unit.high:.1f}]" if unit else "no number"
    yield f"with judge  {share} over {judge.num_scored} rows"
    yield f"judge       {judge.model} at {judge.endpoint}, version {judge.version}"
    yield (
        f"            {judge.num_asked} answers judged, {judge.num_cached} of them in an earlier run, "
        f"{judge.num_failed} failed, {judge.num_cut} shown with their middle cut out"
    )


def judge_warnings(judge: JudgeResults) -> Iterator[str]:
    """What a table warns of."""
    if judge.num_failed:
        yield (
            f"WARNING: the judge failed at {judge.num_failed} answers, which have no score; the next start "
            "asks it again."
        )
    if judge.metrics is None:
        yield f"WARNING: the benchmark's metrics with the judge are missing. {judge.metrics_note}"


def _judged(judging: Judging, row: Row, text: str, judgement: Judgement | None) -> JudgedAnswer:
    if judgement is None:
        return JudgedAnswer({**judging.score(row, text, None), "verdict": None, "reply": None})
    if judgement.verdict is None:
        return JudgedAnswer(None, judgement.reason)
    score = judging.score(row, text, judgement.verdict)
    return JudgedAnswer({**score, "verdict": judgement.verdict, "reply": judgement.reply})


def _summed_up(
    judging: Judging, answers: Sequence[Answer], judged: Sequence[JudgedAnswer]
) -> tuple[Estimate | None, dict[str, Any] | None, str]:
    known = [
        (answer, each.score) for answer, each in zip(answers, judged, strict=True) if each.score is not None
    ]
    if not known:
        return None, None, "No row has a score."
    headline = wilson_interval(sum(score["correct"] for _, score in known), len(known))
    try:
        metrics = judging.aggregate(
            [row for (row, _), _ in known], [text for (_, text), _ in known], [score for _, score in known]
        )
    except ScoringError as error:
        return headline, None, str(error)
    return headline, metrics, ""
