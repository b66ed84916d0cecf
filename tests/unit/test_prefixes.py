"""Sequences in one row with their common beginnings once: the same numbers, fewer tokens."""

import numpy as np
import pytest
import torch

from models.policy import by_sample, collate, collate_packed, load_policy
from models.prefixes import share_beginnings
from tests.tiny_models import trajectory_with_crops

# Two questions about different pictures, three and two rollouts with 0 to 2 crops, not in order; and a third
# question with one.
LOOKS = ((0, 0), (1, 2), (0, 2), (0, 1), (1, 0), (2, 1))


@pytest.fixture
def policy(untied_model):
    return load_policy(untied_model)


def rollouts(policy, looks=LOOKS):
    encoder = policy.encoder
    return [encoder.encode(trajectory_with_crops(encoder, crops, view_seed=view)) for view, crops in looks]


def shared(policy, encoded):
    return share_beginnings(encoded, vision_start_id=policy.encoder.vision_start_id)


def whole(parts, part):
    """The parts that a part goes on from, and itself."""
    return [*([] if part.parent is None else whole(parts, parts[part.parent])), part]


def likelihoods_and_gradients(policy, likelihoods):
    policy.zero_grad()
    (likelihoods * torch.arange(1.0, len(LOOKS) + 1)).sum().backward()
    return likelihoods.detach(), {name: p.grad.clone() for name, p in policy.named_parameters()}


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_logprobs_and_gradients_are_those_of_whole_sequences(untied_model, freeze_vision):
    policy = load_policy(untied_model, freeze_vision=freeze_vision)
    encoded = rollouts(policy)
    alone = torch.cat([policy(collate([one], policy), temperature=0.7).sum(dim=1) for one in encoded])
    expected, expected_gradients = likelihoods_and_gradients(policy, alone)
    batch = collate_packed(encoded, policy)
    together = by_sample(policy(batch, temperature=0.7), batch).sum(dim=1)
    found, gradients = likelihoods_and_gradients(policy, together)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-5 * largest, msg=name)


def test_the_parts_of_a_sequence_are_the_sequence(policy):
    encoded = rollouts(policy)
    parts = shared(policy, encoded)
    found = {part.sample: whole(parts, part) for part in parts if part.sample is not None}
    assert sorted(found) == list(range(len(encoded)))
    for number, one in enumerate(encoded):
        pieces = [part.tokens for part in found[number]]
        for name in ("ids", "sampled", "engine_logprobs", "versions", "positions"):
            together = np.concatenate([getattr(piece, name) for piece in pieces], axis=-1)
            assert np.array_equal(together, getattr(one, name)), name
        assert sum((piece.pictures for piece in pieces), ()) == one.pictures
        assert not any(piece.sampled[0] for piece in pieces)


def test_a_beginning_stands_in_a_row_once(policy):
    encoded = rollouts(policy)
    parts = shared(policy, encoded)
    # What all begin with; the two prompts with several rollouts; six sequences, of which the last has its
    # prompt for itself.
    assert [part.parent for part in parts[:3]] == [None, 0, 0]
    assert [part.sample is None for part in parts] == [True, True, True, *[False] * 6]
    assert {part.sample: part.parent for part in parts[3:]} == {0: 1, 2: 1, 3: 1, 1: 2, 4: 2, 5: 0}
    start = int(encoded[0].ids.tolist().index(policy.encoder.vision_start_id))
    assert len(parts[0].tokens) == start  # a text before the picture, which all of these questions share
    assert not parts[1].tokens.sampled.any()


def test_the_same_question_about_another_picture_is_another_prompt(policy):
    encoded = rollouts(policy, [(3, 0), (4, 0)])
    assert (encoded[0].ids == encoded[1].ids).all()
    assert [part.parent for part in shared(policy, encoded)] == [None, 0, 0]


def test_one_sequence_is_one_part(policy):
    (part,) = shared(policy, rollouts(policy, [(0, 1)]))
    assert (part.parent, part.sample) == (None, 0)


def test_sequences_with_nothing_in_common_share_nothing(policy):
    encoded = rollouts(policy, [(0, 0), (1, 0)])
    encoded[0].ids[0] += 1
    assert [part.parent for part in shared(policy, encoded)] == [None, None]


def test_every_sampled_token_keeps_its_engine_logprob(policy):
    encoded = rollouts(policy)
    batch = collate_packed(encoded, policy)
    logprobs, sampled = (by_sample(row[:, 1:], batch) for row in (batch.engine_logprobs, batch.sampled))
    for row, one in enumerate(encoded):
        assert logprobs[row][sampled[row]].tolist() == one.engine_logprobs[one.sampled].tolist()


def test_a_sequence_without_sampled_tokens_passes_through(policy):
    encoder = policy.encoder
    empty = trajectory_with_crops(encoder, 0)
    encoded = encoder.expand(encoder.collapse(empty.prompt, ()))
    assert policy(collate_packed([encoded], policy)).sum() == 0
