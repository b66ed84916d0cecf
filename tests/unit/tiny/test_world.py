"""The drawn world: splits, drawing, questions, geometry."""

import numpy as np
import pytest

from models.tiny import world


def scenes(split: world.Split, num: int, *, seed: int = 0) -> list[world.Scene]:
    rng = np.random.default_rng(seed)
    return [world.sample_scene(rng, split) for _ in range(num)]


@pytest.mark.parametrize("split", world.SPLITS)
def test_sampled_scenes_belong_to_the_split_asked_for(split: world.Split) -> None:
    assert {world.split_of(scene) for scene in scenes(split, 50)} == {split}


def test_split_depends_on_colours_and_codes_but_not_on_places_or_order() -> None:
    for scene in scenes("validation", 20):
        moved = tuple(
            world.Card(card.color, (8, 8, 48, 40), card.code, card.text_box) for card in reversed(scene.cards)
        )
        assert world.split_of(world.Scene(moved)) == "validation"


def test_unseen_pairs_of_colour_and_letter_are_only_in_test() -> None:
    def pairs(split: world.Split) -> set[tuple[str, str]]:
        return {(card.color, card.code[0]) for scene in scenes(split, 300) for card in scene.cards}

    assert not pairs("train") & world.UNSEEN_PAIRS
    assert not pairs("validation") & world.UNSEEN_PAIRS
    assert pairs("test") >= world.UNSEEN_PAIRS


def test_drawing_is_deterministic_and_shows_every_card_in_its_colour() -> None:
    scene = scenes("train", 1)[0]
    picture = world.draw(scene)
    assert picture.size == (world.PICTURE_SIZE, world.PICTURE_SIZE)
    assert picture.tobytes() == world.draw(scene).tobytes()
    for card in scene.cards:
        assert picture.getpixel(card.box[:2]) == world.COLORS[card.color]
        assert picture.getpixel((card.box[2] - 1, card.box[3] - 1)) == world.COLORS[card.color]


def test_cards_lie_on_the_lattice_one_to_a_cell_with_the_code_inside() -> None:
    for scene in scenes("train", 100):
        assert world.NUM_CARDS[0] <= len(scene.cards) <= world.NUM_CARDS[1]
        assert len({card.color for card in scene.cards}) == len(scene.cards)
        assert len({world.card_cell(card) for card in scene.cards}) == len(scene.cards)
        for card in scene.cards:
            x1, y1, x2, y2 = card.box
            assert all(value % world.LATTICE == 0 for value in card.box)
            assert x1 // world.CELL_SIZE == (x2 - 1) // world.CELL_SIZE
            assert y1 // world.CELL_SIZE == (y2 - 1) // world.CELL_SIZE
            left, top, right, bottom = card.text_box
            assert x1 < left < right < x2
            assert y1 < top < bottom < y2


def test_view_boxes_of_cards_are_exact_even_integers() -> None:
    # 448 / 112 = 4, and lattice 8 / 4 = 2.
    assert world.view_box((8, 16, 56, 48)) == (2, 4, 14, 12)
    # Off the lattice: 13 / 8 = 1.6 -> 2 -> 16 px -> 4.
    assert world.view_box((13, 16, 56, 48)) == (4, 4, 14, 12)


def test_answers_are_right_by_construction() -> None:
    rng = np.random.default_rng(0)
    for scene in scenes("train", 30):
        read = world.ask(scene, "read", rng)
        card = scene.cards[read.targets[0]]
        assert read.answer == card.code
        assert f" {card.color} card" in read.text
        add = world.ask(scene, "add", rng)
        first, second = (scene.cards[index] for index in add.targets)
        assert first is not second
        assert add.answer == str(int(first.code[1]) + int(second.code[1]))
        assert add.text.index(first.color) < add.text.index(second.color)
        where = world.ask(scene, "where", rng)
        card = scene.cards[where.named[0]]
        assert (where.answer, where.targets) == (world.place_of(card), ())
        assert f" {card.color} card" in where.text


@pytest.mark.parametrize(
    ("corner", "place"),
    [
        ((8, 176), "top left"),
        ((232, 176), "top right"),
        ((168, 224), "bottom left"),
        ((344, 400), "bottom right"),
    ],
)
def test_a_card_lies_in_one_quarter(corner: tuple[int, int], place: str) -> None:
    x, y = corner
    card = world.Card("red", (x, y, x + 40, y + 32), "K7", (x, y, x, y))
    assert world.place_of(card) == place
