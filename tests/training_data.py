"""A handful of questions and rationale records about the drawn world: enough to take a few steps with."""

import numpy as np

from models.config import Look
from models.protocol import render_box
from models.records import Question, RationaleStep, VLIRRecord, png_bytes, sha256
from models.region import Box
from models.tiny.world import PICTURE_SIZE, VIEW_SIZE, ask, draw, sample_scene, view_box

LOOK = Look(max_pixels=VIEW_SIZE**2, max_sampled_tokens=24)


def questions(count: int) -> list[Question]:
    """Questions to read a card, with its box."""
    return [_question(index)[0] for index in range(count)]


def records(count: int) -> list[VLIRRecord]:
    """A right rationale for each of :func:`questions`; every third looks at nothing, so lengths differ."""
    return [_record(index) for index in range(count)]


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
