"""Measure variants: roll out, score, sum up, compare. Independent of which engine answers.

A variant that an earlier, interrupted run of the same directory has finished is read back instead of measured
again, provided that its model and its questions are still the same.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from models.config import EvaluationRun, EvaluationVariant, Look, resolve_model_path
from models.engine import Engine
from models.errors import ConfigError
from models.evaluation.metrics import check_unscored, compare, summarise, summarise_samples
from models.evaluation.predictions import Prediction, read_predictions, score, write_predictions
from models.evaluation.results import Comparison, Frozen, Results, VariantResult
from models.evaluation.switch import Engines, EngineSwitch, folder_digest
from models.records import Question
from models.rollout import derive_seed, stream
from models.rundir import RunDir, write_atomically

log = logging.getLogger(__name__)

SAMPLING_TEMPERATURE = 1.0
# Progress lines come about this often.
_SECONDS_BETWEEN_LINES = 1.0


class FinishedVariant(Frozen):
    """The content of ``variants/<name>.json``: a row, and the questions that it was measured on."""

    questions_digest: str
    row: VariantResult


@dataclass(slots=True)
class Progress:
    """Attempts finished so far, written to the run's metrics about once a second."""

    run: RunDir
    total: int
    done: int = 0
    logged_at: float = 0.0

    def advance(self, num: int = 1) -> None:
        """Count finished attempts."""
        self.done += num
        now = time.monotonic()
        if now - self.logged_at >= _SECONDS_BETWEEN_LINES or self.done == self.total:
            self.logged_at = now
            self.run.log(self.done, {"progress/done": self.done, "progress/total": self.total})


def evaluate(run: RunDir, config: EvaluationRun, questions: Sequence[Question], engines: Engines) -> Results:
    """Measure every variant; leaves ``predictions/``, ``variants/`` and ``metrics.json`` in the run.

    Raises ConfigError when there are too few questions, ScoringError when we broke too many attempts.
    """
    asked = in_fixed_order(questions)
    _check_questions(config, asked)
    progress = Progress(run, total=sum(_num_attempts(variant, config) for variant in config.variants))
    measured: dict[str, tuple[VariantResult, list[Prediction]]] = {}
    switch = EngineSwitch(engines)
    try:
        for variant in config.variants:
            model_path = resolve_model_path(variant.model_path)
            measured[variant.name] = _measure(
                run, config, variant, asked[: variant.num_questions], model_path, switch, progress
            )
            run.log(progress.done, variant_metrics(measured[variant.name][0]))
    finally:
        switch.close()
    results = Results(
        seed=config.seed,
        questions_digest=questions_digest(asked),
        variants=tuple(row for row, _ in measured.values()),
        comparisons=_compare(config, {name: predictions for name, (_, predictions) in measured.items()}),
    )
    results.save(run.path / "metrics.json")
    return results


def in_fixed_order(questions: Iterable[Question]) -> list[Question]:
    """The questions in an order that only their ids decide, so that the first n are always the same random n.

    Raises ConfigError for repeated ids: they could not be paired.
    """
    ordered = sorted(questions, key=lambda question: (derive_seed(0, question.id, 0), question.id))
    for question, following in pairwise(ordered):
        if question.id == following.id:
            raise ConfigError(
                f"Question id {question.id!r} occurs more than once. Give every question its own."
            )
    return ordered


def questions_digest(questions: Iterable[Question]) -> str:
    """sha256 over what defines the questions: ids, kinds, pictures, texts, answers and gold boxes."""
    digest = hashlib.sha256()
    for question in questions:
        boxes = [[float(value) for value in box.corners()] for box in question.gold_boxes]
        parts = [question.id, question.kind, question.image_sha256, question.text, question.answers, boxes]
        digest.update(json.dumps(parts).encode())
    return digest.hexdigest()


def variant_metrics(row: VariantResult) -> Mapping[str, float]:
    """The headline numbers of one row, under the names of docs/metrics.md."""
    overall, sampled, area = row.overall, row.sampled, f"evaluation/{row.name}"
    found: dict[str, float | None] = {
        "accuracy": overall.accuracy.value,
        **{f"accuracy_{kind}": scores.accuracy.value for kind, scores in row.kinds.items()},
        "format_rate": overall.format_rate,
        "protocol_error_rate": overall.protocol_error_rate,
        "truncation_rate": overall.truncation_rate,
        "num_unscored": overall.num_unscored + (sampled.num_unscored if sampled else 0),
        "crops_per_question": overall.crops_per_question,
        "first_box_on_object": overall.first_box_on_object,
        "first_box_iou": overall.first_box_iou,
        "crop_tokens": overall.crop_tokens,
        "tokens_per_question": overall.tokens_per_question,
        "tokens_per_second": row.tokens_per_second,
        "seconds": row.seconds,
    }
    if sampled is not None:
        found[f"mean@{sampled.num_samples}"] = sampled.mean.value
        found["sampled_format_rate"] = sampled.format_rate
    return {f"{area}/{name}": value for name, value in found.items() if value is not None}


def _check_questions(config: EvaluationRun, questions: Sequence[Question]) -> None:
    for variant in config.variants:
        if variant.num_questions > len(questions):
            raise ConfigError(
                f"Variant {variant.name!r} wants {variant.num_questions} questions, {config.questions_path} "
                f"has {len(questions)}. Lower evaluation.num_questions, or build a larger set."
            )
    without_gold = [question.id for question in questions if not question.answers]
    if without_gold:
        raise ConfigError(
            f"{config.questions_path}: {len(without_gold)} questions have no gold answer, the first is "
            f"{without_gold[0]!r}. They cannot be scored: leave them out."
        )


def _measure(
    run: RunDir,
    config: EvaluationRun,
    variant: EvaluationVariant,
    questions: Sequence[Question],
    model_path: Path,
    switch: EngineSwitch,
    progress: Progress,
) -> tuple[VariantResult, list[Prediction]]:
    """One row and its predictions, measured now or read back."""
    target = run.path / "predictions" / f"{variant.name}.parquet"
    record = run.path / "variants" / f"{variant.name}.json"
    asked, model_digest = questions_digest(questions), folder_digest(model_path)
    earlier = _finished(record)
    if earlier is not None and (earlier.questions_digest, earlier.row.model_digest) == (asked, model_digest):
        log.info("%s: finished by an earlier run, read back", variant.name)
        progress.advance(_num_attempts(variant, config))
        return earlier.row, read_predictions(target)
    engine = switch.use(model_path)
    started = time.monotonic()
    predictions = _attempt_all(engine, variant, questions, config, progress)
    seconds = time.monotonic() - started
    write_predictions(target, predictions)
    for attempts in _split(predictions):
        check_unscored(variant.name, attempts, max_share=config.evaluation.max_unscored_share)
    row = _summarise(variant, config, predictions, model_digest=model_digest, seconds=seconds)
    write_atomically(record, FinishedVariant(questions_digest=asked, row=row).model_dump_json(indent=2))
    log.info("%s: accuracy %.3f after %.1f s", variant.name, row.overall.accuracy.value, seconds)
    return row, predictions


def _finished(record: Path) -> FinishedVariant | None:
    """What an earlier run left; None when it did not finish this variant, or was of another version."""
    try:
        return FinishedVariant.model_validate_json(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def _num_attempts(variant: EvaluationVariant, config: EvaluationRun) -> int:
    return variant.num_questions + variant.num_sampled_questions * config.evaluation.num_samples


def _attempt_all(
    engine: Engine,
    variant: EvaluationVariant,
    questions: Sequence[Question],
    config: EvaluationRun,
    progress: Progress,
) -> list[Prediction]:
    """Greedy attempts at every question, then the samples of the first; in the order of the questions."""
    look = _look(config.look, variant)
    by_id = {question.id: question for question in questions}
    place = {id: index for index, id in enumerate(by_id)}
    sampled = questions[: variant.num_sampled_questions]
    predictions: list[Prediction] = []
    for asked, num_samples, temperature in (
        (questions, 1, 0.0),
        (sampled, config.evaluation.num_samples, SAMPLING_TEMPERATURE),
    ):
        attempts = stream(
            engine,
            questions=[question for question in asked for _ in range(num_samples)],
            look=look,
            num_samples=num_samples,
            temperature=temperature,
            seed=config.seed,
        )
        finished = []
        for trajectory in attempts:
            question = by_id[trajectory.question_id]
            finished.append(
                score(trajectory, question, style=variant.style, temperature=temperature, budget=look.budget)
            )
            progress.advance()
        predictions += sorted(finished, key=lambda p: (place[p.question_id], p.transcript.sample_index))
    return predictions


def _split(predictions: Sequence[Prediction]) -> tuple[list[Prediction], list[Prediction]]:
    """Greedy attempts and sampled ones."""
    return [p for p in predictions if p.temperature == 0], [p for p in predictions if p.temperature > 0]


def _look(look: Look, variant: EvaluationVariant) -> Look:
    """The rules of looking again for this variant: a direct answer has no system prompt and no crops."""
    if variant.style == "direct":
        return look.model_copy(update={"system": None, "max_crops": 0})
    return look.model_copy(update={"crop_source": variant.crop_source})


def _summarise(
    variant: EvaluationVariant,
    config: EvaluationRun,
    predictions: Sequence[Prediction],
    *,
    model_digest: str,
    seconds: float,
) -> VariantResult:
    greedy, sampled = _split(predictions)
    factor = config.look.pixel_factor
    kinds = sorted({p.kind for p in greedy if p.kind})
    num_tokens = sum(p.transcript.num_sampled_tokens for p in predictions)
    return VariantResult(
        name=variant.name,
        label=variant.label or variant.name,
        style=variant.style,
        crop_source=variant.crop_source,
        model_path=variant.model_path,
        model_digest=model_digest,
        overall=summarise(greedy, pixel_factor=factor),
        kinds={kind: summarise([p for p in greedy if p.kind == kind], pixel_factor=factor) for kind in kinds},
        sampled=summarise_samples(sampled, seed=config.seed) if sampled else None,
        seconds=round(seconds, 3),
        tokens_per_second=num_tokens / seconds,
    )


def _compare(
    config: EvaluationRun, predictions: Mapping[str, Sequence[Prediction]]
) -> tuple[Comparison, ...]:
    """The differences asked for, over all questions and over each kind that both rows were asked."""
    found = []
    for new, old in config.comparisons:
        rows = (new, predictions[new]), (old, predictions[old])
        kinds = {p.kind for p in predictions[new]} & {p.kind for p in predictions[old]}
        for kind in ["", *sorted(kinds - {""})]:
            found.append(compare(*rows, kind=kind, seed=config.seed))
    return tuple(found)
