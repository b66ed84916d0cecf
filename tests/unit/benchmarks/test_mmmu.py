"""The rule of MMMU on cases worked out by hand."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.benchmarks.mmmu import SCORER, gold_answers, is_open_right, options_of, subject_of
from models.benchmarks.mmmu_parsing import LMMS_LOOKS, normalise, numbers_in, parse_open, parse_option
from models.errors import ScoringError

OPTIONS = {"A": "red", "B": "blue", "C": "dark red", "D": "none of these"}


def multiple_choice(answer="B", **columns):
    row = {"id": "validation_Math_1", "question_type": "multiple-choice", "answer": answer}
    return {**row, "options": "['red', 'blue', 'dark red', 'none of these']", **columns}


def open_question(answer):
    return {"id": "validation_Math_2", "question_type": "open", "options": "[]", "answer": answer}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (
            "'B.'",
            None,
        ),  # The edges go one after another: the full stop is not at the edge when its turn comes.
        ("(B)", "B"),
        ("First (A), no, (C)", "C"),
        ("A (B)", "B"),
        ("B. blue", None),
        ("b", None),
        ("A picture of B and then A", "A"),
        ("it seems to me that dark red fits", "A"),  # "red" begins later than "dark red".
        ("dark red", None),
        ("", None),
    ],
)
def test_option_is_the_last_one_named(text, letter):
    assert parse_option(text, OPTIONS) == letter


def test_lmms_parser_accepts_a_letter_with_a_full_stop_and_a_letter_that_ends_a_word():
    assert parse_option("B. blue", OPTIONS, LMMS_LOOKS) == "B"
    assert parse_option("DNA sample", OPTIONS, LMMS_LOOKS) == "A"


def test_text_that_names_no_option_is_flagged_and_never_drawn():
    found = SCORER.score(multiple_choice(), "no idea")
    assert found == {"parsed": None, "random_fallback": True, "correct": None}
    assert SCORER.counts([multiple_choice()], ["no idea"], [found]) == {"random_fallback": 1}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (
            "The total is 1,000 dollars",
            [0.0, 1000.0, "1,000 dollars"],
        ),  # "000" after the comma is a number too.
        ("x=2", [2.0]),
        (".1", [1.0]),  # Full stops go at both ends before anything is read.
        ("c", [" c", "c "]),
        ("so 3\nit is 4", [3.0, 4.0]),
        ("is :", ["is :"]),
        ("", [""]),
    ],
)
def test_open_answers(text, parsed):
    assert parse_open(text) == parsed


def test_numbers_are_read_in_all_spellings():
    # 1.5e3: the simple spelling sees the 1 before the full stop and the 3 after the e.
    assert numbers_in("1.5e3 and -2,000") == ["-2,000", "1.5e3", "1", "3", "000"]


def test_normalised_numbers_have_two_decimals():
    assert normalise("1,234.567") == [1234.57]
    assert normalise(" Red ") == ["red"]


def test_gold_text_is_found_inside_an_answer():
    assert SCORER.score(open_question("embryonic"), "non-embryonic tissue")["correct"]


def test_gold_list_written_as_text_is_read_as_a_list():
    found = SCORER.score(open_question("['Tampa', 'Florida']"), "It is Tampa.")
    assert found["gold_used"] == ["Tampa", "Florida"]
    assert found["correct"]
    assert not found["correct_if_gold_kept_as_string"]


@pytest.mark.parametrize("gold", ["[1, 2]", "['a'", "[f()]", "__import__('os')", "(1, 2)"])
def test_gold_that_is_no_list_of_texts_stays_a_text(gold):
    assert gold_answers(gold) is None


def test_number_in_a_gold_list_matches_by_value():
    assert is_open_right([3.43], ["24/7", "3.429"])


def test_accuracy_by_subject_domain_and_overall():
    rows = [
        multiple_choice(),
        multiple_choice(id="validation_Math_2"),
        multiple_choice(id="validation_Art_Theory_1"),
        multiple_choice(id="validation_Physics_1"),
    ]
    texts = ["B", "no idea", "(B)", "A"]
    scores = [SCORER.score(row, text) for row, text in zip(rows, texts, strict=True)]
    found = SCORER.aggregate(rows, texts, scores)["official_fallback_counted_wrong"]
    assert found["subjects"]["Math"] == {"acc": 0.5, "num_example": 2}
    # Math 1 of 2 and Physics 0 of 1.
    assert found["domains"]["Science"] == {"num": 3, "acc": pytest.approx(1 / 3)}
    assert found["domains"]["Business"] == {"num": 0, "acc": 0}
    assert found["Overall"] == {"num": 4, "acc": 0.5}


def test_drawn_options_repeat_the_seeded_generator():
    rows, texts = [multiple_choice()] * 20, ["no idea"] * 20
    scores = [SCORER.score(row, text) for row, text in zip(rows, texts, strict=True)]
    generator = Random(42)
    share = sum(generator.choice(["A", "B", "C", "D"]) == "B" for _ in rows) / 20
    found = SCORER.aggregate(rows, texts, scores)
    assert found["official_seed42_file_order"]["Overall"]["acc"] == pytest.approx(share)
    assert found["official_fallback_counted_wrong"]["Overall"]["acc"] == 0


@pytest.mark.parametrize("options", ["[", "{'a': 1}", "[1, 2]", None])
def test_options_that_are_no_list_of_texts_are_refused(options):
    with pytest.raises(ScoringError, match="options"):
        options_of(multiple_choice(options=options))


@pytest.mark.parametrize("name", ["validation_Chess_1", "7"])
def test_unknown_subject_is_refused(name):
    with pytest.raises(ScoringError, match=name):
        subject_of({"id": name})


@settings(deadline=None)  # The machine may be busy.
@given(st.text() | st.text(alphabet="ABC()., \n=is so1e-"))
def test_any_text_is_scored_the_same_twice(text):
    for row in (multiple_choice(), open_question("1.06"), open_question("c")):
        assert repr(SCORER.score(row, text)) == repr(SCORER.score(row, text))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["1" * 10**6, "1,111," * 10**5, "1e5" * 10**5, "is " * 10**5, "A" * 10**6])
def test_a_megabyte_is_scored_in_seconds(text):
    SCORER.score(multiple_choice(), text)
    SCORER.score(open_question("1.06"), text)
