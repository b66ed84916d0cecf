import numpy as np
import pytest

from models.config import QuestionMix
from models.errors import ConfigError, RecordError
from models.records import sha256
from models.tiny.world import SPLITS, split_of
from models.vlir.drawn import check_no_leakage, draw_questions, kind_sequence

MIX = QuestionMix(num_questions=30, kinds={"read": 0.5, "add": 0.3, "where": 0.2})


def test_same_seed_gives_the_same_questions_and_another_seed_gives_others():
    first = [item.question for item in draw_questions("train", MIX, seed=1)]
    again = [item.question for item in draw_questions("train", MIX, seed=1)]
    other = [item.question for item in draw_questions("train", MIX, seed=2)]
    assert first == again
    assert not {question.id for question in first} & {question.id for question in other}


def test_kinds_are_mixed_exactly():
    # 30 questions: 15 read, 9 add, 6 where.
    kinds = [item.question.kind for item in draw_questions("train", MIX, seed=1)]
    assert {kind: kinds.count(kind) for kind in kinds} == {"read": 15, "add": 9, "where": 6}
    assert kinds != sorted(kinds, reverse=True)


def test_largest_remainders_fill_the_mix():
    # 10 questions at weights 1:1:1 are 3.33 each: three of each, and one more of the first.
    kinds = kind_sequence(
        QuestionMix(num_questions=10, kinds={"read": 1, "add": 1, "where": 1}), np.random.default_rng(0)
    )
    assert sorted(kinds) == ["add"] * 3 + ["read"] * 4 + ["where"] * 3


@pytest.mark.parametrize("kinds", [{"read": 1.0, "subtract": 1.0}, {"read": -1.0}, {"read": 0.0}, {}])
def test_a_mix_that_cannot_be_drawn_is_refused(kinds):
    with pytest.raises(ConfigError):
        next(draw_questions("train", QuestionMix(num_questions=1, kinds=kinds), seed=0))


def test_questions_keep_their_contract():
    for item in draw_questions("train", MIX, seed=5):
        question = item.question
        assert question.image_sha256 == sha256(question.image_bytes)
        assert question.image().size == (question.width, question.height)
        assert (question.source, question.split) == ("tiny-world", "train")
        assert question.answers == (item.asked.answer,)
        # Gold boxes are the asked cards, in the order of looking.
        cards = [item.scene.cards[target].box for target in item.asked.targets]
        assert [box.corners() for box in question.gold_boxes] == cards
        assert all(box.space == "original" for box in question.gold_boxes)
        assert len(question.gold_boxes) == {"read": 1, "add": 2, "where": 0}[question.kind]


def test_no_picture_and_no_id_occurs_twice_even_across_sets_that_share_memory():
    used: set[str] = set()
    first = list(draw_questions("train", MIX, seed=1, used_pictures=used))
    again = list(draw_questions("train", MIX, seed=1, used_pictures=used))
    questions = [item.question for item in first + again]
    assert len({question.id for question in questions}) == 60
    assert len({question.image_sha256 for question in questions}) == 60 == len(used)


def test_every_split_holds_its_own_scenes():
    for split in SPLITS:
        assert all(split_of(item.scene) == split for item in draw_questions(split, MIX, seed=4))


def test_a_picture_in_two_splits_is_an_error_that_names_it():
    check_no_leakage({"train": ["a", "b", "b"], "test": ["c"]})
    with pytest.raises(
        RecordError, match=r"2 pictures are both in 'train' and in 'test', for example b, c\."
    ):
        check_no_leakage({"train": ["a", "b", "c"], "validation": ["d"], "test": ["c", "b"]})
