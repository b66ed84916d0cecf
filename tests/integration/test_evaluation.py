"""The evaluation stage as it really runs: a child process, vLLM, the embedded base model."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.config import EMBEDDED_MODEL, EngineConfig, EvaluationConfig
from models.evaluation.predictions import Prediction, read_predictions
from models.evaluation.results import Results
from models.presets import load_preset
from models.records import Question, png_bytes, sha256, write_questions
from models.region import Box
from models.run_config import EvaluationRun, EvaluationVariant
from models.rundir import RunDir
from models.tiny import world

NUM_QUESTIONS = 24

pytestmark = pytest.mark.integration


def draw_questions(num: int) -> list[Question]:
    """Questions about pictures of the test split, the three kinds in turn."""
    rng = np.random.default_rng(0)
    questions = []
    for index in range(num):
        scene = world.sample_scene(rng, "test")
        asked = world.ask(scene, world.KINDS[index % len(world.KINDS)], rng)
        data = png_bytes(world.draw(scene))
        questions.append(
            Question(
                id=f"test-{index}",
                source="tiny",
                split="test",
                kind=asked.kind,
                image_bytes=data,
                image_sha256=sha256(data),
                width=world.PICTURE_SIZE,
                height=world.PICTURE_SIZE,
                text=asked.text,
                answers=(asked.answer,),
                gold_boxes=tuple(Box(*scene.cards[card].box, "original") for card in asked.targets),
            )
        )
    return questions


def save_other_weights(target: Path) -> Path:
    """The base model with its output head turned round: it answers, but with other words."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(EMBEDDED_MODEL, target)
    weights = load_file(target / "model.safetensors")
    weights["lm_head.weight"] = -weights["lm_head.weight"]
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def outputs(predictions: list[Prediction]) -> list[tuple[str, int, float, object]]:
    """What was sampled, without the policy version, which counts the reloads."""
    return [
        (
            p.question_id,
            p.transcript.sample_index,
            p.temperature,
            [(s.text, s.token_ids) for s in p.transcript.spans],
        )
        for p in predictions
    ]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, subprocess.CompletedProcess[str]]:
    """One child process: the base, other weights, and the base's weights again from another folder."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_questions(folder / "test.parquet", draw_questions(NUM_QUESTIONS))
    shutil.copytree(EMBEDDED_MODEL, folder / "again")
    preset = load_preset("tiny")
    paths = {
        "base_direct": "embedded",
        "base": "embedded",
        "other": str(save_other_weights(folder / "other")),
        "again": str(folder / "again"),
    }
    config = EvaluationRun(
        variants=tuple(
            EvaluationVariant(
                name=name,
                model_path=path,
                style="look-again" if name == "base" else "direct",
                num_questions=NUM_QUESTIONS,
                num_sampled_questions=4,
            )
            for name, path in paths.items()
        ),
        comparisons=(("base_direct", "other"), ("again", "base_direct")),
        questions_path=str(folder / "test.parquet"),
        look=preset.look,
        engine=EngineConfig(**{**preset.engine.model_dump(), "max_num_seqs": 16}),
        evaluation=EvaluationConfig(num_samples=3),
        seed=0,
    )
    run = RunDir.create(folder / "run", config)
    command = [sys.executable, "-m", "models.evaluation.run", str(run.path)]
    return run, subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_child_measures_every_variant(evaluated):
    run, child = evaluated
    assert child.returncode == 0, child.stderr[-3000:]
    assert run.result().status == "done"
    results = Results.load(run.path / "metrics.json")
    assert [row.name for row in results.variants] == ["base_direct", "base", "other", "again"]
    for row in results.variants:
        assert (row.overall.num_scored, row.overall.num_unscored) == (NUM_QUESTIONS, 0)
        assert row.sampled is not None
        assert (row.sampled.num_questions, row.sampled.num_samples) == (4, 3)
    for name in run.result().artifacts.values():
        assert (run.path / name).exists()


def test_the_base_answers_directly_and_does_not_know_the_protocol(evaluated):
    run, _ = evaluated
    direct, asked, *_ = Results.load(run.path / "metrics.json").variants
    assert direct.overall.num_correct > 0
    assert asked.overall.format_rate == 0.0


def test_the_same_weights_answer_the_same_twice_across_reloads(evaluated):
    """Greedy and sampled; through two exchanges of weights, so nothing of the others is left in a cache."""
    run, _ = evaluated
    first, again, other = (
        outputs(read_predictions(run.path / "predictions" / f"{name}.parquet"))
        for name in ("base_direct", "again", "other")
    )
    assert first == again
    assert first != other
    difference = Results.load(run.path / "metrics.json").comparison("again", "base_direct")
    assert difference is not None
    assert (difference.difference.low, difference.difference.high) == (0.0, 0.0)


def test_sampled_tokens_come_with_log_probs(evaluated):
    run, _ = evaluated
    for prediction in read_predictions(run.path / "predictions" / "base_direct.parquet"):
        (span,) = prediction.transcript.spans
        assert span.token_ids
        assert len(span.logprobs) == len(span.token_ids)
        assert max(span.logprobs) <= 0


def test_a_second_start_reads_finished_variants_back(evaluated):
    """Without an engine: nothing is left to measure."""
    from models.evaluation.evaluate import evaluate

    class NoEngines:
        def open(self, model_path: Path) -> None:
            raise AssertionError("an engine was started")

        reload = open

    run, _ = evaluated
    config = EvaluationRun.model_validate_json(run.config_text())
    before = Results.load(run.path / "metrics.json")
    questions = draw_questions(NUM_QUESTIONS)
    assert evaluate(run, config, questions, NoEngines()) == before  # type: ignore[arg-type]
