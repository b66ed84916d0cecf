"""The last layer goes on with the tokens that are asked about: fewer rows of its MLP, the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.last_layer import LastLayer
from models.policy import Batch, Policy, collate, collate_packed, load_policy
from tests.tiny_models import trajectory_with_crops

WANTED = torch.tensor([3, 17, 40])


@pytest.fixture
def policy(untied_model: Path) -> Policy:
    return load_policy(untied_model)


@pytest.fixture
def batch(policy: Policy) -> Batch:
    encoder = policy.encoder
    turns = [encoder.encode(trajectory_with_crops(encoder, number, view_seed=number)) for number in range(3)]
    return collate(turns, policy)


def gradients(policy: Policy, states: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum of hidden states (N, D); the policy's own are left empty."""
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    found = {name: one.grad for name, one in policy.named_parameters() if one.grad is not None}
    policy.zero_grad(set_to_none=True)
    return found


def every_place(batch: Batch) -> Tensor:
    return torch.arange(batch.ids.numel())


@contextmanager
def rows_of_each_mlp(policy: Policy) -> Iterator[list[int]]:
    """How many tokens went through the MLP of each layer, in order."""
    rows: list[int] = []

    def note(_: nn.Module, given: tuple[Tensor]) -> None:
        rows.append(given[0].shape[0] * given[0].shape[1])

    layers = policy.model.model.language_model.layers
    hooks = [layer.mlp.register_forward_pre_hook(note) for layer in layers]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def test_some_tokens_have_the_states_and_gradients_that_they_have_among_all(policy: Policy, batch: Batch):
    alone = policy.hidden_states(batch, WANTED)
    among_all = policy.hidden_states(batch, every_place(batch))[WANTED]
    torch.testing.assert_close(alone, among_all, rtol=0, atol=1e-5)
    found, expected = gradients(policy, alone), gradients(policy, among_all)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_asked_for_nothing_in_particular_it_is_the_layer_of_transformers(policy: Policy, batch: Batch):
    language_model = policy.model.model.language_model
    asked = policy.hidden_states(batch, every_place(batch))
    whole = language_model(
        inputs_embeds=policy._embed(batch), position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    assert isinstance(language_model.layers[-1], LastLayer)
    torch.testing.assert_close(asked, whole.flatten(0, 1), rtol=0, atol=1e-5)


def test_only_what_predicts_a_sampled_token_goes_through_the_last_mlp(policy: Policy, batch: Batch):
    predicted = int(batch.sampled[:, 1:].sum())
    with rows_of_each_mlp(policy) as rows:
        policy(batch)
    assert rows == [batch.ids.numel(), predicted]
    assert predicted < batch.ids.numel() / 2


def test_a_packed_row_asks_for_as_many(policy: Policy):
    encoder = policy.encoder
    turns = [encoder.encode(trajectory_with_crops(encoder, 2, view_seed=1)) for _ in range(3)]
    with rows_of_each_mlp(policy) as rows:
        policy(collate_packed(turns, policy))
    assert rows[-1] == sum(int(one.sampled.sum()) for one in turns)


def test_a_batch_without_sampled_tokens_has_gradients_of_zero(policy: Policy, batch: Batch):
    batch.sampled.zero_()
    logprobs = policy(batch)
    assert not logprobs.any()
    logprobs.sum().backward()
    found = [one.grad for one in policy.parameters() if one.grad is not None]
    assert found
    assert not any(gradient.any() for gradient in found)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_is_computed_again_like_any_layer(policy: Policy, batch: Batch, checkpointing: bool):
    expected = gradients(policy, policy.hidden_states(batch, WANTED))
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(policy, policy.hidden_states(batch, WANTED))
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())
