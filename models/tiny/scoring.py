"""How good a base is: grounding, reading, direct answers, arithmetic; validation scenes, greedy, fp32."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from models.tiny import world
from models.tiny.batches import collate, forward_hidden
from models.tiny.lessons import (
    CROP_KINDS,
    CropKind,
    Encoder,
    Lesson,
    Sight,
    add_arithmetic_prompt,
    add_crop_prompt,
    add_locate_prompt,
    open_chat,
    sample_crop_box,
)
from models.tiny.pictures import encode_pictures

VALIDATION_SEED = 20_000
_BATCH_SIZE = 50
_BOX = re.compile(r'\{"bbox_2d": \[(\d+), (\d+), (\d+), (\d+)\]\}')


def score_base(folder: Path, *, num: int = 500) -> dict[str, Any]:
    """Scores of the base in a folder on ``num`` validation scenes, one question of each sort per scene."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = Encoder(PreTrainedTokenizerFast.from_pretrained(folder))
    rng = np.random.default_rng(VALIDATION_SEED)
    sights = [Sight.of(world.sample_scene(rng, "validation")) for _ in range(num)]
    return {
        "num_scenes": num,
        "scenes_sha256": _scenes_digest(sights),
        "grounding": _score_grounding(model, encoder, sights, rng),
        "reading": _score_reading(model, encoder, sights, rng),
        "direct": _score_direct(model, encoder, sights, rng),
        "arithmetic": _score_arithmetic(model, encoder),
    }


@torch.no_grad()
def answers(
    model: Qwen2_5_VLForConditionalGeneration, prompts: list[Lesson], *, num_tokens: int
) -> list[str]:
    """Greedy answers of at most ``num_tokens`` tokens, without the end token.

    The prefix is computed again for every token: prompts are short, and no cache means no cache bug in a
    measurement.
    """
    texts: list[str] = []
    for start in range(0, len(prompts), _BATCH_SIZE):
        texts += _answer_batch(model, prompts[start : start + _BATCH_SIZE], num_tokens)
    return texts


def iou(first: world.Box, second: world.Box) -> float:
    """Intersection over union of two boxes in the same pixels; 0 for an empty box."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def _answer_batch(
    model: Qwen2_5_VLForConditionalGeneration, prompts: list[Lesson], num_tokens: int
) -> list[str]:
    encoder = prompts[0].encoder
    pictures = [picture for prompt in prompts for picture in prompt.pictures]
    features = encode_pictures(model.model.visual, pictures) if pictures else None
    length = max(len(prompt.ids) for prompt in prompts) + num_tokens
    ids, _, positions = collate(prompts, length=length)
    rows = torch.arange(len(prompts))
    sizes = torch.tensor([len(prompt.ids) for prompt in prompts])
    place = torch.tensor([prompt.next_position for prompt in prompts])
    for _ in range(num_tokens):
        hidden = forward_hidden(model, ids, positions, features, image_token=encoder.image_token)
        ids[rows, sizes] = model.lm_head(hidden[rows, sizes - 1]).argmax(-1)
        positions[:, rows, sizes] = place
        sizes, place = sizes + 1, place + 1
    generated = [ids[row, size - num_tokens : size].tolist() for row, size in enumerate(sizes.tolist())]
    ends = [row.index(encoder.end_token) if encoder.end_token in row else num_tokens for row in generated]
    return [str(encoder.tokenizer.decode(row[:end])) for row, end in zip(generated, ends)]


def _score_grounding(
    model: Qwen2_5_VLForConditionalGeneration, encoder: Encoder, sights: list[Sight], rng: np.random.Generator
) -> dict[str, float]:
    """Mean IoU with the asked card (0 for no box), share of boxes above 0.5, and on the asked card (0.3)."""
    prompts, asked = [], []
    for sight in sights:
        asked.append(int(rng.integers(len(sight.scene.cards))))
        prompt = open_chat(encoder)
        prompt.picture(sight.view)
        prompts.append(add_locate_prompt(prompt, sight.scene.cards[asked[-1]].color))
    overlaps, on_asked = [], []
    for text, sight, index in zip(answers(model, prompts, num_tokens=10), sights, asked):
        match = _BOX.fullmatch(text)
        x1, y1, x2, y2 = (int(value) for value in match.groups()) if match else (0, 0, 0, 0)
        by_card = [iou((x1, y1, x2, y2), world.view_box(card.box)) for card in sight.scene.cards]
        overlaps.append(by_card[index])
        on_asked.append(by_card[index] > 0.3)
    at_half = [overlap > 0.5 for overlap in overlaps]
    return {"iou": _mean(overlaps), "iou_above_half": _mean(at_half), "on_asked_card": _mean(on_asked)}


def _score_reading(
    model: Qwen2_5_VLForConditionalGeneration, encoder: Encoder, sights: list[Sight], rng: np.random.Generator
) -> dict[str, float]:
    """Share of codes read right, per kind of crop shown alone, and for a card crop shown after the view."""
    scores: dict[str, float] = {}
    cases: list[tuple[str, CropKind, bool]] = [(kind, kind, False) for kind in CROP_KINDS]
    for name, kind, after_view in [*cases, ("card_after_view", "card", True)]:
        prompts, codes = [], []
        for sight in sights:
            card = sight.scene.cards[int(rng.integers(len(sight.scene.cards)))]
            prompt = open_chat(encoder)
            if after_view:
                prompt.picture(sight.view)
            add_crop_prompt(prompt, sight, sample_crop_box(card, kind, rng), in_two_steps=False)
            prompts.append(prompt)
            codes.append(card.code)
        scores[name] = _share_right(model, prompts, codes)
    return scores


def _score_direct(
    model: Qwen2_5_VLForConditionalGeneration, encoder: Encoder, sights: list[Sight], rng: np.random.Generator
) -> dict[str, float]:
    """Share of questions answered right from the view alone, per kind; ``read`` must be near chance, 0.01."""
    scores: dict[str, float] = {}
    for kind in world.KINDS:
        questions = [world.ask(sight.scene, kind, rng) for sight in sights]
        prompts = []
        for sight, question in zip(sights, questions):
            prompt = open_chat(encoder)
            prompt.picture(sight.view)
            prompts.append(prompt.text(question.text).ask())
        scores[kind] = _share_right(model, prompts, [question.answer for question in questions])
    return scores


def _score_arithmetic(model: Qwen2_5_VLForConditionalGeneration, encoder: Encoder) -> float:
    """Share of the hundred sums of two digits that are right."""
    pairs = [(first, second) for first in range(10) for second in range(10)]
    prompts = [add_arithmetic_prompt(open_chat(encoder), *pair) for pair in pairs]
    return _share_right(model, prompts, [str(sum(pair)) for pair in pairs])


def _share_right(model: Qwen2_5_VLForConditionalGeneration, prompts: list[Lesson], right: list[str]) -> float:
    return _mean([text == answer for text, answer in zip(answers(model, prompts, num_tokens=3), right)])


def _scenes_digest(sights: list[Sight]) -> str:
    content = json.dumps(
        [[(card.color, card.box, card.code) for card in sight.scene.cards] for sight in sights]
    )
    return hashlib.sha256(content.encode()).hexdigest()


def _mean(values: list[float] | list[bool]) -> float:
    return round(float(np.mean(values)), 4)
