"""Which generated rationales are good enough to learn from (paper 3.1.2).

Cheap rules come first: the loop ended well, the format holds, the boxes are sound, the answer is right
(the paper's rejection sampling). Then two judges: every crop must be a semantic unit (Listing 3), and the
reasoning must be coherent (Listing 4). An unclear verdict rejects too; a judge that failed gives none, and
the try is made again. Nothing is thrown away: a rejected record keeps the reason and the evidence.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from models import answers
from models.config import Look
from models.protocol import extract_answer, is_well_formed
from models.records import Verdict, VLIRRecord
from models.region import Box, Size, View, find_fault
from models.trajectory import Trajectory
from models.vlir.judges import Judge, Judgement, coherence_prompt, judge, semantic_unit_prompt
from models.vlir.prompts import box_came_back


class Reason(StrEnum):
    """Every way a try can be rejected. The box faults are those of :class:`models.trajectory.TurnError`."""

    ENGINE_FAILURE = "engine_failure"
    TRUNCATED = "truncated"
    BAD_JSON = "bad_json"
    NO_SUCH_IMAGE = "no_such_image"
    INVERTED_BOX = "inverted_box"
    OUTSIDE_IMAGE = "outside_image"
    TOO_SMALL = "too_small"
    ASPECT_RATIO = "aspect_ratio"
    REPEATED_BOX = "repeated_box"
    NO_ANSWER = "no_answer"
    MALFORMED = "malformed"
    WRONG_ANSWER = "wrong_answer"
    BOX_MODIFIED = "box_modified"
    NO_SEMANTIC_UNIT = "no_semantic_unit"
    UNCLEAR_SEMANTIC_UNIT = "unclear_semantic_unit"
    INCOHERENT = "incoherent"
    UNCLEAR_COHERENCE = "unclear_coherence"
    JUDGE_FAILED = "judge_failed"


# Tries that failed for our reasons say nothing about the question: they are made again.
OUR_FAILURES = frozenset({Reason.ENGINE_FAILURE, Reason.JUDGE_FAILED})


@dataclass(frozen=True, slots=True)
class Candidate:
    """One try: the record it would become, how it went, and the box commands that the prompt dictated."""

    record: VLIRRecord
    trajectory: Trajectory
    operations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judges:
    """Who judges crops, and who judges reasoning."""

    semantic_unit: Judge
    coherence: Judge

    def close(self) -> None:
        """Close both."""
        self.semantic_unit.close()
        self.coherence.close()


@dataclass(frozen=True, slots=True)
class Screening:
    """Candidates after all filters, as records in the order given; an accepted one has no ``reason``.

    ``judge_counts`` counts each one's verdicts by ``<filter>/<asked, no, unclear, retried,
    judge_failed, not_judged>``.
    """

    records: tuple[VLIRRecord, ...]
    judge_counts: tuple[Counter[str], ...]


def screen(candidates: Sequence[Candidate], *, look: Look, judges: Judges) -> Screening:
    """All filters over some candidates, the cheap ones first. Raises ScoringError when a judge is down."""
    records = [_apply_rules(candidate, look) for candidate in candidates]
    counts: tuple[Counter[str], ...] = tuple(Counter() for _ in candidates)
    alive = [index for index, record in enumerate(records) if not record.reason]
    verdicts = _judge_crops(
        [candidates[index] for index in alive], judges.semantic_unit, [counts[index] for index in alive]
    )
    for index, found in zip(alive, verdicts, strict=True):
        records[index] = _judged(records[index], found, Reason.NO_SEMANTIC_UNIT, Reason.UNCLEAR_SEMANTIC_UNIT)
    alive = [index for index in alive if not records[index].reason]
    coherences = _judge_reasoning(
        [records[index] for index in alive], judges.coherence, [counts[index] for index in alive]
    )
    for index, verdict in zip(alive, coherences, strict=True):
        records[index] = _judged(records[index], (verdict,), Reason.INCOHERENT, Reason.UNCLEAR_COHERENCE)
    return Screening(tuple(records), counts)


def find_broken_rule(candidate: Candidate, look: Look) -> tuple[Reason, str] | None:
    """The first cheap rule that a try breaks, with the evidence; None when it keeps them all."""
    record, trajectory = candidate.record, candidate.trajectory
    if trajectory.stop.is_our_failure:
        return Reason.ENGINE_FAILURE, trajectory.detail
    if trajectory.stop.is_truncated:
        return Reason.TRUNCATED, f"stopped by {trajectory.stop}"
    for event in trajectory.events:
        if event.error is not None:
            return Reason(event.error.value), f"asked for {_corners(event.box)}"
    if extract_answer(record.text) is None:
        return Reason.NO_ANSWER, record.text[-120:]
    if not is_well_formed(record.text):
        return Reason.MALFORMED, record.text[:120]
    fault = _find_box_fault(record, look)
    if fault is not None:
        return fault
    difference = box_came_back(record.text, candidate.operations) if candidate.operations else ""
    if difference:
        return Reason.BOX_MODIFIED, difference
    if not answers.matches(record.final_answer, record.question.answers):
        return Reason.WRONG_ANSWER, f"{record.final_answer!r} is not one of {list(record.question.answers)}"
    return None


def _find_box_fault(record: VLIRRecord, look: Look) -> tuple[Reason, str] | None:
    """The loop refuses such boxes by itself; a record that came another way must keep the same rules."""
    view = View(Size(record.question.width, record.question.height), Size(*record.seen_size))
    for index, box in enumerate(record.boxes):
        fault = find_fault(
            box,
            view,
            record.boxes[:index],
            min_side=look.min_side,
            max_aspect_ratio=look.max_aspect_ratio,
            repeated_iou=look.repeated_iou,
        )
        if fault is not None:
            return Reason(fault.value), f"box {_corners(box)}"
    return None


def _apply_rules(candidate: Candidate, look: Look) -> VLIRRecord:
    broken = find_broken_rule(candidate, look)
    if broken is None:
        return replace(candidate.record, verdicts=(Verdict("rules", "yes"),))
    reason, evidence = broken
    return replace(candidate.record, verdicts=(Verdict("rules", "no", evidence),), reason=reason.value)


def _judge_crops(
    candidates: Sequence[Candidate], unit_judge: Judge, counts: Sequence[Counter[str]]
) -> list[tuple[Verdict, ...]]:
    """The verdicts on every candidate's crops, all asked together."""
    crops = [crop for candidate in candidates for crop in candidate.trajectory.crops]
    judgements = iter(judge(unit_judge, [semantic_unit_prompt(crop.picture) for crop in crops]))
    verdicts = []
    for candidate, count in zip(candidates, counts, strict=True):
        found = []
        for crop in candidate.trajectory.crops:
            judgement = next(judgements)
            evidence = f"{unit_judge.name} on {_corners(crop.box)}: {judgement.reply!r}"
            found.append(_verdict("semantic_unit", judgement, evidence, count))
        verdicts.append(tuple(found))
    return verdicts


def _judge_reasoning(
    records: Sequence[VLIRRecord], coherence_judge: Judge, counts: Sequence[Counter[str]]
) -> list[Verdict]:
    prompts = [
        coherence_prompt(record.question.text, record.question.answers[0], record.text) for record in records
    ]
    return [
        _verdict("coherence", judgement, f"{coherence_judge.name}: {judgement.reply!r}", count)
        for judgement, count in zip(judge(coherence_judge, prompts), counts, strict=True)
    ]


def _verdict(name: str, judgement: Judgement, evidence: str, counts: Counter[str]) -> Verdict:
    counts[f"{name}/asked"] += judgement.answer != "not_judged"
    counts[f"{name}/retried"] += judgement.num_asked > 1
    if judgement.answer != "yes":
        counts[f"{name}/{judgement.answer}"] += 1
    return Verdict(name, judgement.answer, evidence)


def _judged(
    record: VLIRRecord, verdicts: tuple[Verdict, ...], if_no: Reason, if_unclear: Reason
) -> VLIRRecord:
    """The record with its verdicts, rejected by any that says so: no before unclear before no verdict."""
    reasons = {"no": if_no, "unclear": if_unclear, "judge_failed": Reason.JUDGE_FAILED}
    said = {verdict.verdict for verdict in verdicts}
    reason = next((reason.value for verdict, reason in reasons.items() if verdict in said), "")
    return replace(record, verdicts=record.verdicts + verdicts, reason=reason)


def _corners(box: Box | None) -> str:
    return "no box" if box is None else str(list(box.corners()))
