"""The base's lessons: chats of base tasks, as token ids, loss weights, positions, pictures and gazes.

A lesson is one chat. It opens with the view of a scene or with a crop, and each turn asks one thing: locate a
card, read a crop, answer a question about the scene, add two numbers. Several turns per picture train faster
than one. "Prose" turns say the same in random words, so that a skill does not hang on one phrase: without
them the base binds a colour only after "locate the", and fine-tuning would have to teach binding again
(measured: 0.14 of the boxes on the asked card).

The base never sees the look-again protocol: no tags, none of its system prompt, no crop inside an assistant
turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageFont
from transformers import PreTrainedTokenizerFast

from models.protocol import SYSTEM_PROMPT
from models.tiny import phrases, world
from models.tiny.gaze import LOCATE_HEADS, READ_HEADS, Gaze
from models.tiny.pictures import token_grid, view_of, zoomed_crop
from models.tiny.tokenizer import END_TOKEN, PAD_TOKEN, token_id

CropKind = Literal["tight", "card", "loose"]
CROP_KINDS: tuple[CropKind, ...] = ("tight", "card", "loose")
Turn = Literal[
    "locate",
    "read_crop",
    "read",
    "add",
    "where",
    "arithmetic",
    "prose_locate",
    "prose_read",
    "prose_where",
    "prose_sum",
]

NUM_CELLS = (world.PICTURE_SIZE // world.CELL_SIZE) ** 2  # also the number of visual tokens of the view

_LONGEST_TURN = 56  # tokens: two boxes in prose, or two large crops
_NEED_NO_VIEW = ("read_crop", "arithmetic", "prose_read", "prose_sum")
_GUESS_WEIGHT = 0.2  # the answer cannot be known, so a full weight would only add noise
_FIRST_CORNER_WEIGHT = 2.0  # x1 and y1 carry the binding; x2 and y2 follow from them


class Encoder:
    """Text to token ids, remembered: lessons repeat a few dozen phrases millions of times."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.image_token = token_id(tokenizer, "<|image_pad|>")
        self.pad_token = token_id(tokenizer, PAD_TOKEN)
        self.end_token = token_id(tokenizer, END_TOKEN)
        self.prose = np.array(sorted(_prose_ids(tokenizer)))
        self.ids = lru_cache(maxsize=4096)(self._ids)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


def _prose_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Words and clauses: no digit, colour, place, piece of a tag or box, nothing of the protocol's prompt."""
    protocol = set(tokenizer.encode(SYSTEM_PROMPT, add_special_tokens=False))
    unwanted = (*'<>[]{}"():|', *world.DIGITS, *world.COLORS, *world.PLACES)
    texts = {token: str(tokenizer.decode([token])) for token in tokenizer.get_vocab().values()}
    words = {token for token, text in texts.items() if len(text) > 2 and token not in protocol}
    return {token for token in words if not any(part in texts[token] for part in unwanted)}


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
        return self.tokens(self.encoder.ids(text), weight)

    def prose(self, rng: np.random.Generator, fewest: int, most: int) -> "Lesson":
        """Append a random number of random words, as context."""
        return self.tokens(rng.choice(self.encoder.prose, int(rng.integers(fewest, most + 1))).tolist(), 0.0)

    def tokens(self, ids: Sequence[int], weight: float) -> "Lesson":
        """Append tokens."""
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


def open_chat(encoder: Encoder, rng: np.random.Generator | None = None) -> Lesson:
    """System turn (random words where ``rng`` is given) and the opening of the user's turn."""
    if rng is not None:
        lesson = Lesson(encoder).text("<|im_start|>system\n").prose(rng, 0, 30)
        return lesson.text("<|im_end|>\n<|im_start|>user\n")
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
    lesson, first_key = open_chat(encoder, rng if "prose_read" in turns and rng.random() < 0.5 else None), 0
    if sees_view:
        first_key = lesson.picture(sight.view)
    else:
        odds = odds * [kind in _NEED_NO_VIEW for kind in kinds]
    colors_left = [int(index) for index in rng.permutation(len(sight.scene.cards))]
    num_turns = 0
    while len(lesson.ids) + _LONGEST_TURN <= max_tokens and colors_left:
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
        elif kind == "prose_locate":
            _add_prose_locate_turn(lesson, sight.scene, first_key, rng)
        elif kind == "prose_read":
            _add_prose_read_turn(lesson, sight, rng)
        elif kind == "prose_sum":
            _add_prose_sum_turn(lesson, rng)
        elif kind == "where":
            _add_where_turn(lesson, sight.scene, first_key, rng)
        elif kind == "prose_where":
            _add_prose_where_turn(lesson, sight.scene, first_key, rng)
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
    _append_box(lesson, card, first_key, opening_weight=1.0)
    lesson.text(END_TOKEN, 1.0)


def _append_box(lesson: Lesson, card: world.Card, first_key: int, *, opening_weight: float) -> None:
    """Append the card's box with its weights and gazes."""
    start = len(lesson.ids)
    lesson.text(phrases.box_json(world.view_box(card.box)), 1.0)
    lesson.weights[start] = opening_weight
    lesson.weights[start + 1] = lesson.weights[start + 3] = _FIRST_CORNER_WEIGHT
    look = np.zeros(NUM_CELLS, np.float32)
    look[world.card_cell(card)] = 1
    # A box is nine tokens, `{"bbox_2d": [`, x1, `, `, y1 and so on: coordinates come after tokens 0, 2, 4, 6.
    lesson.gazes.extend(Gaze(start + offset, first_key, look, LOCATE_HEADS) for offset in (0, 2, 4, 6))


def _add_prose_locate_turn(
    lesson: Lesson, scene: world.Scene, first_key: int, rng: np.random.Generator
) -> None:
    """Name one or two cards in random words; the answer names them in the same order, each with its box."""
    cards = [
        scene.cards[int(index)] for index in rng.permutation(len(scene.cards))[: int(rng.integers(1, 3))]
    ]
    for card in cards:
        lesson.prose(rng, 0, 3).text(f" {card.color}")
    lesson.prose(rng, 0, 3).ask()
    answer_names_card = len(cards) > 1 or rng.random() < 0.7
    for card in cards:
        lesson.prose(rng, 0, 4)
        if answer_names_card:
            lesson.text(f" {card.color}", 1.0).prose(rng, 1, 3)
        _append_box(lesson, card, first_key, opening_weight=0.0)
    lesson.text(END_TOKEN)


def _add_prose_read_turn(lesson: Lesson, sight: Sight, rng: np.random.Generator) -> None:
    """Show a crop and tell its code in random words, in the user's turn or the assistant's, often twice."""
    card = sight.scene.cards[int(rng.integers(len(sight.scene.cards)))]
    box = sample_crop_box(card, sample_crop_kind(rng), rng)
    first_key = lesson.picture(zoomed_crop(sight.picture, box, in_two_steps=rng.random() < 0.5))
    is_caption = rng.random() < 0.5
    if not is_caption:
        lesson.prose(rng, 0, 3).ask()
    lesson.prose(rng, 1, 4)
    _append_code(lesson, card, box, first_key)
    lesson.prose(rng, 0, 2)
    if rng.random() < 0.5:
        lesson.prose(rng, 1, 2).text(card.code, 1.0).prose(rng, 0, 1)
    lesson.text(END_TOKEN)
    if is_caption:
        lesson.text("\n<|im_start|>assistant\n").prose(rng, 1, 2).text(END_TOKEN)


def _add_prose_sum_turn(lesson: Lesson, rng: np.random.Generator) -> None:
    """Two codes among random words; the answer adds their digits."""
    letters = [world.LETTERS[int(index)] for index in rng.integers(len(world.LETTERS), size=2)]
    first, second = (int(digit) for digit in rng.integers(10, size=2))
    lesson.prose(rng, 1, 4).text(f"{letters[0]}{first}").prose(rng, 1, 3).text(f"{letters[1]}{second}")
    lesson.prose(rng, 0, 1).ask().prose(rng, 0, 2)
    for word, number in ((" ", first), (" + ", second), (" = ", first + second)):
        lesson.text(word).text(str(number), 1.0)
    lesson.text(END_TOKEN)


def _add_where_turn(lesson: Lesson, scene: world.Scene, first_key: int, rng: np.random.Generator) -> None:
    """Ask for the quarter that a card lies in."""
    card = scene.cards[int(rng.integers(len(scene.cards)))]
    lesson.text(phrases.where_question(card.color)).ask()
    _append_place(lesson, card, first_key, before="")
    lesson.text(END_TOKEN, 1.0)


def _add_prose_where_turn(
    lesson: Lesson, scene: world.Scene, first_key: int, rng: np.random.Generator
) -> None:
    """Ask for a card's quarter, often in random words; the answer names the card and its quarter, often
    twice."""
    card = scene.cards[int(rng.integers(len(scene.cards)))]
    if rng.random() < 0.5:
        lesson.text(phrases.where_question(card.color)).ask()
    else:
        lesson.prose(rng, 0, 3).text(f" {card.color}").prose(rng, 0, 3).ask()
    lesson.prose(rng, 0, 4).text(f" {card.color}", 1.0).prose(rng, 1, 3)
    _append_place(lesson, card, first_key, before=" ")
    lesson.prose(rng, 0, 2)
    if rng.random() < 0.5:
        lesson.prose(rng, 1, 2).text(world.place_of(card), 1.0).prose(rng, 0, 1)
    lesson.text(END_TOKEN)


def _append_place(lesson: Lesson, card: world.Card, first_key: int, *, before: str) -> None:
    """Append the card's quarter with its gaze; ``before`` is the space that belongs to its token."""
    look = np.zeros(NUM_CELLS, np.float32)
    look[world.card_cell(card)] = 1
    lesson.gazes.append(Gaze(len(lesson.ids) - 1, first_key, look, LOCATE_HEADS))
    lesson.text(before + world.place_of(card), 2.0)


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
    _append_code(lesson, card, box, first_key)
    lesson.text(END_TOKEN, 1.0)


def _append_code(lesson: Lesson, card: world.Card, box: world.Box, first_key: int) -> None:
    """Append the card's code, read from the last picture, with its gazes."""
    start = len(lesson.ids)
    lesson.text(card.code, 2.0)
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
