"""Each filter's accept and reject cases."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from models.region import Box
from models.trajectory import BoxEvent, Prompt, StopReason, TurnError
from models.vlir.filters import OUR_FAILURES, Judges, Reason, find_broken_rule, screen
from models.vlir.judges import Nobody, NoReply


class Always:
    """A judge with one opinion, which remembers what it was asked."""

    def __init__(self, *replies: str) -> None:
        self.name = "always"
        self.replies = replies
        self.prompts: list[Prompt] = []

    def ask(self, prompts: Sequence[Prompt], *, attempt: int) -> list[str]:
        self.prompts.extend(prompts)
        return [self.replies[attempt]] * len(prompts)


@pytest.fixture
def sound(make_candidate, reading):
    """A good try at a question whose answer is its code."""
    return make_candidate(reading.question, *_pieces(reading))


def _pieces(reading, *, answer: str = "", box: str = "") -> tuple[str, str]:
    x1, y1, x2, y2 = (round(corner / 4) for corner in reading.question.gold_boxes[0].corners())
    code = answer or reading.question.answers[0]
    command = box or f'{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}'
    return f"<think>I look at the card. {command}", f" It says {code}.</think><answer>{code}</answer>"


def _screen(candidates, look, *, unit="yes", coherence="yes"):
    judges = Judges(Always(unit, unit), Always(coherence, coherence))
    return screen(candidates, look=look, judges=judges), judges


def test_a_sound_try_keeps_every_rule(sound, look):
    assert find_broken_rule(sound, look) is None


def test_a_wrong_answer_is_rejected_with_both_answers_as_evidence(make_candidate, reading, look):
    candidate = make_candidate(reading.question, *_pieces(reading, answer="W1"))
    reason, evidence = find_broken_rule(candidate, look)
    assert reason == Reason.WRONG_ANSWER
    assert "'W1'" in evidence
    assert reading.question.answers[0] in evidence


def test_answers_are_compared_like_everywhere_else(make_candidate, reading, look):
    first, _ = _pieces(reading)
    loud = f" Read.</think><answer> {reading.question.answers[0].lower()}. </answer>"
    assert find_broken_rule(make_candidate(reading.question, first, loud), look) is None


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (" It says K7.</think>", Reason.NO_ANSWER),
        (" It says K7.</think><answer>K7", Reason.NO_ANSWER),
        (" It says K7.<answer>K7</answer>", Reason.MALFORMED),
        (" It says K7.</think><answer></answer>", Reason.MALFORMED),
        (" It says K7.</think></think><answer>K7</answer>", Reason.MALFORMED),
        (" It says K7.</think><answer>K7</answer><answer>K7</answer>", Reason.MALFORMED),
        (" It says K7.</think>so<answer>K7</answer>", Reason.MALFORMED),
    ],
)
def test_a_try_out_of_format_is_rejected(make_candidate, reading, look, last, reason):
    first, _ = _pieces(reading)
    found = find_broken_rule(make_candidate(reading.question, first, last), look)
    assert found is not None
    assert found[0] == reason


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        (StopReason.TOKEN_LIMIT, Reason.TRUNCATED),
        (StopReason.TURN_LIMIT, Reason.TRUNCATED),
        (StopReason.CROP_LIMIT, Reason.TRUNCATED),
        (StopReason.CONTEXT_LIMIT, Reason.TRUNCATED),
        (StopReason.ENGINE_ERROR, Reason.ENGINE_FAILURE),
        (StopReason.ABORTED, Reason.ENGINE_FAILURE),
    ],
)
def test_how_a_try_ended_comes_first(sound, look, stop, reason):
    cut = replace(sound, trajectory=replace(sound.trajectory, stop=stop, detail="why"))
    found = find_broken_rule(cut, look)
    assert found is not None
    assert found[0] == reason


@pytest.mark.parametrize("error", list(TurnError))
def test_every_protocol_error_is_a_reason_of_its_own(sound, look, error):
    events = (*sound.trajectory.events, BoxEvent(Box(1, 2, 3, 4, "seen"), error))
    told = replace(sound, trajectory=replace(sound.trajectory, events=events))
    reason, evidence = find_broken_rule(told, look)
    assert reason.value == error.value
    assert "[1, 2, 3, 4]" in evidence


@pytest.mark.parametrize(
    ("corners", "reason"),
    [
        ((10, 10, 8, 20), Reason.INVERTED_BOX),
        ((100, 10, 114, 20), Reason.OUTSIDE_IMAGE),
        ((10, 10, 13, 20), Reason.TOO_SMALL),
        ((0, 10, 100, 14), Reason.ASPECT_RATIO),
    ],
)
def test_boxes_of_a_record_are_checked_whoever_made_it(sound, look, corners, reason):
    first, last = sound.record.steps
    record = replace(sound.record, steps=(replace(first, box=Box(*corners, space="seen")), last))
    assert find_broken_rule(replace(sound, record=record), look)[0] == reason


def test_a_repeated_box_is_rejected(sound, look):
    first, last = sound.record.steps
    again = replace(first, text=first.text.removeprefix("<think>"))
    record = replace(sound.record, steps=(first, again, last))
    assert find_broken_rule(replace(sound, record=record), look)[0] == Reason.REPEATED_BOX


def test_two_verdicts_of_yes_accept(sound, look):
    screening, judges = _screen([sound], look)
    (record,) = screening.records
    assert record.reason == ""
    assert [verdict.name for verdict in record.verdicts] == ["rules", "semantic_unit", "coherence"]
    assert judges.semantic_unit.prompts[0].pictures == (sound.trajectory.crops[0].picture,)
    assert record.text in judges.coherence.prompts[0].text
    assert [dict(counts) for counts in screening.judge_counts] == [
        {
            "semantic_unit/asked": 1,
            "semantic_unit/retried": 0,
            "coherence/asked": 1,
            "coherence/retried": 0,
        }
    ]


@pytest.mark.parametrize(
    ("unit", "coherence", "reason"),
    [
        ("no", "yes", Reason.NO_SEMANTIC_UNIT),
        ("dunno", "yes", Reason.UNCLEAR_SEMANTIC_UNIT),
        ("yes", "no", Reason.INCOHERENT),
        ("yes", "dunno", Reason.UNCLEAR_COHERENCE),
    ],
)
def test_any_other_verdict_rejects_and_is_kept_as_evidence(sound, look, unit, coherence, reason):
    screening, _ = _screen([sound], look, unit=unit, coherence=coherence)
    (record,) = screening.records
    assert record.reason == reason.value
    failed = record.verdicts[-1]
    assert failed.verdict == ("unclear" if "dunno" in (unit, coherence) else "no")
    assert repr("dunno" if "dunno" in (unit, coherence) else "no") in failed.evidence
    assert failed.name == ("semantic_unit" if unit != "yes" else "coherence")


def test_unclear_verdicts_are_counted_and_retried(sound, look):
    screening, judges = _screen([sound], look, unit="dunno")
    assert sum(screening.judge_counts, Counter())["semantic_unit/unclear"] == 1
    assert sum(screening.judge_counts, Counter())["semantic_unit/retried"] == 1
    assert len(judges.semantic_unit.prompts) == 2


def test_judges_see_only_what_passed_the_filters_before_them(make_candidate, sound, reading, look):
    wrong = make_candidate(reading.question, *_pieces(reading, answer="W1"))
    screening, judges = _screen([wrong, sound, wrong], look)
    assert [record.reason for record in screening.records] == ["wrong_answer", "", "wrong_answer"]
    assert len(judges.semantic_unit.prompts) == len(judges.coherence.prompts) == 1
    _, judges = _screen([sound], look, unit="no")
    assert judges.coherence.prompts == []


def test_a_rationale_without_a_look_needs_no_semantic_unit(make_candidate, drawn, look):
    question = next(item.question for item in drawn if item.asked.kind == "where")
    candidate = make_candidate(question, f"<think>From afar.</think><answer>{question.answers[0]}</answer>")
    screening, judges = _screen([candidate], look, unit="no")
    assert screening.records[0].reason == ""
    assert judges.semantic_unit.prompts == []


def test_one_bad_crop_of_two_rejects(make_candidate, drawn, look):
    item = next(item for item in drawn if item.asked.kind == "add")
    boxes = [[round(corner / 4) for corner in box.corners()] for box in item.question.gold_boxes]
    candidate = make_candidate(
        item.question,
        f'<think>First. {{"bbox_2d": {boxes[0]}}}',
        f' Then. {{"bbox_2d": {boxes[1]}}}',
        f" Sum.</think><answer>{item.question.answers[0]}</answer>",
    )

    class SecondIsBad(Always):
        def ask(self, prompts, *, attempt):
            return ["yes", "no"]

    screening = screen([candidate], look=look, judges=Judges(SecondIsBad("yes"), Always("yes")))
    (record,) = screening.records
    assert record.reason == Reason.NO_SEMANTIC_UNIT
    assert [verdict.verdict for verdict in record.verdicts] == ["yes", "yes", "no"]
    assert str([float(corner) for corner in boxes[1]]) in record.verdicts[-1].evidence


class Partly(Always):
    """Replies with what it was given, one after the other."""

    def ask(self, prompts, *, attempt):
        return list(self.replies)[: len(prompts)]


FAILED = NoReply("judge_failed", "timed out")


def test_a_judge_that_fails_at_one_request_judges_the_others(sound, look):
    judges = Judges(Partly(FAILED, "yes"), Always("yes"))
    screening = screen([sound, sound], look=look, judges=judges)
    failed, accepted = screening.records
    assert (failed.reason, accepted.reason) == (Reason.JUDGE_FAILED, "")
    assert failed.verdicts[-1].verdict == "judge_failed"
    assert "timed out" in failed.verdicts[-1].evidence
    assert [counts["semantic_unit/judge_failed"] for counts in screening.judge_counts] == [1, 0]
    # It is ours, so the try is made again, and nobody was asked about its reasoning meanwhile.
    assert Reason.JUDGE_FAILED in OUR_FAILURES
    assert len(judges.coherence.prompts) == 1


@pytest.mark.parametrize(
    ("replies", "reason"),
    [((FAILED, "no"), Reason.NO_SEMANTIC_UNIT), ((FAILED, "yes"), Reason.JUDGE_FAILED)],
)
def test_a_no_about_one_crop_needs_no_verdict_on_the_other(sound, look, replies, reason):
    two_looks = replace(sound, trajectory=replace(sound.trajectory, spans=sound.trajectory.spans[:2] * 2))
    screening = screen([two_looks], look=look, judges=Judges(Partly(*replies), Always("yes")))
    assert screening.records[0].reason == reason


def test_what_nobody_judges_is_accepted_and_says_so(sound, look):
    screening = screen([sound], look=look, judges=Judges(Nobody(), Nobody()))
    (record,) = screening.records
    assert record.reason == ""
    assert [(verdict.name, verdict.verdict) for verdict in record.verdicts] == [
        ("rules", "yes"),
        ("semantic_unit", "not_judged"),
        ("coherence", "not_judged"),
    ]
    (counts,) = screening.judge_counts
    assert (counts["coherence/asked"], counts["coherence/not_judged"]) == (0, 1)
