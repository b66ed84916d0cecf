"""Samples packed into one row: the same numbers as one at a time, and nobody sees a neighbour."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.encoding import mrope_positions
from models.errors import EncodingError
from models.policy import collate, collate_packed, load_policy, per_segment
from models.segments import Segments, _in_one_kernel
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
    together = -per_segment(policy(batch), batch)[: len(encoded)]
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
    parts = batch.positions[:, 0].split(batch.segments.lengths, dim=1)
    for one, part in zip(encoded, parts, strict=False):
        ids = torch.from_numpy(one.ids)[None]
        _, grids = policy.encoder.patches(one.pictures)
        is_image = (ids == policy.encoder.image_token_id).int()
        expected, _ = reference.model.get_rope_index(ids, is_image, image_grid_thw=grids)
        assert torch.equal(part, expected[:, 0])


def test_a_changed_sample_changes_no_other_bit(untied_model):
    policy = load_policy(untied_model)
    encoded = samples(policy)
    changed = replace(encoded[2], pictures=(picture(112, 112, seed=99), *encoded[2].pictures[1:]))
    with torch.no_grad():
        before, after = (
            per_segment(policy(batch), batch)
            for batch in (
                collate_packed(encoded, policy),
                collate_packed([*encoded[:2], changed, *encoded[3:]], policy),
            )
        )
    assert [bool(same) for same in before == after] == [True, True, False, True, True, True, True]


def test_the_row_is_filled_up_to_a_multiple(untied_model):
    policy = load_policy(untied_model)
    encoded = samples(policy, [0, 1])
    batch = collate_packed(encoded, policy)
    total = sum(map(len, encoded))
    assert batch.ids.shape == (1, -(-total // 64) * 64)
    assert sum(batch.segments.lengths) == batch.ids.shape[1]
    assert int(batch.mask.sum()) == total
    assert not batch.sampled[0, total:].any()


def test_every_sampled_token_counts_for_its_own_sample(untied_model):
    policy = load_policy(untied_model)
    encoded = samples(policy, [1, 0, 2])
    batch = collate_packed(encoded, policy)
    counted = per_segment(batch.sampled[:, 1:].float(), batch)
    assert counted[:3].tolist() == [one.num_sampled for one in encoded]


def test_pads_without_features_are_an_error(untied_model):
    policy = load_policy(untied_model)
    (encoded,) = samples(policy, [1])
    with pytest.raises(EncodingError, match="image pads"):
        collate_packed([replace(encoded, pictures=encoded.pictures[:1])], policy)


def test_runs_of_equal_lengths():
    segments = Segments.of((5, 5, 3, 5))
    assert segments.runs() == [(2, 5), (1, 3), (1, 5)]
    assert segments.ends.tolist() == [0, 5, 10, 13, 18]
    assert segments.ends.dtype == torch.int32


def test_the_kernel_for_many_lengths_takes_what_it_is_given():
    """Its signature has changed between releases of PyTorch. Tensors without data need no GPU."""
    query, key, value = (
        torch.empty(64, heads, 32, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for heads in (4, 2, 2)
    )
    segments = Segments.of((5, 7, 52)).to("meta")
    found = _in_one_kernel(query, key, value, segments=segments, scaling=0.1)
    assert found.shape == query.shape
    found.sum().backward()
    assert key.grad.shape == key.shape
