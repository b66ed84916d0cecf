"""Which pictures the vision tower looks at together, and that nobody can tell from their features."""

import random

import torch
from torch import nn

from models.policy import load_policy
from models.tower import BUNCH, MAX_PIXELS, PatchProjection, calls
from tests.tiny_models import picture


def pictures(count=40):
    """Of four shapes in turn."""
    return [picture(28 * (1 + i % 2), 28 * (2 + i // 2 % 2), seed=i) for i in range(count)]


def test_every_picture_is_in_one_call():
    shown = pictures()
    for grouping in ("one", "bunch", "together"):
        numbers = [number for chosen, _ in calls(shown, grouping) for number in chosen]
        assert sorted(numbers) == list(range(len(shown)))


def test_a_bunch_has_one_size_and_one_shape():
    shown = pictures()
    found = list(calls(shown, "bunch"))
    assert {len(looked_at) for _, looked_at in found} == {BUNCH}
    assert all(len({one.size for one in looked_at}) == 1 for _, looked_at in found)
    assert all([shown[number] for number in numbers] == seen[: len(numbers)] for numbers, seen in found)
    assert sorted(len(numbers) for numbers, _ in found) == [2] * 4 + [8] * 4


def test_together_ends_where_memory_does():
    large = [picture(2800, 1400, seed=i) for i in range(5)]  # two of them are below the limit, three above
    assert 2 * large[0].size.area < MAX_PIXELS < 3 * large[0].size.area
    assert [numbers for numbers, _ in calls(large, "together")] == [[0, 1], [2, 3], [4]]
    assert [numbers for numbers, _ in calls(pictures(), "together")] == [list(range(40))]


def test_bunches_give_a_picture_the_same_bits_in_any_company(untied_model):
    shown = pictures()
    first = load_policy(untied_model)
    first.look_in_bunches()
    expected = dict(zip((one.digest for one in shown), first.features(shown), strict=True))
    for seed in range(5):
        resumed = load_policy(untied_model)  # with nothing in its cache
        resumed.look_in_bunches()
        some = random.Random(seed).sample(shown, 13)
        found = resumed.features(some)
        assert all(torch.equal(expected[one.digest], got) for one, got in zip(some, found, strict=True))


def test_the_patch_projection_is_the_convolution(untied_model):
    policy = load_policy(untied_model)
    layer = policy.tower.patch_embed.proj
    assert type(layer) is PatchProjection
    patches, _ = policy.encoder.patches(pictures(6))
    patches = patches.unflatten(1, (3, *layer.kernel_size)).double()
    layer.double()
    found, expected = layer(patches), nn.Conv3d.forward(layer, patches)
    torch.testing.assert_close(found, expected)
    assert expected.abs().max() > 0.1
