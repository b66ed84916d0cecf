"""Rollouts of one question computed with its prompt once: the same numbers, fewer tokens."""

import pytest
import torch

from models.policy import collate, collate_sharing_prompts, load_policy
from tests.tiny_models import trajectory_with_crops


@pytest.fixture
def policy(untied_model):
    return load_policy(untied_model)


def rollouts(policy):
    """Two questions about different pictures, three and two rollouts with 0 to 2 crops, not in order."""
    looks = [(0, 0), (1, 2), (0, 2), (0, 1), (1, 0)]
    encoder = policy.encoder
    return [encoder.encode(trajectory_with_crops(encoder, crops, view_seed=view)) for view, crops in looks]


def likelihoods_and_gradients(policy, batch):
    policy.zero_grad()
    likelihoods = policy(batch, temperature=0.7).sum(dim=1)
    (likelihoods * torch.arange(1.0, 6.0)).sum().backward()
    return likelihoods.detach(), {name: p.grad.clone() for name, p in policy.named_parameters()}


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_logprobs_and_gradients_are_those_of_whole_sequences(untied_model, freeze_vision):
    policy = load_policy(untied_model, freeze_vision=freeze_vision)
    encoded = rollouts(policy)
    expected, expected_gradients = likelihoods_and_gradients(policy, collate(encoded, policy))
    found, gradients = likelihoods_and_gradients(policy, collate_sharing_prompts(encoded, policy))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-5 * largest, msg=name)


def test_each_distinct_prompt_is_computed_once(policy):
    batch = collate_sharing_prompts(rollouts(policy), policy)
    assert batch.prompts.ids.shape[0] == 2
    assert batch.prompt_of.tolist() == [0, 1, 0, 0, 1]
    assert not batch.prompts.sampled.any()
    # The first token of a row is the prompt's last, given; it predicts the second, which was sampled.
    assert not batch.sampled[:, 0].any()
    assert batch.sampled[:, 1].all()


def test_every_sampled_token_keeps_its_engine_logprob(policy):
    encoded = rollouts(policy)
    batch = collate_sharing_prompts(encoded, policy)
    for row, one in enumerate(encoded):
        kept = batch.engine_logprobs[row][batch.sampled[row]]
        assert kept.tolist() == one.engine_logprobs[one.sampled].tolist()


def test_the_same_question_about_another_picture_is_another_prompt(policy):
    encoder = policy.encoder
    pair = [encoder.encode(trajectory_with_crops(encoder, 0, view_seed=view)) for view in (3, 4)]
    assert (pair[0].ids == pair[1].ids).all()
    assert collate_sharing_prompts(pair, policy).prompts.ids.shape[0] == 2


def test_a_sequence_without_sampled_tokens_passes_through(policy):
    encoder = policy.encoder
    empty = trajectory_with_crops(encoder, 0)
    encoded = encoder.expand(encoder.collapse(empty.prompt, ()))
    assert policy(collate_sharing_prompts([encoded], policy)).sum() == 0
