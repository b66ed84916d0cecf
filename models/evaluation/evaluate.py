"""Measure variants: roll out, score, sum up, compare. Independent of which engine answers.

Work is divided among ranks by question (:mod:`models.evaluation.shards`). What an earlier, interrupted run of
the same directory has asked is not asked again.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from models.config import resolve_model_path
from models.errors import ConfigError, ScoringError
from models.evaluation.attempts import Work, attempt
from models.evaluation.ledger import Ledger
from models.evaluation.metrics import check_unscored, compare, summarise, summarise_samples
from models.evaluation.predictions import ATTEMPTS, Prediction, write_predictions
from models.evaluation.ranks import ALONE, Share
from models.evaluation.results import Comparison, Results, VariantResult
from models.evaluation.shards import Shards
from models.evaluation.switch import Engines, EngineSwitch, folder_digest
from models.records import Question
from models.rollout import derive_seed
from models.run_config import EvaluationRun, EvaluationVariant
from models.rundir import RunDir, metric_part

log = logging.getLogger(__name__)

SAMPLING_TEMPERATURE = 1.0
# Progress lines come about this often.
_SECONDS_BETWEEN_LINES = 1.0


@dataclass(slots=True)
class Progress:
    """Attempts finished so far, written to the run's metrics about once a second.

    The first rank writes for all: shares are equal, so its own count times their number is the whole.
    """

    run: RunDir
    total: int
    share: Share
    done: int = 0
    logged_at: float = 0.0

    def advance(self, num: int = 1) -> None:
        """Count attempts that this rank finished."""
        self.done += num
        if self.share.is_first and time.monotonic() - self.logged_at >= _SECONDS_BETWEEN_LINES:
            self._log(min(self.total, self.done * self.share.num_ranks))

    def finish(self) -> None:
        """All ranks have finished."""
        self._log(self.total)

    def _log(self, done: int) -> None:
        self.logged_at = time.monotonic()
        self.run.log(done, {"progress/done": done, "progress/total": self.total})


def evaluate(
    run: RunDir,
    config: EvaluationRun,
    questions: Sequence[Question],
    engines: Engines,
    *,
    share: Share = ALONE,
) -> Results | None:
    """Measure this process's share of every variant; the first rank merges them and returns the results.

    Other ranks return None. Leaves ``predictions/`` and ``metrics.json`` in the run. Raises ConfigError when
    there are too few questions, ScoringError when we broke too many attempts.
    """
    asked = in_fixed_order(questions)
    _check_questions(config, asked)
    total = sum(_num_attempts(variant, config) for variant in config.variants)
    progress = Progress(run, total, share)
    digest = cache(folder_digest)
    shards = {
        variant.name: Shards(
            folder=run.path / "shards",
            variant=variant.name,
            num_ranks=share.num_ranks,
            model_digest=digest(resolve_model_path(variant.model_path)),
            questions_digest=questions_digest(asked[: variant.num_questions]),
        )
        for variant in config.variants
    }
    switch = EngineSwitch(engines)
    try:
        for variant in config.variants:
            _measure(config, variant, asked, shards[variant.name], switch, progress)
    finally:
        switch.close()
    return _merge(run, config, asked, shards, progress) if share.is_first else None


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
        **{f"accuracy_{metric_part(kind)}": scores.accuracy.value for kind, scores in row.kinds.items()},
        "format_rate": overall.format_rate,
        "protocol_error_rate": overall.protocol_error_rate,
        "truncation_rate": overall.truncation_rate,
        "num_unscored": overall.num_unscored + (sampled.num_unscored if sampled else 0),
        "crops_per_question": overall.crops_per_question,
        "first_box_on_object": overall.first_box_on_object,
        "first_box_iou": overall.first_box_iou,
        "gold_recall": overall.gold_recall,
        "crops_with_answer": overall.crops_with_answer,
        "crop_tokens": overall.crop_tokens,
        "tokens_per_question": overall.tokens_per_question,
        "seconds_per_question": overall.seconds_per_question,
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
    config: EvaluationRun,
    variant: EvaluationVariant,
    questions: Sequence[Question],
    shards: Shards,
    switch: EngineSwitch,
    progress: Progress,
) -> None:
    """This rank's shard of a variant, but for what an earlier run of the same directory has asked."""
    share = progress.share
    greedy = share.of(questions[: variant.num_questions])
    sampled = share.of(questions[: variant.num_sampled_questions])
    if shards.is_finished(share.rank):
        log.info("%s: finished by an earlier run", variant.name)
        progress.advance(len(greedy) + len(sampled) * config.evaluation.num_samples)
        return
    ledger = Ledger(shards.rows, share, ATTEMPTS)
    kept = {p.key: p for p in ledger.read()}
    work = [
        Work(greedy, num_samples=1, temperature=0.0),
        Work(sampled, num_samples=config.evaluation.num_samples, temperature=SAMPLING_TEMPERATURE),
    ]
    missing = [part.without(kept) for part in work]
    again = {key for part in missing for key in part.attempts()}
    predictions = [kept[key] for part in work for key in part.attempts() if key not in again]
    progress.advance(len(predictions))
    started = time.monotonic()
    asked: list[Prediction] = []
    if again:
        engine = switch.use(resolve_model_path(variant.model_path))
        started = time.monotonic()
        try:
            for part in missing:
                for prediction in attempt(engine, variant, part, config):
                    asked.append(prediction)
                    ledger.add(prediction)
                    progress.advance()
        finally:
            ledger.flush()
    seconds = time.monotonic() - started
    shards.finish(
        share.rank,
        [*predictions, *asked],
        seconds=seconds,
        num_tokens=sum(p.transcript.num_sampled_tokens for p in asked),
    )
    log.info("%s: %d attempts in %.1f s, %d kept", variant.name, len(asked), seconds, len(predictions))


def _merge(
    run: RunDir,
    config: EvaluationRun,
    questions: Sequence[Question],
    shards: Mapping[str, Shards],
    progress: Progress,
) -> Results:
    """All ranks' shards summed up, in the order of the variants."""
    place = {question.id: index for index, question in enumerate(questions)}
    rows: list[VariantResult] = []
    predictions: dict[str, list[Prediction]] = {}
    for variant in config.variants:
        found, seconds, num_tokens = shards[variant.name].collect()
        found.sort(key=lambda p: (p.temperature, place[p.question_id], p.transcript.sample_index))
        write_predictions(run.path / "predictions" / f"{variant.name}.parquet", found)
        try:
            for attempts in _split(found):
                check_unscored(variant.name, attempts, max_share=config.evaluation.max_unscored_share)
        except ScoringError:
            shards[variant.name].forget()
            raise
        rows.append(
            _summarise(
                variant,
                config,
                found,
                model_digest=shards[variant.name].model_digest,
                seconds=seconds,
                num_tokens=num_tokens,
            )
        )
        predictions[variant.name] = found
        run.log(progress.total, variant_metrics(rows[-1]))
    progress.finish()
    results = Results(
        seed=config.seed,
        questions_digest=questions_digest(questions),
        variants=tuple(rows),
        comparisons=_compare(config, predictions),
    )
    results.save(run.path / "metrics.json")
    return results


def _num_attempts(variant: EvaluationVariant, config: EvaluationRun) -> int:
    return variant.num_questions + variant.num_sampled_questions * config.evaluation.num_samples


def _split(predictions: Sequence[Prediction]) -> tuple[list[Prediction], list[Prediction]]:
    """Greedy attempts and sampled ones."""
    return [p for p in predictions if p.temperature == 0], [p for p in predictions if p.temperature > 0]


def _summarise(
    variant: EvaluationVariant,
    config: EvaluationRun,
    predictions: Sequence[Prediction],
    *,
    model_digest: str,
    seconds: float,
    num_tokens: int,
) -> VariantResult:
    greedy, sampled = _split(predictions)
    factor = config.look.pixel_factor
    kinds = sorted({p.kind for p in greedy if p.kind})
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
        tokens_per_second=num_tokens / seconds if num_tokens else None,
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
