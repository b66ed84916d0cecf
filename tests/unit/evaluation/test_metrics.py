"""Accuracy, intervals, grounding and failures, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from models.errors import ScoringError
from models.evaluation.metrics import (
    bootstrap_mean,
    check_unscored,
    compare,
    paired_bootstrap,
    summarise,
    summarise_samples,
    wilson_interval,
)
from tests.evaluation_examples import make_prediction, make_question

RIGHT = "<think>It says K7.</think><answer>K7</answer>"
WRONG = "<think>It says K1.</think><answer>K1</answer>"
LOOK = '<think>I look. {"bbox_2d": [10, 10, 20, 20]}'
FOUND = " It says K7.</think><answer>K7</answer>"


def test_wilson_interval_of_8_of_10_is_the_textbook_one():
    # p = 0.8, n = 10, z = 1.96: centre (0.8 + 0.19207) / 1.38415 = 0.71674,
    # half-width 1.96 * sqrt(0.016 + 0.0096036) / 1.38415 = 0.22658: [0.4902, 0.9433].
    found = wilson_interval(8, 10)
    assert found.value == 0.8
    assert found.low == pytest.approx(0.4902, abs=1e-4)
    assert found.high == pytest.approx(0.9433, abs=1e-4)


def test_wilson_interval_reaches_exactly_0_and_1_at_the_ends():
    # At 0 of n the upper end is z^2 / (n + z^2) = 3.8415 / 13.8415 = 0.2775.
    none, every = wilson_interval(0, 10), wilson_interval(10, 10)
    assert (none.low, none.high) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert (every.low, every.high) == (pytest.approx(0.7225, abs=1e-4), 1.0)


def test_wilson_interval_of_nothing_is_refused():
    with pytest.raises(ScoringError, match="at least one"):
        wilson_interval(0, 0)


def test_paired_bootstrap_is_that_of_resampled_pairs():
    # 100 questions: 30 gained, 10 lost, 60 unchanged. Mean 0.2; variance of a difference 0.4 - 0.04 = 0.36,
    # so the standard error is 0.06 and the 95 % interval about 0.2 -+ 1.96 * 0.06 = [0.082, 0.318].
    old = {f"q{i}": float(i < 10) for i in range(100)}
    new = {f"q{i}": float(10 <= i < 40) for i in range(100)}
    difference, num_questions = paired_bootstrap(new, old, seed=0)
    assert num_questions == 100
    assert difference.value == pytest.approx(0.2)
    assert difference.low == pytest.approx(0.082, abs=0.011)
    assert difference.high == pytest.approx(0.318, abs=0.011)


def test_bootstrap_agrees_with_drawing_indices():
    values = np.random.default_rng(1).random(40)
    indices = np.random.default_rng(2).integers(0, 40, size=(20_000, 40))
    low, high = np.percentile(values[indices].mean(axis=1), [2.5, 97.5])
    found = bootstrap_mean(list(values), seed=3, num_resamples=20_000)
    # The percentile of 20 thousand resamples scatters by about 0.001 here.
    assert (found.low, found.high) == (pytest.approx(low, abs=0.004), pytest.approx(high, abs=0.004))


def test_bootstrap_depends_on_its_seed_only():
    values = list(np.random.default_rng(0).random(50))
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_bootstrap_of_many_values_is_drawn_in_blocks():
    # 1000 resamples of 4000 values take two blocks of 500. Standard error 0.2887 / sqrt(4000) = 0.00456.
    values = list((np.arange(4000) + 0.5) / 4000)
    found = bootstrap_mean(values, seed=0, num_resamples=1000)
    assert found.low == pytest.approx(0.5 - 1.96 * 0.00456, abs=0.001)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.00456, abs=0.001)


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        found = bootstrap_mean(list((rng.random(120) < 0.3).astype(float)), seed=trial, num_resamples=1000)
        covered += found.low <= 0.3 <= found.high
    # Binomial(300, 0.95): mean 285, deviation 3.8; percentile intervals of 120 values are slightly narrow.
    assert 272 <= covered <= 297


def test_paired_bootstrap_without_shared_questions_is_refused():
    with pytest.raises(ScoringError, match="same questions"):
        paired_bootstrap({"a": 1.0}, {"b": 0.0}, seed=0)


def test_scores_of_four_attempts(look):
    add = make_question("add", kind="add", num_gold=2)
    predictions = [
        # Looks at (10, 10, 20, 20), exactly the gold box. The crop is 40 original pixels wide, zoomed to 80
        # and smart-resized to 84 x 84: 9 tokens.
        make_prediction(LOOK, FOUND, question=make_question("a")),
        # Right without a look: a miss on the object, though well formed.
        make_prediction(RIGHT, question=make_question("b")),
        # The second gold box (60, 10, 70, 20) comes first. IoU with (60, 10, 80, 20): 100 / 200 = 0.5. The
        # crop is 80 x 40 original pixels, zoomed to 160 x 80; 168 x 84 = 14112 is over the budget of 12544
        # pixels, so it is shrunk by sqrt(12800 / 12544) to 158.4 x 79.2 -> 140 x 56: 10 tokens.
        make_prediction('<think>{"bbox_2d": [60, 10, 80, 20]}', "</think><answer>3</answer>", question=add),
        # An inverted box is refused and told; no box is accepted; then generation ends without an answer.
        make_prediction('<think>{"bbox_2d": [20, 20, 10, 10]}', " hm", question=make_question("d")),
    ]
    scores = summarise(predictions, pixel_factor=28)
    assert (scores.num_scored, scores.num_unscored, scores.num_correct) == (4, 0, 2)
    assert scores.accuracy.value == 0.5
    assert scores.format_rate == 0.75
    assert scores.protocol_error_rate == 0.25
    assert scores.truncation_rate == 0.0
    assert scores.crops_per_question == 0.5
    assert scores.look_rate == 0.5
    assert scores.first_box_on_object == 0.5
    assert scores.first_box_iou == pytest.approx((1.0 + 0.5) / 2)
    assert scores.first_box_coverage == pytest.approx(1.0)
    # Gold boxes: one each of a, b and d, two of the other; found are that of a (IoU 1) and the second (0.5).
    assert scores.gold_recall == 2 / 5
    # Both crops hold a gold box whole.
    assert scores.crops_with_answer == 1.0
    assert (scores.crop_width, scores.crop_height) == (15.0, 10.0)
    assert scores.crop_tokens == pytest.approx((9 + 10) / 2)
    # The script's tokens are characters: 44 + 39, 45, 36 + 26, and 36 + 3.
    assert scores.tokens_per_question == (83 + 45 + 62 + 39) / 4


def test_a_question_that_needs_no_look_says_nothing_about_boxes():
    where = make_question("c", kind="where", num_gold=0)
    scores = summarise([make_prediction(RIGHT, question=where)], pixel_factor=28)
    assert scores.look_rate is None
    assert scores.first_box_on_object is None
    assert scores.first_box_iou is None
    assert (scores.gold_recall, scores.crops_with_answer) == (None, None)
    assert scores.crop_tokens is None


@pytest.mark.parametrize(("edge", "holds"), [(11, 1.0), (12, 0.0)])
def test_a_crop_that_cuts_a_part_of_the_gold_box_does_not_hold_it(edge, holds):
    """The gold box is (10, 10, 20, 20): nine tenths of it are the limit."""
    pieces = (f'<think>{{"bbox_2d": [{edge}, 8, 40, 24]}}', "</think><answer>K7</answer>")
    scores = summarise([make_prediction(*pieces)], pixel_factor=28)
    assert scores.crops_with_answer == holds
    # 90 or 80 of a box of 29 x 16 or 28 x 16: far from an IoU of 0.5.
    assert scores.gold_recall == 0.0


def test_a_direct_answer_is_the_whole_text_and_has_no_format(look):
    bare = look.model_copy(update={"system": None})
    prediction = make_prediction(" k7. ", style="direct", look=bare)
    assert prediction.correct is True
    assert prediction.answer == "k7."
    assert summarise([prediction], pixel_factor=28).format_rate is None


def test_truncated_attempts_are_wrong_not_unscored(look):
    short = look.model_copy(update={"max_sampled_tokens": 10})
    scores = summarise([make_prediction(RIGHT, look=short)], pixel_factor=28)
    assert (scores.num_scored, scores.num_correct, scores.truncation_rate) == (1, 0, 1.0)


def test_our_failure_is_unscored_and_never_a_wrong_answer():
    broken = make_prediction(question=make_question("broken"))
    assert broken.correct is None
    scores = summarise([make_prediction(RIGHT), broken], pixel_factor=28)
    assert (scores.num_scored, scores.num_unscored, scores.num_correct) == (1, 1, 1)
    assert scores.accuracy.value == 1.0
    # The interval is that of one question, not of two.
    assert scores.accuracy == wilson_interval(1, 1)


def test_too_many_failures_on_our_side_stop_the_evaluation():
    predictions = [make_prediction(RIGHT, question=make_question(f"q{i}")) for i in range(3)]
    predictions.append(make_prediction(question=make_question("q3")))
    assert check_unscored("sft", predictions, max_share=0.25) == 1
    with pytest.raises(ScoringError, match=r"'sft': 1 of 4 .* 'q3': engine_error lost the device"):
        check_unscored("sft", predictions, max_share=0.24)


def test_nothing_scored_is_an_error_not_an_accuracy():
    with pytest.raises(ScoringError):
        summarise([make_prediction()], pixel_factor=28)


def test_comparison_leaves_out_pairs_that_we_broke_and_counts_them():
    questions = [make_question(f"q{i}", kind="read" if i < 3 else "where") for i in range(5)]
    new = [make_prediction(RIGHT, question=q) for q in questions]
    old = [make_prediction(WRONG, question=q) for q in questions[:3]]
    old.append(make_prediction(question=questions[3]))
    # q4 was never asked of the old row, so it is not part of the comparison; q3 broke.
    found = compare(("new", new), ("old", old), seed=0)
    assert (found.num_questions, found.num_unscored) == (3, 1)
    assert (found.difference.value, found.difference.low, found.difference.high) == (1.0, 1.0, 1.0)
    assert found.is_above_zero
    assert not found.is_below_zero
    only_read = compare(("new", new), ("old", old), kind="read", seed=0)
    assert (only_read.kind, only_read.num_questions, only_read.num_unscored) == ("read", 3, 0)


def test_comparison_uses_greedy_attempts_only():
    greedy, sampled = make_prediction(RIGHT), make_prediction(WRONG, temperature=1.0)
    found = compare(("new", [greedy, sampled]), ("old", [greedy]), seed=0)
    assert found.difference.value == 0.0


def test_mean_at_k_averages_over_questions():
    samples = [
        make_prediction(text, question=make_question(id), temperature=1.0, sample_index=index)
        for id, texts in {"a": [RIGHT, RIGHT], "b": [RIGHT, WRONG], "c": [WRONG, WRONG]}.items()
        for index, text in enumerate(texts)
    ]
    # Shares right: 1, 1/2, 0.
    found = summarise_samples(samples, seed=0)
    assert (found.num_samples, found.num_questions, found.num_unscored) == (2, 3, 0)
    assert found.mean.value == pytest.approx(0.5)
    assert found.mean.low < 0.5 < found.mean.high
    assert found.format_rate == 1.0


def test_mean_at_k_leaves_broken_samples_out_and_counts_them():
    a, b = make_question("a"), make_question("b")
    samples = [
        make_prediction(RIGHT, question=a, temperature=1.0, sample_index=0),
        make_prediction(question=a, temperature=1.0, sample_index=1),
        make_prediction(question=b, temperature=1.0, sample_index=0),
        make_prediction(question=b, temperature=1.0, sample_index=1),
    ]
    found = summarise_samples(samples, seed=0)
    assert (found.num_questions, found.num_unscored, found.mean.value) == (1, 3, 1.0)


def test_mean_at_k_refuses_questions_with_different_numbers_of_samples():
    samples = [
        make_prediction(RIGHT, question=make_question(id), temperature=1.0, sample_index=index)
        for id, index in [("a", 0), ("a", 1), ("b", 0)]
    ]
    with pytest.raises(ScoringError, match=r"\[1, 2\]"):
        summarise_samples(samples, seed=0)


def test_ten_thousand_resamples_of_ten_thousand_questions_take_little_time_and_memory():
    found = bootstrap_mean([0.0, 1.0] * 5000, seed=0)
    # Standard error 0.5 / 100.
    assert math.isclose(found.high - found.low, 2 * 1.96 * 0.005, rel_tol=0.05)
