"""Vision warm-up: the tower learns colours, places and characters from dense labels on every visual token.

Without it two-character reading stays at chance. The heads are thrown away afterwards; part of the loss is a
dot product with word embeddings (colours, characters, numbers), so that the language model finds features it
can name.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from models.tiny import world
from models.tiny.architecture import HIDDEN_SIZE, TOKEN_SIZE
from models.tiny.pictures import encode_pictures, view_of
from models.tiny.tokenizer import token_id

CHARACTERS = world.LETTERS + world.DIGITS
_TOKENS_PER_SIDE = world.VIEW_SIZE // TOKEN_SIZE
_TOKENS = _TOKENS_PER_SIDE**2
_NUM_PLACES = world.VIEW_SIZE // 2 + 1  # even coordinates 0, 2, ..., 112
_NO_CARD = len(world.COLORS)
_ZOOM = (1.5, 2.5)  # magnification of a page, as crops get after smart resizing


@dataclass(frozen=True)
class Words:
    """Token ids of the words that features are compared with."""

    colors: torch.Tensor
    characters: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "Words":
        """Look the ids up."""

        def ids(texts: list[str]) -> torch.Tensor:
            return torch.tensor([token_id(tokenizer, text) for text in texts])

        places = [str(2 * place) for place in range(_NUM_PLACES)]
        return cls(ids([f" {color}" for color in world.COLORS]), ids(list(CHARACTERS)), ids(places))


class DenseHeads(nn.Module):
    """Throw-away heads on visual tokens (n, hidden)."""

    def __init__(self) -> None:
        super().__init__()
        self.color = nn.Linear(HIDDEN_SIZE, len(world.COLORS) + 1)
        self.characters = nn.Linear(HIDDEN_SIZE, 2 * len(CHARACTERS))
        self.corners = nn.Linear(HIDDEN_SIZE, 4 * HIDDEN_SIZE)
        self.scales = nn.Parameter(
            torch.full((3,), 8.0)
        )  # of the dot products with colours, characters, numbers
        self.offset = nn.Parameter(torch.tensor(-3.0))

    def view_loss(
        self, tokens: torch.Tensor, labels: torch.Tensor, words: Words, table: torch.Tensor
    ) -> torch.Tensor:
        """Loss on tokens of views (n, hidden); labels (n, 5) as from :func:`view_labels`."""
        color, has_card = labels[:, 0], labels[:, 0] != _NO_CARD
        loss = functional.cross_entropy(self.color(tokens), color)
        shown, corners = tokens[has_card], labels[has_card, 1:]
        loss = loss + functional.cross_entropy(
            self.scales[0] * shown @ table[words.colors].T, color[has_card]
        )
        asked = self.corners(shown).view(-1, 4, HIDDEN_SIZE)
        guesses = self.scales[2] * asked @ table[words.places].T
        return loss + functional.cross_entropy(guesses.flatten(0, 1), corners.flatten())

    def page_loss(
        self, tokens: torch.Tensor, labels: torch.Tensor, words: Words, table: torch.Tensor
    ) -> torch.Tensor:
        """Loss on tokens of pages (n, hidden); labels (n, 2, characters): left half, right half."""
        loss = 10 * functional.binary_cross_entropy_with_logits(self.characters(tokens), labels.flatten(1))
        named = self.scales[1] * tokens @ table[words.characters].T + self.offset
        return loss + 10 * functional.binary_cross_entropy_with_logits(named, labels.amax(1))

    @torch.no_grad()
    def page_f1(self, tokens: torch.Tensor, labels: torch.Tensor) -> float:
        """F1 of the characters found in the halves of the tokens."""
        found, true = self.characters(tokens) > 0, labels.flatten(1) > 0
        return float(2 * (found & true).sum() / (found.sum() + true.sum()))


def view_labels(scene: world.Scene) -> np.ndarray:
    """Labels (16, 5) of the tokens of a view: colour index, then the card's box in units of two pixels."""
    labels = np.zeros((_TOKENS, 5), np.int64)
    labels[:, 0] = _NO_CARD
    colors = list(world.COLORS)
    for card in scene.cards:
        box = world.view_box(card.box)
        labels[world.card_cell(card)] = [colors.index(card.color), *(value // 2 for value in box)]
    return labels


def sample_page(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A page of characters (112, 112, 3), enlarged like a crop, with labels (16, 2, characters)."""
    width, height = (int(world.VIEW_SIZE / zoom) for zoom in rng.uniform(*_ZOOM, 2))
    color = list(world.COLORS.values())[int(rng.integers(len(world.COLORS)))]
    page = Image.new("RGB", (width, height), color)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(world.FONT_SIZE)
    labels = np.zeros((_TOKENS_PER_SIDE, _TOKENS_PER_SIDE, 2, len(CHARACTERS)), np.float32)
    middle = rng.uniform(-6, 12)
    while middle < height + 6:
        x = rng.uniform(-6, 12)
        while x < width + 6:
            index = int(rng.integers(len(CHARACTERS)))
            left, top, right, bottom = font.getbbox(CHARACTERS[index])
            center = x + (right - left) / 2
            pen.text(
                (x - left, middle - (top + bottom) / 2), CHARACTERS[index], font=font, fill=(255, 255, 255)
            )
            column, row = 2 * _TOKENS_PER_SIDE * center / width, _TOKENS_PER_SIDE * middle / height
            if 0 <= column < 2 * _TOKENS_PER_SIDE and 0 <= row < _TOKENS_PER_SIDE:
                labels[int(row), int(column) // 2, int(column) % 2, index] = 1
            x += right - left + rng.uniform(1, 4) + (rng.uniform(8, 20) if rng.random() < 0.3 else 0)
        middle += rng.uniform(13, 22)
    enlarged = page.resize((world.VIEW_SIZE, world.VIEW_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(enlarged), labels.reshape(_TOKENS, 2, -1)


def warmup_loss(
    visual: nn.Module,
    heads: DenseHeads,
    table: torch.Tensor,
    words: Words,
    rng: np.random.Generator,
    *,
    num_views: int,
    num_pages: int,
) -> tuple[torch.Tensor, float]:
    """Loss on fresh views and pages, and F1 of the characters on the pages. ``table`` is (vocab, hidden)."""
    scenes = [world.sample_scene(rng, "train") for _ in range(num_views)]
    pages = [sample_page(rng) for _ in range(num_pages)]
    pictures = [view_of(world.draw(scene)) for scene in scenes] + [page for page, _ in pages]
    tokens = encode_pictures(visual, pictures)
    view_truth = torch.from_numpy(np.concatenate([view_labels(scene) for scene in scenes]))
    page_truth = torch.from_numpy(np.concatenate([labels for _, labels in pages]))
    on_views, on_pages = tokens[: num_views * _TOKENS], tokens[num_views * _TOKENS :]
    loss = heads.view_loss(on_views, view_truth, words, table) + heads.page_loss(
        on_pages, page_truth, words, table
    )
    return loss, heads.page_f1(on_pages, page_truth)
