"""The evaluation loop, with engines that follow a script decided by a model's "weights"."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from models.config import EngineConfig, EvaluationConfig, Look
from models.engine import Engine, ScriptedEngine
from models.errors import ConfigError, ScoringError
from models.evaluation.evaluate import evaluate, in_fixed_order, questions_digest
from models.evaluation.predictions import read_predictions
from models.evaluation.ranks import Share
from models.evaluation.results import Results
from models.evaluation.switch import architecture, folder_digest
from models.records import Question, read_questions, write_questions
from models.run_config import EvaluationRun, EvaluationVariant
from models.rundir import RunDir
from models.trajectory import CropSpan, GenerationRequest, Piece, SampledSpan
from tests.evaluation_examples import make_question

LOOK_FIRST = '<think>{"bbox_2d": [10, 10, 20, 20]}'
ANSWER = "</think><answer>{}</answer>"


class WeightedEngine(ScriptedEngine):
    """Weights are a word: "good" reads the crop it asks for, "bad" guesses at once, "broken" breaks."""

    def __init__(self, weights: str) -> None:
        super().__init__(self._write)
        self.weights = weights
        self.is_closed = False
        self.asked: list[str] = []

    def close(self) -> None:
        self.is_closed = True

    def _write(self, request: GenerationRequest) -> str:
        if request.prompt.system is None:
            return "K7" if self.weights == "bad" else "I cannot say"
        if self.weights == "bad":
            return "<think>" + ANSWER.format("A1")
        if not request.spans:
            return LOOK_FIRST
        sees = any(isinstance(span, CropSpan) for span in request.spans)
        # Samples of the good model are right every second time.
        slips = request.temperature > 0 and request.request_id.endswith(("1", "3"))
        return ANSWER.format("K7" if sees and not slips else "A1")

    def _answer(self, request: GenerationRequest) -> Piece:
        self.asked.append(request.request_id)
        if self.weights == "broken" and request.request_id.startswith("q0#"):
            return Piece(request.request_id, SampledSpan("", (), ()), "error", "out of memory")
        return super()._answer(request)


def timeless(results: Results | None) -> Results:
    """The results without what depends on the clock."""
    assert results is not None
    text = re.sub(
        r'"(seconds|seconds_per_question|tokens_per_second)":[^,}]+', r'"\1":0', results.model_dump_json()
    )
    return Results.model_validate_json(text)


class RecordedEngines:
    """Opens and reloads weighted engines, and remembers it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.opened: list[WeightedEngine] = []

    def open(self, model_path: Path) -> Engine:
        weights = (model_path / "model.safetensors").read_text()
        self.calls.append(("open", weights))
        self.opened.append(WeightedEngine(weights))
        return self.opened[-1]

    def reload(self, engine: Engine, model_path: Path) -> Engine:
        assert isinstance(engine, WeightedEngine)
        engine.weights = (model_path / "model.safetensors").read_text()
        self.calls.append(("reload", engine.weights))
        return engine


def model_folder(path: Path, weights: str, *, layers: int = 2) -> str:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(
        json.dumps({"num_hidden_layers": layers, "transformers_version": weights})
    )
    (path / "model.safetensors").write_text(weights)
    return str(path)


@pytest.fixture
def questions() -> list[Question]:
    return [make_question(f"q{i}", kind="read" if i < 15 else "add") for i in range(20)]


@pytest.fixture
def make_run(tmp_path, look):
    """A run directory for some variants; each is (name, weights, settings)."""

    def make(
        *variants: tuple[str, str, dict], comparisons: Sequence[tuple[str, str]] = (), **settings: object
    ):
        config = EvaluationRun(
            variants=tuple(
                EvaluationVariant(
                    **{
                        "name": name,
                        "model_path": model_folder(tmp_path / "models" / weights, weights),
                        "num_questions": 20,
                        **changes,
                    }
                )
                for name, weights, changes in variants
            ),
            comparisons=tuple(comparisons),
            questions_path="test.parquet",
            look=look,
            engine=EngineConfig(),
            evaluation=EvaluationConfig(num_samples=4, **settings),
            seed=0,
        )
        return RunDir.create(tmp_path / "run", config), config

    return make


def test_variants_are_measured_summed_up_and_compared(make_run, questions):
    run, config = make_run(
        ("base_direct", "bad", {"style": "direct"}),
        ("base", "bad", {"label": "base (look-again)"}),
        ("rgrpo", "good", {"num_sampled_questions": 6}),
        ("no_crop", "good", {"crop_source": "none", "num_questions": 10}),
        comparisons=[("rgrpo", "base"), ("rgrpo", "no_crop")],
    )
    engines = RecordedEngines()
    results = evaluate(run, config, questions, engines)
    rows = {row.name: row for row in results.variants}
    assert [row.overall.accuracy.value for row in results.variants] == [1.0, 0.0, 1.0, 0.0]
    assert rows["base"].label == "base (look-again)"
    assert rows["rgrpo"].label == "rgrpo"
    assert {kind: scores.num_scored for kind, scores in rows["rgrpo"].kinds.items()} == {"add": 5, "read": 15}
    # Four samples, of which numbers 1 and 3 slip.
    sampled = rows["rgrpo"].sampled
    assert sampled is not None
    assert (sampled.num_questions, sampled.num_samples, sampled.mean.value) == (6, 4, 0.5)
    assert (rows["rgrpo"].overall.crops_per_question, rows["no_crop"].overall.crops_per_question) == (
        1.0,
        0.0,
    )
    gain = results.comparison("rgrpo", "base")
    assert gain is not None
    assert (gain.difference.value, gain.num_questions) == (1.0, 20)
    ablation = results.comparison("rgrpo", "no_crop")
    assert ablation is not None
    assert ablation.num_questions == 10
    assert {c.kind for c in results.comparisons} == {"", "read", "add"}
    assert Results.load(run.path / "metrics.json") == results


def test_one_engine_serves_all_models_of_one_architecture(make_run, questions):
    run, config = make_run(("base_direct", "bad", {}), ("base", "bad", {}), ("sft", "good", {}))
    engines = RecordedEngines()
    evaluate(run, config, questions, engines)
    assert engines.calls == [("open", "bad"), ("reload", "good")]
    assert engines.opened[0].is_closed


def test_another_architecture_gets_an_engine_of_its_own(make_run, questions):
    run, config = make_run(("base", "bad", {}), ("sft", "good", {}))
    model_folder(Path(config.variants[1].model_path), "good", layers=3)
    engines = RecordedEngines()
    evaluate(run, config, questions, engines)
    assert engines.calls == [("open", "bad"), ("open", "good")]
    assert [engine.is_closed for engine in engines.opened] == [True, True]


def test_predictions_hold_every_attempt_in_the_order_of_the_questions(make_run, questions):
    run, config = make_run(("sft", "good", {"num_sampled_questions": 5}))
    evaluate(run, config, questions, RecordedEngines())
    predictions = read_predictions(run.path / "predictions" / "sft.parquet")
    order = [question.id for question in in_fixed_order(questions)]
    assert [p.question_id for p in predictions if p.temperature == 0] == order
    sampled = [(p.question_id, p.transcript.sample_index) for p in predictions if p.temperature == 1]
    assert sampled == [(id, index) for id in order[:5] for index in range(4)]
    first = predictions[0]
    assert first.transcript.sampled_text == LOOK_FIRST + ANSWER.format("K7")
    assert first.answer == "K7"
    assert len(first.transcript.crops) == len(first.transcript.events) == 1


def test_progress_and_headline_numbers_are_logged(make_run, questions):
    run, config = make_run(("sft", "good", {"num_sampled_questions": 5}), ("base", "bad", {}))
    evaluate(run, config, questions, RecordedEngines())
    lines = list(run.metrics())
    progress = [(line["progress/done"], line["progress/total"]) for line in lines if "progress/done" in line]
    # 20 greedy and 5 x 4 sampled attempts, then 20.
    assert progress[-1] == (60, 60)
    assert progress == sorted(progress)
    (sft,) = [line for line in lines if "evaluation/sft/accuracy" in line]
    assert sft["evaluation/sft/accuracy"] == 1.0
    assert sft["evaluation/sft/mean@4"] == 0.5
    assert sft["evaluation/sft/num_unscored"] == 0


def test_the_first_n_questions_are_the_same_whatever_the_order_of_the_file(questions):
    ordered = in_fixed_order(questions)
    assert in_fixed_order(reversed(questions)) == ordered
    # A random order, not that of the file or of the kinds.
    assert [question.id for question in ordered] != [question.id for question in questions]
    assert {question.kind for question in ordered[:10]} == {"read", "add"}


def test_a_broken_attempt_is_reported_and_stays_unscored(make_run, questions):
    run, config = make_run(("sft", "broken", {}), max_unscored_share=0.05)
    (row,) = evaluate(run, config, questions, RecordedEngines()).variants
    assert (row.overall.num_scored, row.overall.num_unscored, row.overall.num_correct) == (19, 1, 19)
    assert (
        next(line for line in run.metrics() if "evaluation/sft/num_unscored" in line)[
            "evaluation/sft/num_unscored"
        ]
        == 1
    )


def test_too_many_broken_attempts_fail_the_run_and_leave_the_evidence(make_run, questions):
    run, config = make_run(("sft", "broken", {}), max_unscored_share=0.04)
    engines = RecordedEngines()
    with pytest.raises(ScoringError, match="1 of 20 attempts failed on our side"):
        evaluate(run, config, questions, engines)
    assert engines.opened[0].is_closed
    assert not (run.path / "metrics.json").exists()
    # The next start measures them again instead of failing for ever.
    assert list((run.path / "shards").glob("*.json")) == []
    broken = [p for p in read_predictions(run.path / "predictions" / "sft.parquet") if not p.is_scored]
    assert [(p.question_id, p.transcript.detail) for p in broken] == [("q0", "out of memory")]


class InterruptedEngines(RecordedEngines):
    """The process is asked to end at the ``last`` request."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self._left = last

    def open(self, model_path: Path) -> Engine:
        engine = super().open(model_path)
        submit = engine.submit

        def counted(request: GenerationRequest) -> None:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
            submit(request)

        engine.submit = counted  # type: ignore[method-assign]
        return engine


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_an_interrupted_run_asks_only_what_is_missing(make_run, questions, tmp_path, num_ranks):
    """The first start ends amid the samples of row "sft"; the second has its own number of ranks."""
    variants = [("base", "bad", {}), ("sft", "good", {"num_sampled_questions": 5})]
    run, config = make_run(*variants, comparisons=[("sft", "base")])
    config = config.model_copy(update={"engine": EngineConfig(max_num_seqs=1)})
    with pytest.raises(KeyboardInterrupt):
        # 20 requests of "base", 40 of the greedy "sft", 2 of each of 5 x 4 samples.
        evaluate(run, config, questions, InterruptedEngines(20 + 40 + 16))
    kept = {p.key for path in (run.path / "rows").glob("sft-*/*.parquet") for p in read_predictions(path)}
    assert 20 < len(kept) < 40
    asked: list[str] = []
    for rank in reversed(range(num_ranks)):
        engines = RecordedEngines()
        again = evaluate(run, config, questions, engines, share=Share(rank, num_ranks))
        asked += [id for engine in engines.opened for id in engine.asked]
    # Every greedy attempt was kept, and all samples of the first question; its own samples begin again.
    assert 0 < len(set(asked)) < 20
    whole = evaluate(RunDir.create(tmp_path / "whole", config), config, questions, RecordedEngines())
    assert timeless(again) == timeless(whole)


def test_a_finished_row_starts_no_engine(make_run, questions):
    run, config = make_run(("base", "bad", {}), ("sft", "good", {}))
    whole = evaluate(run, config, questions, RecordedEngines())
    (run.path / "shards" / "sft-0of1.json").unlink()
    engines = RecordedEngines()
    again = evaluate(run, config, questions, engines)
    assert engines.calls == []
    assert again.variants[1].tokens_per_second is None
    assert timeless(again) == timeless(whole)


def test_ranks_share_the_questions_and_the_first_one_merges(make_run, questions, tmp_path):
    variants = [("base", "bad", {}), ("sft", "good", {"num_sampled_questions": 5})]
    run, config = make_run(*variants)
    assert evaluate(run, config, questions, RecordedEngines(), share=Share(1, 2)) is None
    assert not (run.path / "metrics.json").exists()
    merged = evaluate(run, config, questions, RecordedEngines(), share=Share(0, 2))
    together = [read_predictions(run.path / "predictions" / f"{name}.parquet") for name in ("base", "sft")]
    # 20 greedy attempts and 5 x 4 samples in all, each rank half of the greedy ones.
    shards = [read_predictions(run.path / "shards" / f"sft-{rank}of2.parquet") for rank in (0, 1)]
    assert [sum(p.temperature == 0 for p in shard) for shard in shards] == [10, 10]
    assert [sum(p.temperature == 1 for p in shard) for shard in shards] == [12, 8]
    progress = [line["progress/done"] for line in run.metrics() if "progress/done" in line]
    assert progress == sorted(progress)
    assert progress[-1] == 60
    # The same as one process measures.
    alone_run = RunDir.create(tmp_path / "alone", config)
    alone = evaluate(alone_run, config, questions, RecordedEngines())
    assert merged is not None
    assert alone is not None
    assert timeless(merged) == timeless(alone)
    for name, found in zip(("base", "sft"), together, strict=True):
        expected = read_predictions(alone_run.path / "predictions" / f"{name}.parquet")
        assert [replace(p, seconds=0.0) for p in found] == [replace(p, seconds=0.0) for p in expected]


def test_a_changed_model_or_question_is_measured_again(make_run, questions):
    run, config = make_run(("base", "bad", {}))
    evaluate(run, config, questions, RecordedEngines())
    model_folder(Path(config.variants[0].model_path), "good")
    changed_model, changed_question = RecordedEngines(), RecordedEngines()
    assert evaluate(run, config, questions, changed_model).variants[0].overall.accuracy.value == 1.0
    assert changed_model.calls == [("open", "good")]
    others = [*questions[:-1], make_question("q19", kind="add", answer="other")]
    assert evaluate(run, config, others, changed_question).variants[0].overall.num_correct == 19
    assert changed_question.calls == [("open", "good")]


def test_too_few_questions_are_refused_before_an_engine_is_started(make_run, questions):
    run, config = make_run(("base", "bad", {}))
    engines = RecordedEngines()
    with pytest.raises(ConfigError, match=r"wants 20 questions, test\.parquet has 19"):
        evaluate(run, config, questions[:19], engines)
    assert engines.calls == []


def test_questions_without_gold_or_with_repeated_ids_are_refused(make_run, questions):
    run, config = make_run(("base", "bad", {}))
    with pytest.raises(ConfigError, match="'q0' occurs more than once"):
        evaluate(run, config, [*questions, make_question("q0")], RecordedEngines())
    without = Question.of_image(questions[0].image(), "what?", id="mute")
    with pytest.raises(ConfigError, match="'mute'"):
        evaluate(run, config, [*questions, without], RecordedEngines())


def test_digests_follow_content(tmp_path, questions):
    one, two = tmp_path / "one", tmp_path / "two"
    model_folder(one, "good"), model_folder(two, "good")
    assert folder_digest(one) == folder_digest(two)
    assert architecture(one) == architecture(two)
    model_folder(two, "bad")
    assert folder_digest(one) != folder_digest(two)
    assert architecture(one) == architecture(two)
    assert questions_digest(questions) != questions_digest(questions[:-1])
    write_questions(tmp_path / "questions.parquet", questions)
    assert questions_digest(read_questions(tmp_path / "questions.parquet")) == questions_digest(questions)
    assert questions_digest([make_question()]) != questions_digest([make_question(answer="K1")])


def test_variant_settings_that_contradict_each_other_are_refused(look: Look):
    variant = EvaluationVariant(name="a", model_path="m", num_questions=20)
    common = {
        "questions_path": "q",
        "look": look,
        "engine": EngineConfig(),
        "evaluation": EvaluationConfig(),
        "seed": 0,
    }
    with pytest.raises(ValidationError, match="exceeds"):
        EvaluationVariant(name="a", model_path="m", num_questions=20, num_sampled_questions=21)
    with pytest.raises(ValidationError, match="occur more than once"):
        EvaluationRun(variants=(variant, variant), **common)
    with pytest.raises(ValidationError, match="not measured"):
        EvaluationRun(variants=(variant,), comparisons=(("a", "b"),), **common)
    with pytest.raises(ValidationError, match="pattern"):
        EvaluationVariant(name="R-GRPO", model_path="m", num_questions=20)
