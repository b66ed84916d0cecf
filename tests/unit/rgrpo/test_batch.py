"""From trajectories to training samples, without a model: one rank, hand-made rewards."""

import math
from types import SimpleNamespace

import pytest

from models import distributed
from models.config import Look, ObjectiveConfig, RGRPOConfig
from models.records import Question
from models.rgrpo.batch import score_and_compare
from models.trajectory import Prompt, SampledSpan, StopReason, Trajectory

LOOK = Look(max_sampled_tokens=80)
RIGHT, WRONG = "<think>a</think><answer>7</answer>", "<think>a</think><answer>8</answer>"


@pytest.fixture(scope="module", autouse=True)
def one_rank():
    distributed.start(num_threads=1)


def question(name):
    return Question(
        id=name,
        source="s",
        split="train",
        image_bytes=b"",
        image_sha256="",
        width=1,
        height=1,
        text="?",
        answers=("7",),
    )


def trajectory(name, index, text, stop=StopReason.ANSWERED):
    ids = tuple(range(len(text)))
    spans = (SampledSpan(text, ids, (-0.5,) * len(ids)),) if text else ()
    return Trajectory(name, index, Prompt("?"), spans, (), stop)


def compare(*texts, **objective):
    """Two questions, three trajectories each; a text of None is an engine failure, "" at the token limit."""
    made = []
    for place, text in enumerate(texts):
        stop = StopReason.ENGINE_ERROR if text is None else StopReason.ANSWERED
        if text is not None and "</answer>" not in text:
            stop = StopReason.TOKEN_LIMIT
        made.append(trajectory(f"q{place // 3}", place % 3, text or "", stop))
    config = RGRPOConfig(group_size=3, max_failed_share=0.5, objective=ObjectiveConfig(**objective))
    # The encoder only has to be asked: what it makes of a trajectory is tested with it.
    encoder = SimpleNamespace(
        encode=lambda one: f"{one.question_id}#{one.sample_index}", drifts=lambda spans: [False] * len(spans)
    )
    return score_and_compare(made, [question("q0"), question("q1")], config, encoder=encoder, look=LOOK)


def names(batch):
    return [f"{sample.question_id}#{sample.sample_index}" for sample in batch.samples]


def test_only_groups_with_spread_are_trained_but_all_are_divided_by():
    batch = compare(RIGHT, WRONG, WRONG, RIGHT, RIGHT, RIGHT)
    assert names(batch) == ["q0#0", "q0#1", "q0#2"]
    # r = 2.001, 1.001, 1.001: mean 1.3343, std 0.57735, so A = 2/3 / 0.57735 = 1.1547, and -0.57735 twice.
    assert [sample.advantage for sample in batch.samples] == pytest.approx(
        [1.1545, -0.57725, -0.57725], abs=1e-4
    )
    totals = batch.totals
    assert (totals.num_questions, totals.num_trajectories, totals.max_tokens) == (2, 6, 80)
    assert totals.num_tokens == 6 * len(RIGHT)


def test_what_we_broke_is_in_no_mean_and_in_no_divisor():
    batch = compare(RIGHT, None, WRONG, RIGHT, RIGHT, RIGHT)
    assert names(batch) == ["q0#0", "q0#2"]
    assert batch.samples[0].advantage == pytest.approx(-batch.samples[1].advantage)
    assert batch.totals.num_trajectories == 5
    assert math.isnan(batch.rollouts[1].advantage)
    assert batch.rollouts[1].trajectory.reward is None


def test_masked_truncated_trajectories_keep_their_say_in_the_mean_only():
    texts = (RIGHT, "<think>abc", WRONG, RIGHT, RIGHT, RIGHT)
    kept, masked = compare(*texts), compare(*texts, mask_truncated=True)
    assert names(kept) == ["q0#0", "q0#1", "q0#2"]
    assert names(masked) == ["q0#0", "q0#2"]
    assert masked.samples[0].advantage == kept.samples[0].advantage
    assert masked.totals.num_trajectories == 5
    assert masked.totals.num_tokens == kept.totals.num_tokens - len("<think>abc")


def test_a_trajectory_without_a_single_token_is_in_the_mean_and_in_no_divisor():
    batch = compare(RIGHT, "", WRONG, RIGHT, RIGHT, RIGHT)
    assert names(batch) == ["q0#0", "q0#2"]
    assert batch.totals.num_trajectories == 5


def test_a_reference_gives_equal_rewards_a_gradient_too():
    # Their advantages stay 0: it is the KL alone that moves them. What we broke, or masked, still does not.
    batch = compare(RIGHT, RIGHT, RIGHT, RIGHT, None, "<think>abc", beta=0.1, mask_truncated=True)
    assert names(batch) == ["q0#0", "q0#1", "q0#2", "q1#0"]
    assert [sample.advantage for sample in batch.samples[:3]] == [0.0, 0.0, 0.0]
    assert batch.metrics["rgrpo/zero_variance_share"] == 0.5


def test_a_question_that_failed_whole_is_no_question():
    assert compare(RIGHT, WRONG, WRONG, None, None, None).totals.num_questions == 1


def test_there_is_always_a_spare_sequence():
    batch = compare(RIGHT, RIGHT, RIGHT, WRONG, WRONG, WRONG)
    assert batch.samples == ()
    assert batch.spare.startswith("q")
