"""Attention shares against the maps that transformers itself gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.analyses import attention
from models.analyses.attention import ANSWER, CROP, IMAGE, PROMPT, attention_shares, parts
from models.errors import ConfigError
from models.policy import Policy, collate, load_policy
from models.segments import ATTENTION
from models.trajectory import Trajectory
from tests.tiny_models import save_random_model, trajectory_with_crops


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder: Path = save_random_model(tmp_path_factory.mktemp("model"), tied=False)
    return load_policy(folder).eval()


def maps(policy: Policy, trajectory: Trajectory) -> np.ndarray:
    """Whole maps (layers, heads, T, T) by transformers' own eager attention."""
    batch = collate([policy.encoder.encode(trajectory)], policy)
    language_model = policy.model.model.language_model
    before = language_model.config._attn_implementation
    language_model.config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            found = language_model(
                inputs_embeds=policy._embed(batch),
                position_ids=batch.positions,
                use_cache=False,
                output_attentions=True,
            ).attentions
    finally:
        language_model.config._attn_implementation = before
    return torch.stack(found)[:, 0].numpy()


@pytest.mark.parametrize("num_crops", [0, 1, 3])
def test_shares_are_those_of_the_whole_maps(policy: Policy, num_crops: int) -> None:
    trajectory = trajectory_with_crops(policy.encoder, num_crops)
    encoded = policy.encoder.encode(trajectory)
    belongs = parts(encoded, trajectory.prompt, policy.encoder)
    whole = maps(policy, trajectory)[:, :, : len(encoded), : len(encoded)].mean(axis=(0, 1))  # (T, T)
    expected = np.stack([whole[:, belongs == part].sum(axis=1) for part in range(4)], axis=1)
    found = attention_shares(policy, trajectory)
    # The row before a sampled token is the one that predicts it.
    np.testing.assert_allclose(found, expected[np.flatnonzero(encoded.sampled) - 1], atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert len(found) == trajectory.num_sampled_tokens


def test_blocks_do_not_change_the_shares(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectory = trajectory_with_crops(policy.encoder, 2)
    whole = attention_shares(policy, trajectory)
    monkeypatch.setattr(attention, "_BLOCK", 3)
    np.testing.assert_allclose(attention_shares(policy, trajectory), whole, atol=1e-6)


def test_parts_of_a_turn_with_two_crops(policy: Policy) -> None:
    """The view has 16 visual tokens; the crops, 56 x 56 and 84 x 56 pixels, have 4 and 6."""
    trajectory = trajectory_with_crops(policy.encoder, 2)
    encoded = policy.encoder.encode(trajectory)
    belongs = parts(encoded, trajectory.prompt, policy.encoder)
    counts = {part: int((belongs == part).sum()) for part in range(4)}
    assert (counts[IMAGE], counts[CROP]) == (16, 10)
    # Three markers and pads per crop were collapsed to one each: what is left is text.
    assert counts[PROMPT] + counts[ANSWER] == len(encoded) - 26
    assert set(belongs[encoded.sampled]) == {ANSWER}
    first_answer = int(np.flatnonzero(belongs == ANSWER)[0])
    assert set(belongs[:first_answer]) == {IMAGE, PROMPT}
    starts = np.flatnonzero(np.diff(np.concatenate(([0], belongs == CROP))) == 1)
    assert [int((belongs[start : start + 4] == CROP).all()) for start in starts] == [1, 1]


def test_nothing_is_seen_of_a_crop_before_it_is_given(policy: Policy) -> None:
    trajectory = trajectory_with_crops(policy.encoder, 1)
    encoded = policy.encoder.encode(trajectory)
    shares = attention_shares(policy, trajectory)
    first_pad = int(np.flatnonzero(parts(encoded, trajectory.prompt, policy.encoder) == CROP)[0])
    is_before = np.flatnonzero(encoded.sampled) < first_pad
    assert (shares[is_before, CROP] == 0).all()
    assert (shares[~is_before, CROP] > 0).all()
    assert is_before.any()
    assert not is_before.all()


def test_the_models_own_attention_is_put_back(policy: Policy) -> None:
    config = policy.model.model.language_model.config
    before = config._attn_implementation
    attention_shares(policy, trajectory_with_crops(policy.encoder, 1))
    assert config._attn_implementation == before == ATTENTION


def test_windows_are_refused(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    config = policy.model.model.language_model.config
    monkeypatch.setattr(config, "layer_types", ["sliding_attention", "full_attention"])
    with pytest.raises(ConfigError, match="sliding_attention"):
        attention_shares(policy, trajectory_with_crops(policy.encoder, 1))
