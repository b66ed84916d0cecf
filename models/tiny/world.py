"""The drawn world: pictures of small labelled cards, and questions about them.

A scene is a 448 x 448 picture with four to seven coloured cards. Each colour appears at most once, and each
card carries a code of one letter and one digit ("K7") that is too small to read when the picture is shrunk to
the 112 x 112 view that the tiny model sees. Everything is a function of a seed: no download, no font file.

Geometry: boxes are ``(x1, y1, x2, y2)`` in pixels of the original picture, the right and lower edges
excluded. Cards lie on a lattice of 8 original pixels, so that their boxes are even integers in the view (448
/ 112 = 4). The view has one visual token per 112-pixel cell of the original; a card lies inside one cell, and
a cell holds at most one card: that is what lets a two-million-parameter model bind a colour to a place.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[int, int, int, int]
Split = Literal["train", "validation", "test"]
Kind = Literal["read", "add", "where"]

PICTURE_SIZE = 448  # side of the original picture, pixels
VIEW_SIZE = 112  # side of the picture as the model sees it (max_pixels 12544), pixels
VIEW_SCALE = PICTURE_SIZE // VIEW_SIZE
CELL_SIZE = 112  # original pixels covered by one visual token of the view, and the room of one card
LATTICE = 8  # card corners and sizes are multiples of this many original pixels

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 30),
    "green": (15, 130, 40),
    "blue": (35, 60, 215),
    "orange": (225, 115, 0),
    "purple": (125, 30, 180),
    "black": (20, 20, 20),
    "teal": (0, 135, 135),
    "brown": (115, 65, 20),
}
LETTERS = "ACEHKLPTXZ"
DIGITS = "0123456789"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
KINDS: tuple[Kind, ...] = ("read", "add", "where")
PLACES = ("top left", "top right", "bottom left", "bottom right")  # quarters of the picture, row by row
NUM_CARDS = (4, 7)  # smallest and largest number of cards in a sampled scene
UNSEEN_PAIRS = frozenset({("red", "K"), ("blue", "T")})  # colour and letter together: only in test scenes
FONT_SIZE = 17  # original pixels

_WIDTHS = (40, 48, 56)
_HEIGHTS = (32, 40)
_CELLS_PER_SIDE = PICTURE_SIZE // CELL_SIZE
_TEXT_JITTER = 2  # original pixels, so that the code is not always in the exact middle


@dataclass(frozen=True)
class Card:
    """One card. ``box`` and ``text_box`` (the ink of the code) are in original pixels."""

    color: str
    box: Box
    code: str
    text_box: Box


@dataclass(frozen=True)
class Scene:
    """What a picture shows; :func:`draw` makes the picture."""

    cards: tuple[Card, ...]


@dataclass(frozen=True)
class WorldQuestion:
    """A question with its answer. ``named`` index the cards that it names, in its order."""

    kind: Kind
    text: str
    answer: str
    named: tuple[int, ...]

    @property
    def targets(self) -> tuple[int, ...]:
        """The cards to look at: where a card is shows from afar."""
        return () if self.kind == "where" else self.named


def split_of(scene: Scene) -> Split:
    """The split a scene belongs to: a stable function of its colours and codes, so the splits cannot overlap.

    Scenes with an unseen pair of colour and letter go to test; of the rest 80 % train, 10 % validation, 10 %
    test.
    """
    if any((card.color, card.code[0]) in UNSEEN_PAIRS for card in scene.cards):
        return "test"
    content = "|".join(sorted(f"{card.color}:{card.code}" for card in scene.cards))
    bucket = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


def sample_scene(rng: np.random.Generator, split: Split, *, num_cards: int | None = None) -> Scene:
    """A random scene of the split, with ``num_cards`` cards or a number drawn from ``NUM_CARDS``."""
    while True:
        count = num_cards if num_cards is not None else int(rng.integers(NUM_CARDS[0], NUM_CARDS[1] + 1))
        colors = rng.permutation(list(COLORS))[:count]
        cells = rng.permutation(_CELLS_PER_SIDE**2)[:count]
        scene = Scene(tuple(_sample_card(rng, str(color), int(cell)) for color, cell in zip(colors, cells)))
        if split_of(scene) == split:
            return scene


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, 448 x 448."""
    picture = Image.fromarray(_background())
    pen = ImageDraw.Draw(picture)
    for card in scene.cards:
        x1, y1, x2, y2 = card.box
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=COLORS[card.color])
        left, top, _, _ = _ink(card.code)
        pen.text(
            (card.text_box[0] - left, card.text_box[1] - top), card.code, font=_font(), fill=(255, 255, 255)
        )
    return picture


def ask(scene: Scene, kind: Kind, rng: np.random.Generator) -> WorldQuestion:
    """A question of the kind about the scene: ``read`` needs one look, ``add`` two looks, ``where`` none."""
    from models.tiny import phrases

    order = [int(index) for index in rng.permutation(len(scene.cards))]
    first = scene.cards[order[0]]
    if kind == "where":
        return WorldQuestion("where", phrases.where_question(first.color), place_of(first), (order[0],))
    if kind == "read":
        return WorldQuestion("read", phrases.read_question(first.color), first.code, (order[0],))
    second = scene.cards[order[1]]
    total = int(first.code[1]) + int(second.code[1])
    question = phrases.add_question(first.color, second.color)
    return WorldQuestion("add", question, str(total), (order[0], order[1]))


def view_box(box: Box) -> Box:
    """A box of original pixels in pixels of the 112 x 112 view: even integers for boxes on the lattice."""
    x1, y1, x2, y2 = (round(value / LATTICE) * LATTICE // VIEW_SCALE for value in box)
    return x1, y1, x2, y2


def card_cell(card: Card) -> int:
    """Index (row by row) of the card's cell, which is also the index of its visual token in the view."""
    return (card.box[1] // CELL_SIZE) * _CELLS_PER_SIDE + card.box[0] // CELL_SIZE


def place_of(card: Card) -> str:
    """The quarter of the picture that the card lies in; no card lies in two."""
    x1, y1, _, _ = card.box
    return PLACES[2 * (y1 >= PICTURE_SIZE // 2) + (x1 >= PICTURE_SIZE // 2)]


def _sample_card(rng: np.random.Generator, color: str, cell: int) -> Card:
    width, height = int(rng.choice(_WIDTHS)), int(rng.choice(_HEIGHTS))
    row, column = divmod(cell, _CELLS_PER_SIDE)
    # One lattice step is kept free at the rim of the cell, so that cards of neighbouring cells never touch.
    x1 = column * CELL_SIZE + LATTICE * int(rng.integers(1, (CELL_SIZE - width) // LATTICE))
    y1 = row * CELL_SIZE + LATTICE * int(rng.integers(1, (CELL_SIZE - height) // LATTICE))
    code = LETTERS[int(rng.integers(len(LETTERS)))] + DIGITS[int(rng.integers(len(DIGITS)))]
    left, top, right, bottom = _ink(code)
    text_x = x1 + (width - right + left) // 2 + int(rng.integers(-_TEXT_JITTER, _TEXT_JITTER + 1))
    text_y = y1 + (height - bottom + top) // 2 + int(rng.integers(-_TEXT_JITTER, _TEXT_JITTER + 1))
    text_box = (text_x, text_y, text_x + right - left, text_y + bottom - top)
    return Card(color, (x1, y1, x1 + width, y1 + height), code, text_box)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(FONT_SIZE)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ImportError(
            "Pillow was built without FreeType, so its scalable font is missing: reinstall Pillow."
        )
    return font


@lru_cache(maxsize=len(LETTERS) * len(DIGITS))
def _ink(code: str) -> Box:
    """Bounding box of the drawn code, relative to the pen position, pixels."""
    left, top, right, bottom = _font().getbbox(code)
    return int(left), int(top), int(right), int(bottom)


@lru_cache(maxsize=1)
def _background() -> np.ndarray:
    """A pastel gradient, uint8 (448, 448, 3): red grows to the right, green downwards."""
    ramp = np.linspace(130, 230, PICTURE_SIZE)
    picture = np.full((PICTURE_SIZE, PICTURE_SIZE, 3), 150.0)
    picture[..., 0] = ramp[None, :]
    picture[..., 1] = ramp[:, None]
    return picture.astype(np.uint8)
