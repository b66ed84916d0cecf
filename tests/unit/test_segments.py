"""Samples packed into one row: the same numbers as one at a time, and nobody sees a neighbour."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from models.encoding import mrope_positions
from models.errors import EncodingError
from models.policy import by_sample, collate, collate_packed, load_policy
from models.segments import Segments, _in_one_kernel, attend
from tests.tiny_models import load_reference, picture, trajectory_with_crops

# Packing adds the same terms in another order; a token that sees a neighbour costs whole nats.
TOLERANCE = 1e-5


def samples(policy, numbers_of_crops=(2, 0, 4, 1, 0, 3)):
    """Trajectories with 1 to 5 pictures; the two without crops have equal lengths, and other pictures."""
    encoder = policy.encoder
    return [
        encoder.encode(trajectory_with_crops(encoder, crops, view_seed=seed))
        for seed, crops in enumerate(numbers_of_crops)
    ]


def without_pictures(one, policy):
    """The same sequence with a word in place of every image pad."""
    ids = np.where(one.ids == policy.encoder.image_token_id, one.ids[-1], one.ids)
    positions = mrope_positions(np.zeros(len(ids), dtype=bool), [])
    return replace(one, ids=ids, positions=positions, pictures=())


def losses_and_gradients(policy, losses):
    """Mean loss per sampled token, and its gradients, of losses (number of samples,)."""
    policy.zero_grad()
    losses.sum().backward()
    return losses.detach(), {name: p.grad.clone() for name, p in policy.named_parameters()}


@pytest.mark.parametrize("freeze_vision", [True, False])
@pytest.mark.parametrize("model", ["untied_model", "tied_model"])
def test_loss_and_gradients_are_those_of_one_sample_at_a_time(request, model, freeze_vision):
    policy = load_policy(request.getfixturevalue(model), freeze_vision=freeze_vision)
    encoded = samples(policy)
    encoded.append(without_pictures(encoded[0], policy))
    num_tokens = sum(one.num_sampled for one in encoded)
    alone = torch.cat([-policy(collate([one], policy)).sum(dim=1) for one in encoded])
    expected, expected_gradients = losses_and_gradients(policy, alone / num_tokens)
    batch = collate_packed(encoded, policy)
    together = -by_sample(policy(batch), batch).sum(dim=1)
    found, gradients = losses_and_gradients(policy, together / num_tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    assert found.min() > 0.1  # of the mean over all: every sample counts
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=TOLERANCE, msg=name)
    assert max(gradient.abs().max() for gradient in expected_gradients.values()) > 0.1


def test_positions_of_every_sample_are_those_of_transformers(untied_model):
    policy = load_policy(untied_model)
    reference = load_reference(untied_model)
    encoded = samples(policy)
    batch = collate_packed(encoded, policy)
    for one, own in zip(encoded, batch.own, strict=True):
        ids = torch.from_numpy(one.ids)[None]
        _, grids = policy.encoder.patches(one.pictures)
        is_image = (ids == policy.encoder.image_token_id).int()
        expected, _ = reference.model.get_rope_index(ids, is_image, image_grid_thw=grids)
        assert torch.equal(batch.positions[:, 0, own], expected[:, 0, len(one) - (own.stop - own.start) :])


def test_a_changed_sample_changes_no_other_bit(untied_model):
    policy = load_policy(untied_model)
    encoded = samples(policy)
    changed = replace(encoded[2], pictures=(picture(112, 112, seed=99), *encoded[2].pictures[1:]))
    with torch.no_grad():
        before, after = (
            by_sample(policy(batch), batch)
            for batch in (
                collate_packed(encoded, policy),
                collate_packed([*encoded[:2], changed, *encoded[3:]], policy),
            )
        )
    is_same = (before == after).all(dim=1)
    assert is_same.tolist() == [True, True, False, True, True, True]


def test_the_row_is_filled_up_to_a_multiple(untied_model):
    policy = load_policy(untied_model)
    encoded = samples(policy, [0, 1])
    batch = collate_packed(encoded, policy)
    total = max(own.stop for own in batch.own)
    assert total < sum(map(len, encoded))  # they begin alike
    assert batch.ids.shape == (1, -(-total // 64) * 64)
    assert sum(batch.segments.lengths) == batch.ids.shape[1]
    assert int(batch.mask.sum()) == total
    assert not batch.sampled[0, total:].any()


def test_every_sampled_token_counts_for_its_own_sample(untied_model):
    policy = load_policy(untied_model)
    encoded = samples(policy, [1, 0, 2])
    batch = collate_packed(encoded, policy)
    counted = by_sample(batch.sampled[:, 1:], batch).sum(dim=1)
    assert counted.tolist() == [one.num_sampled for one in encoded]


def test_pads_without_features_are_an_error(untied_model):
    policy = load_policy(untied_model)
    (encoded,) = samples(policy, [1])
    with pytest.raises(EncodingError, match="image pads"):
        collate_packed([replace(encoded, pictures=encoded.pictures[:1])], policy)


def test_runs_of_equal_lengths():
    segments = Segments.of((5, 5, 3, 5))
    assert segments.runs() == [(2, 0, 5), (1, 0, 3), (1, 0, 5)]
    assert segments.ends.tolist() == [0, 5, 10, 13, 18]
    assert segments.ends.dtype == torch.int32
    assert segments.keys is None


def test_a_segment_sees_those_it_goes_on_from():
    # A beginning of 2; two segments that go on from it; one that goes on from the first of these; padding.
    segments = Segments.of((2, 1, 1, 2, 3), (None, 0, 0, 1, None))
    assert segments.runs() == [(1, 0, 2), (2, 2, 1), (1, 3, 2), (1, 0, 3)]
    assert segments.keys.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 0, 1, 2, 4, 5, 6, 7, 8]
    assert segments.key_ends.tolist() == [0, 2, 5, 8, 13, 16]


def test_attention_is_that_of_one_mask_over_the_row():
    lengths, parents = (4, 3, 3, 2, 5, 4), (None, 0, 0, 1, 3, None)
    segments = Segments.of(lengths, parents)
    ends = segments.ends.tolist()
    mask = torch.zeros(ends[-1], ends[-1], dtype=torch.bool)
    for number in range(len(lengths)):
        above = number
        while above is not None:
            mask[ends[number] : ends[number + 1], ends[above] : ends[above + 1]] = True
            above = parents[above]
    mask = mask.tril()
    torch.manual_seed(0)
    query = torch.randn(1, 4, ends[-1], 8, requires_grad=True)
    key, value = (torch.randn(1, 2, ends[-1], 8, requires_grad=True) for _ in range(2))  # two heads share one
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    found, _ = attend(nn.Module(), query, key, value, None, scaling=0.3, segments=segments)
    torch.testing.assert_close(found, expected.transpose(1, 2))
    weights = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected.transpose(1, 2) * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_kernel_for_many_lengths_takes_what_it_is_given():
    """Its signature has changed between releases of PyTorch. Tensors without data need no GPU."""
    query, key, value = (
        torch.empty(64, heads, 32, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for heads in (4, 2, 2)
    )
    segments = Segments.of((5, 7, 52), (None, 0, 0)).to("meta")
    key, value = (states.index_select(0, segments.keys) for states in (key, value))
    key.retain_grad()
    found = _in_one_kernel(query, key, value, segments=segments, scaling=0.1)
    assert found.shape == query.shape
    found.sum().backward()
    assert key.grad.shape == key.shape


@pytest.mark.parametrize("shares_heads", [True, False])
def test_heads_of_keys_are_repeated_only_for_a_kernel_that_cannot_share_them(monkeypatch, shares_heads):
    # Four heads of queries to two of keys and values; the kernel says how many of each it was given.
    given = []

    def older_kernel(query, key, value, *bounds, scale, window_size):
        given.extend((query.shape[1], key.shape[1], value.shape[1]))
        assert torch.equal(key[:, 0], key[:, 1]) != shares_heads
        return query

    def kernel(*states_and_bounds, scale, window_size, enable_gqa=False):
        assert enable_gqa
        return older_kernel(*states_and_bounds, scale=scale, window_size=window_size)

    monkeypatch.setattr(varlen, "varlen_attn", kernel if shares_heads else older_kernel)
    query, key, value = (torch.randn(12, heads, 8) for heads in (4, 2, 2))
    _in_one_kernel(query, key, value, segments=Segments.of((5, 7)), scaling=0.1)
    assert given == ([4, 2, 2] if shares_heads else [4, 4, 4])
