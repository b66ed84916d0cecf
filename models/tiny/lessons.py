"""The base's lessons: conversations of base tasks, as token ids, loss weights, positions, pictures and gazes.

A lesson is one chat. It opens with the view of a scene or with a crop, and each turn asks one thing: locate a
card, read a crop, answer a question about the scene, add two numbers. Several turns per picture train faster
than one. The base never sees the look-again protocol: no tags, none of its system prompt, no crop inside an
assistant turn.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageFont
from transformers import PreTrainedTokenizerFast

from models.tiny import phrases, world
from models.tiny.gaze import LOCATE_HEADS, READ_HEADS, Gaze
from models.tiny.pictures import token_grid, view_of, zoomed_crop
from models.tiny.tokenizer import END_TOKEN, PAD_TOKEN, token_id

CropKind = Literal["tight", "card", "loose"]
CROP_KINDS: tuple[CropKind, ...] = ("tight", "card", "loose")
Turn = Literal["locate", "read_crop", "read", "add", "count", "arithmetic"]

NUM_CELLS = (world.PICTURE_SIZE // world.CELL_SIZE) ** 2  # also the number of visual tokens of the view

_GUESS_WEIGHT = 0.2  # the answer cannot be known, so a full weight would only add noise
_FIRST_CORNER_WEIGHT = 2.0  # x1 and y1 carry the binding; x2 and y2 follow from them


class Encoder:
    """Text to token ids, remembered: lessons repeat a few dozen phrases millions of times."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.image_token = token_id(tokenizer, "<|image_pad|>")
        self.pad_token = token_id(tokenizer, PAD_TOKEN)
        self.end_token = token_id(tokenizer, END_TOKEN)
        self.ids = lru_cache(maxsize=4096)(self._ids)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


@dataclass
class Lesson:
    """One chat under construction. ``positions`` are (time, row, column); ``weights`` are 0 for context."""

    encoder: Encoder
    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)
    gazes: list[Gaze] = field(default_factory=list)
    next_position: int = 0

    def text(self, text: str, weight: float = 0.0) -> "Lesson":
        """Append text."""
        ids = self.encoder.ids(text)
        self.ids.extend(ids)
        self.weights.extend([weight] * len(ids))
        self.positions.extend((self.next_position + i,) * 3 for i in range(len(ids)))
        self.next_position += len(ids)
        return self

    def picture(self, picture: np.ndarray) -> int:
        """Append a picture between its markers; gives the index of its first visual token."""
        self.text("<|vision_start|>")
        first, start = len(self.ids), self.next_position
        rows, columns = token_grid(picture)
        self.ids.extend([self.encoder.image_token] * (rows * columns))
        self.weights.extend([0.0] * (rows * columns))
        self.positions.extend((start, start + i, start + j) for i in range(rows) for j in range(columns))
        self.next_position += max(rows, columns)
        self.pictures.append(picture)
        self.text("<|vision_end|>")
        return first

    def ask(self) -> "Lesson":
        """Close the user's turn and open the assistant's."""
        return self.text("<|im_end|>\n<|im_start|>assistant\n")

    def answer(self, text: str, weight: float) -> "Lesson":
        """Append the assistant's answer with its end token."""
        return self.text(text, weight).text(END_TOKEN, min(1.0, weight))


@dataclass(frozen=True)
class Sight:
    """A scene with its picture and view, drawn once and used in several lessons."""

    scene: world.Scene
    picture: Image.Image
    view: np.ndarray

    @classmethod
    def of(cls, scene: world.Scene) -> "Sight":
        """Draw it."""
        picture = world.draw(scene)
        return cls(scene, picture, view_of(picture))


def open_chat(encoder: Encoder) -> Lesson:
    """System turn and the opening of the user's turn."""
    return Lesson(encoder).text(
        f"<|im_start|>system\n{phrases.BASE_SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n"
    )


def sample_lesson(
    sight: Sight, encoder: Encoder, rng: np.random.Generator, turns: dict[Turn, float], *, max_tokens: int
) -> Lesson:
    """A chat about the scene with turns drawn by their weights, at most ``max_tokens`` long."""
    kinds: list[Turn] = list(turns)
    odds = np.array([turns[kind] for kind in kinds])
    sees_view = rng.random() < (0.8 if "read_crop" in turns else 1.0)
    lesson, first_key = open_chat(encoder), 0
    if sees_view:
        first_key = lesson.picture(sight.view)
    else:
        odds = odds * [kind in ("read_crop", "arithmetic") for kind in kinds]
    colors_left = [int(index) for index in rng.permutation(len(sight.scene.cards))]
    num_turns = 0
    # The longest turn is a loose crop with two pictures; 48 tokens leave room for it.
    while len(lesson.ids) + 48 <= max_tokens and colors_left:
        kind = kinds[int(rng.choice(len(kinds), p=odds / odds.sum()))]
        if num_turns:
            lesson.text("\n<|im_start|>user\n")
        num_turns += 1
        if kind == "locate":
            add_locate_turn(lesson, sight.scene.cards[colors_left.pop()], first_key)
        elif kind == "read_crop":
            _add_read_crop_turn(lesson, sight, rng)
        elif kind == "arithmetic":
            add_arithmetic_turn(lesson, int(rng.integers(10)), int(rng.integers(10)))
        elif kind == "count":
            _add_count_turn(lesson, sight.scene, first_key)
        else:
            question = world.ask(sight.scene, kind, rng)
            lesson.text(question.text).ask().answer(question.answer, _GUESS_WEIGHT)
    return lesson


def add_locate_prompt(lesson: Lesson, color: str) -> Lesson:
    """Ask for the box of a card."""
    return lesson.text(phrases.locate_prompt(color)).ask()


def add_locate_turn(lesson: Lesson, card: world.Card, first_key: int) -> None:
    """Ask for a card of the view whose visual tokens start at ``first_key``; answer with its box."""
    add_locate_prompt(lesson, card.color)
    start = len(lesson.ids)
    lesson.answer(phrases.box_json(world.view_box(card.box)), 1.0)
    lesson.weights[start + 1] = lesson.weights[start + 3] = _FIRST_CORNER_WEIGHT
    look = np.zeros(NUM_CELLS, np.float32)
    look[world.card_cell(card)] = 1
    # A box is nine tokens, `{"bbox_2d": [`, x1, `, `, y1, ...: the coordinates are written after tokens 0, 2,
    # 4, 6.
    lesson.gazes.extend(Gaze(start + offset, first_key, look, LOCATE_HEADS) for offset in (0, 2, 4, 6))


def _add_count_turn(lesson: Lesson, scene: world.Scene, first_key: int) -> None:
    """Ask for the number of cards in the view whose visual tokens start at ``first_key``."""
    lesson.text(phrases.count_question()).ask()
    # Attention is an average, so a number can only be felt by looking at every cell alike.
    everywhere = np.full(NUM_CELLS, 1 / NUM_CELLS, np.float32)
    lesson.gazes.append(Gaze(len(lesson.ids) - 1, first_key, everywhere, LOCATE_HEADS))
    lesson.answer(str(len(scene.cards)), 1.0)


def _add_read_crop_turn(lesson: Lesson, sight: Sight, rng: np.random.Generator) -> None:
    """Show one crop, or two, and ask to read the last."""
    num_crops = 2 if rng.random() < 0.2 else 1
    for _ in range(num_crops - 1):
        other = sight.scene.cards[int(rng.integers(len(sight.scene.cards)))]
        lesson.picture(zoomed_crop(sight.picture, sample_crop_box(other, sample_crop_kind(rng), rng)))
    card = sight.scene.cards[int(rng.integers(len(sight.scene.cards)))]
    add_crop_turn(
        lesson,
        sight,
        card,
        sample_crop_box(card, sample_crop_kind(rng), rng),
        in_two_steps=rng.random() < 0.5,
    )


def add_crop_prompt(lesson: Lesson, sight: Sight, box: world.Box, *, in_two_steps: bool) -> int:
    """Show the crop of a box and ask to read it; gives the index of the crop's first visual token."""
    first_key = lesson.picture(zoomed_crop(sight.picture, box, in_two_steps=in_two_steps))
    alone = len(lesson.pictures) == 1
    lesson.text(phrases.READ_CARD_PROMPT if alone else phrases.READ_LAST_PICTURE_PROMPT).ask()
    return first_key


def add_crop_turn(
    lesson: Lesson, sight: Sight, card: world.Card, box: world.Box, *, in_two_steps: bool = False
) -> None:
    """Show the crop of a box that holds the card's code, ask to read it, answer with the code."""
    first_key = add_crop_prompt(lesson, sight, box, in_two_steps=in_two_steps)
    start = len(lesson.ids)
    lesson.answer(card.code, 2.0)
    for offset, part in enumerate(character_boxes(card)):
        look = overlap_shares(part, box, *token_grid(lesson.pictures[-1]))
        if look is not None:
            # The token before a character predicts it.
            lesson.gazes.append(Gaze(start + offset - 1, first_key, look, READ_HEADS))


def add_arithmetic_turn(lesson: Lesson, first: int, second: int) -> None:
    """Ask for a sum and give it."""
    add_arithmetic_prompt(lesson, first, second).answer(str(first + second), 1.0)


def add_arithmetic_prompt(lesson: Lesson, first: int, second: int) -> Lesson:
    """Ask for a sum."""
    return lesson.text(phrases.arithmetic_prompt(first, second)).ask()


def sample_crop_kind(rng: np.random.Generator) -> CropKind:
    """Mostly boxes like a good teacher's, some tight, some loose."""
    return CROP_KINDS[int(rng.choice(3, p=(0.2, 0.5, 0.3)))]


def sample_crop_box(card: world.Card, kind: CropKind, rng: np.random.Generator) -> world.Box:
    """A box around the card's code, original pixels.

    ``tight`` hugs the ink; ``card`` is the card give or take one lattice step per side, never cutting the
    ink; ``loose`` adds 8 to 24 pixels of surroundings.
    """
    x1, y1, x2, y2 = card.text_box
    if kind == "tight":
        left, top, right, bottom = (int(value) for value in rng.integers(1, 5, 4))
        return x1 - left, y1 - top, x2 + right, y2 + bottom
    step = world.LATTICE
    if kind == "card":
        moves = [step * int(value) for value in rng.integers(-1, 2, 4)]
    else:
        moves = [step * int(value) for value in rng.integers(1, 4, 4)]
    left, top, right, bottom = card.box
    grown = (left - moves[0], top - moves[1], right + moves[2], bottom + moves[3])
    held = (min(grown[0], x1), min(grown[1], y1), max(grown[2], x2), max(grown[3], y2))
    size = world.PICTURE_SIZE
    return max(0, held[0]), max(0, held[1]), min(size, held[2]), min(size, held[3])


def character_boxes(card: world.Card) -> tuple[world.Box, world.Box]:
    """Boxes of letter and digit within the code, original pixels."""
    x1, y1, x2, y2 = card.text_box
    middle = min(x2 - 1, x1 + round(_advance(card.code[0])))
    return (x1, y1, middle, y2), (middle, y1, x2, y2)


@lru_cache(maxsize=64)
def _advance(letter: str) -> float:
    return float(ImageFont.load_default(world.FONT_SIZE).getlength(letter))


def overlap_shares(part: world.Box, region: world.Box, rows: int, columns: int) -> np.ndarray | None:
    """How the area of ``part`` spreads over the tokens (rows x columns) of ``region``; None if outside."""
    x_edges = np.linspace(region[0], region[2], columns + 1)
    y_edges = np.linspace(region[1], region[3], rows + 1)
    across = np.clip(np.minimum(x_edges[1:], part[2]) - np.maximum(x_edges[:-1], part[0]), 0, None)
    down = np.clip(np.minimum(y_edges[1:], part[3]) - np.maximum(y_edges[:-1], part[1]), 0, None)
    area = (down[:, None] * across[None]).reshape(-1)
    return None if area.sum() == 0 else (area / area.sum()).astype(np.float32)
