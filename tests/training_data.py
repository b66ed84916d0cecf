"""A handful of questions and rationale records about the drawn world, enough to take a few steps with, and a
configuration of fine-tuning and of R-GRPO for them."""

from pathlib import Path
from typing import Any

import numpy as np

from models.config import EngineConfig, Look, ObjectiveConfig, PreflightConfig, RGRPOConfig, SFTConfig
from models.protocol import render_box
from models.records import Question, RationaleStep, VLIRRecord, png_bytes, sha256
from models.region import Box
from models.run_config import RGRPORun, SFTRun
from models.tiny.world import PICTURE_SIZE, VIEW_SIZE, ask, draw, sample_scene, view_box

LOOK = Look(max_pixels=VIEW_SIZE**2, max_sampled_tokens=24)
TRANSFORMERS = EngineConfig(kind="transformers", dtype="float32", max_model_len=512)
VLLM = EngineConfig(dtype="float32", max_model_len=512, kv_cache_gib=0.25, enforce_eager=True, num_threads=1)


def questions(count: int) -> list[Question]:
    """Questions to read a card, with its box."""
    return [_question(index)[0] for index in range(count)]


def records(count: int) -> list[VLIRRecord]:
    """A right rationale for each of :func:`questions`; every third looks at nothing, so lengths differ."""
    return [_record(index) for index in range(count)]


def sft_run(
    model_path: Path, records_path: Path, sft: SFTConfig, *, validation_path: Path | None = None
) -> SFTRun:
    """Fine-tuning on a file of :func:`records`, with a frozen tower."""
    return SFTRun(
        model_path=str(model_path),
        records_path=str(records_path),
        validation_path=str(validation_path or ""),
        look=LOOK,
        sft=sft,
        freeze_vision=True,
        seed=0,
    )


def rgrpo_config(**changes: Any) -> RGRPOConfig:
    """Four steps that are large enough to see; no preflight, to which a random model has nothing to show."""
    small = {
        "num_steps": 4,
        "questions_per_step": 2,
        "group_size": 3,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "tokens_per_micro_batch": 1024,
        "precision": "float32",
        "checkpoint_every": 2,
        "objective": ObjectiveConfig(aggregation="seq-mean-token-mean"),
        "preflight": PreflightConfig(enabled=False),
    }
    return RGRPOConfig.model_validate({**small, **changes})


def rgrpo_run(
    model_path: Path,
    questions_path: Path,
    rgrpo: RGRPOConfig,
    *,
    engine: EngineConfig = TRANSFORMERS,
    is_probed: bool = False,
    freeze_vision: bool = True,
) -> RGRPORun:
    """R-GRPO on a file of :func:`questions`; where it ``is_probed``, held-out questions are the same."""
    return RGRPORun(
        model_path=str(model_path),
        questions_path=str(questions_path),
        probe_path=str(questions_path) if is_probed else "",
        look=LOOK,
        rgrpo=rgrpo,
        engine=engine,
        freeze_vision=freeze_vision,
        seed=0,
    )


def _question(index: int) -> tuple[Question, Box]:
    rng = np.random.default_rng(index)
    scene = sample_scene(rng, "train")
    asked = ask(scene, "read", rng)
    card = scene.cards[asked.targets[0]]
    data = png_bytes(draw(scene))
    question = Question(
        id=f"question-{index}",
        source="tiny",
        split="train",
        image_bytes=data,
        image_sha256=sha256(data),
        width=PICTURE_SIZE,
        height=PICTURE_SIZE,
        text=asked.text,
        answers=(asked.answer,),
        gold_boxes=(Box(*map(float, card.box), space="original"),),
        kind="read",
    )
    return question, Box(*map(float, view_box(card.box)), space="seen")


def _record(index: int) -> VLIRRecord:
    question, box = _question(index)
    answer = question.answers[0]
    end = f" It says {answer}.</think><answer>{answer}</answer>"
    steps = (RationaleStep(f"<think>I look closer. {render_box(box)}", box), RationaleStep(end, None))
    if index % 3 == 0:
        steps = (RationaleStep(f"<think>{end}", None),)
    return VLIRRecord(
        question=question,
        steps=steps,
        final_answer=answer,
        seen_size=(VIEW_SIZE, VIEW_SIZE),
        teacher="test",
        prompt_id="test",
    )
