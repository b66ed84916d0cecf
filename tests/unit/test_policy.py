import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.config import SFTConfig
from models.errors import EncodingError
from models.policy import DTYPES, Policy, collate, load_policy, load_to_train, save_policy
from tests.tiny_models import load_reference, picture, trajectory_with_crops

TEMPERATURE = 0.7
# fp32 sums in another order; mistakes of alignment or positions cost whole nats.
TOLERANCE = 2e-5


@pytest.fixture(params=["untied_model", "tied_model", "published_model"])
def model_path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def policy(untied_model: Path) -> Policy:
    return load_policy(untied_model)


def test_code_that_a_model_brings_along_is_not_run(untied_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(untied_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    brought = {name: f"brought.{name}" for name in ("AutoConfig", "AutoModelForImageTextToText")}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": brought}))
    (folder / "brought.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    load_policy(folder)
    assert not (tmp_path / "ran").exists()


def encoded_turns(policy, numbers_of_crops=range(5)):
    encoder = policy.encoder
    return [encoder.encode(trajectory_with_crops(encoder, n, view_seed=n)) for n in numbers_of_crops]


def reference_logprobs(model, encoder, encoded):
    """Log-probs (T-1,) of one sequence by transformers' own forward, from pixels, banned tokens left out."""
    ids = torch.from_numpy(encoded.ids)[None]
    patches, grids = encoder.patches(encoded.pictures)
    is_image = (ids == encoder.image_token_id).int()
    with torch.no_grad():
        logits = model(
            input_ids=ids, pixel_values=patches, image_grid_thw=grids, mm_token_type_ids=is_image
        ).logits[0, :-1]
    logits[:, list(encoder.banned_ids)] = -torch.inf
    return (logits / TEMPERATURE).log_softmax(dim=-1).gather(1, ids[0, 1:, None])[:, 0]


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_logprobs_equal_those_of_transformers(model_path, freeze_vision):
    policy = load_policy(model_path, freeze_vision=freeze_vision)
    reference = load_reference(model_path)
    turns = encoded_turns(policy)
    logprobs = policy(collate(turns, policy), temperature=TEMPERATURE)
    for row, encoded in zip(logprobs, turns, strict=True):
        expected = reference_logprobs(reference, policy.encoder, encoded)
        sampled = torch.from_numpy(encoded.sampled[1:])
        found = row[: len(encoded) - 1][sampled]
        # Patches are projected by a matrix product here and by a convolution there.
        assert torch.allclose(found, expected[sampled], atol=5 * TOLERANCE, rtol=0)
        assert found.mean() < -3  # far from 0: agreement is no accident


def test_logprobs_are_zero_where_nothing_was_sampled(policy):
    batch = collate(encoded_turns(policy), policy)
    logprobs = policy(batch)
    assert (logprobs[~batch.sampled[:, 1:]] == 0).all()
    assert (logprobs[batch.sampled[:, 1:]] < 0).all()


def test_padding_and_neighbours_do_not_matter(policy):
    turns = encoded_turns(policy)
    together = policy(collate(turns, policy))
    for row, encoded in zip(together, turns, strict=True):
        alone = policy(collate([encoded], policy))[0]
        length = len(encoded) - 1
        assert torch.allclose(row[:length], alone[:length], atol=TOLERANCE, rtol=0)


def test_batches_are_padded_to_a_multiple_of_sixteen(policy):
    batch = collate(encoded_turns(policy, [0, 4]), policy)
    longest = int(batch.mask.sum(dim=1).max())
    assert batch.ids.shape[1] % 16 == 0
    assert 0 <= batch.ids.shape[1] - longest < 16


def test_exchanged_pictures_change_the_logprobs(policy):
    (encoded,) = encoded_turns(policy, [1])
    others = (picture(112, 112, seed=77), encoded.pictures[1])
    exchanged = replace(encoded, pictures=others)
    difference = policy(collate([encoded], policy)) - policy(collate([exchanged], policy))
    assert difference.abs().max() > 0.01


def test_banned_tokens_have_no_probability(policy):
    logits = policy.logits(torch.randn(3, policy.model.lm_head.in_features), temperature=1.0)
    banned = list(policy.encoder.banned_ids)
    assert (logits.softmax(dim=-1)[:, banned] == 0).all()
    assert torch.isfinite(logits).sum() == 3 * (policy.encoder.vocab_size - len(banned))


def test_a_frozen_tower_is_no_part_of_the_module(policy):
    names = [name for name, _ in policy.named_parameters()]
    assert names
    assert not any("visual" in name for name in names)
    policy(collate(encoded_turns(policy), policy)).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    assert all(parameter.grad is None for parameter in policy.tower.parameters())


def test_a_trained_tower_receives_its_gradient(untied_model):
    policy = load_policy(untied_model, freeze_vision=False)
    policy(collate(encoded_turns(policy), policy)).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    assert any("visual" in name for name, _ in policy.named_parameters())


def loss_gradients_and_kept_bytes(model_path, *, freeze_vision, **settings):
    """Of one forward and backward pass; kept is what the forward pass leaves for the backward pass."""
    config = SFTConfig(precision="float32", **settings)
    policy = load_to_train(model_path, config, freeze_vision=freeze_vision)
    batch = collate(encoded_turns(policy), policy)
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = -policy(batch).sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters()}
    return loss.detach(), gradients, sum(map(len, kept.values()))


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_layers_that_are_computed_again_keep_less_and_change_no_bit(model_path, freeze_vision):
    measure = partial(loss_gradients_and_kept_bytes, model_path, freeze_vision=freeze_vision)
    loss, gradients, kept = measure()
    again, gradients_again, kept_again = measure(gradient_checkpointing=True)
    assert torch.equal(loss, again)
    assert gradients.keys() == gradients_again.keys()
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    assert kept_again < kept / 2, f"{kept} bytes, and {kept_again} when layers are computed again"


def count_tower_runs(policy):
    runs = []
    policy.tower.register_forward_hook(lambda *_: runs.append(1))
    return runs


def test_features_of_a_frozen_tower_are_computed_once(policy):
    runs = count_tower_runs(policy)
    shown, other = picture(56, 56, seed=1), picture(28, 56, seed=2)
    first = policy.features([shown, other, shown])
    assert len(runs) == 2  # one per picture on a CPU
    again = policy.features([picture(56, 56, seed=1)])  # another object, the same pixels
    assert len(runs) == 2
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[0], again[0])
    # 56 x 56 is 2 x 2 visual tokens, 28 x 56 is 2 x 1
    assert [len(features) for features in first] == [4, 2, 4]


def test_features_do_not_depend_on_what_else_is_missing(untied_model):
    # Kernels are chosen by size: a resumed run, whose cache is empty, would differ in the last bits.
    shown = [picture(28 * (1 + i % 4), 28 * (1 + i % 3), seed=i) for i in range(12)]
    together = load_policy(untied_model).features(shown)
    resumed = load_policy(untied_model)
    alone = [resumed.features([one])[0] for one in shown]
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))


def test_features_of_a_trained_tower_are_not_kept(untied_model):
    policy = load_policy(untied_model, freeze_vision=False)
    runs = count_tower_runs(policy)
    policy.features([picture(56, 56)])
    policy.features([picture(56, 56)])
    assert len(runs) == 2


def test_features_do_not_depend_on_the_pictures_that_are_looked_at_together(policy):
    shown = [picture(28 * width, 28 * height, seed=width) for width in (1, 2, 4) for height in (1, 3)]
    together = policy._look_at(shown)
    for one, features in zip(shown, together, strict=True):
        assert torch.equal(policy._look_at([one])[0], features)


def test_features_outlive_the_process_that_computed_them(untied_model, tmp_path):
    first = load_policy(untied_model)
    first.keep_features(tmp_path, max_bytes=1 << 20, max_file_bytes=1 << 20)
    computed = first.features([picture(56, 56)])
    first._store.flush()
    second = load_policy(untied_model)
    second.keep_features(tmp_path, max_bytes=1 << 20, max_file_bytes=1 << 20)
    runs = count_tower_runs(second)
    assert torch.equal(second.features([picture(56, 56)])[0], computed[0])
    assert not runs


def test_features_from_files_go_where_those_are_that_were_just_computed(policy, tmp_path, monkeypatch):
    read, new = picture(56, 56, seed=1), picture(56, 56, seed=2)
    store = policy.keep_features(tmp_path, max_bytes=1 << 20, max_file_bytes=1 << 20)
    policy.features([read])
    store.flush()
    store.forget()
    policy.to("meta")  # a device that is not the files', and has nothing to keep
    monkeypatch.setattr(store, "put", lambda entries: None)
    monkeypatch.setattr(policy, "_look_at", lambda shown: [torch.empty(4, 8, device="meta") for _ in shown])
    assert [one.device for one in policy.features([read, new])] == [policy.device] * 2


def test_another_tower_or_type_has_features_of_its_own(untied_model, tmp_path):
    policies = [load_policy(untied_model) for _ in range(4)]
    with torch.no_grad():
        next(policies[1].tower.parameters()).view(-1)[0] += 1e-3
    policies[2].tower.to(torch.bfloat16)
    for one in policies:
        one.keep_features(tmp_path, max_bytes=1 << 20, max_file_bytes=1 << 20)
        one.features([picture(56, 56)])
        one._store.flush()
    assert len(list(tmp_path.iterdir())) == 3  # the fourth has the first one's


def test_pads_without_features_are_an_error(policy):
    (encoded,) = encoded_turns(policy, [1])
    # The view alone has 16 visual tokens; the crop of 56 x 56 is missing its 4.
    lost = replace(encoded, pictures=encoded.pictures[:1])
    with pytest.raises(EncodingError, match="20 image pads and 16 visual features"):
        collate([lost], policy)


def test_a_saved_policy_is_the_same_policy(model_path, tmp_path):
    policy = load_policy(model_path)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_policy(policy, tmp_path / "saved")
    loaded = load_policy(tmp_path / "saved")
    turns = encoded_turns(policy)
    assert torch.equal(policy(collate(turns, policy)), loaded(collate(turns, loaded)))


def test_a_saved_policy_loads_with_plain_transformers(model_path, tmp_path):
    save_policy(load_policy(model_path), tmp_path / "saved")
    saved = load_reference(tmp_path / "saved").state_dict()
    original = load_reference(model_path).state_dict()
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in saved)


def test_given_weights_are_saved_instead_of_the_module(policy, tmp_path):
    weights = {name: torch.full_like(tensor, 0.5) for name, tensor in policy.weights()}
    save_policy(policy, tmp_path / "saved", weights=weights)
    saved = load_policy(tmp_path / "saved")
    assert all((tensor == 0.5).all() for _, tensor in saved.weights())


def test_weights_are_named_as_in_the_hugging_face_model(model_path):
    model = load_reference(model_path)
    expected = set(model.state_dict())
    if model.lm_head.weight is model.get_input_embeddings().weight:
        expected.remove("lm_head.weight")
    assert {name for name, _ in load_policy(model_path).weights()} == expected


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_what_is_trained_is_all_but_a_frozen_tower(model_path, freeze_vision):
    policy = load_policy(model_path, freeze_vision=freeze_vision)
    trained = {name for name, _ in policy.weights(trained_only=True)}
    tower = {name for name, _ in policy.weights() if name.startswith("model.visual.")}
    assert tower
    assert {name for name, _ in policy.weights()} - trained == (tower if freeze_vision else set())


def test_casting_keeps_rotary_frequencies_and_the_frozen_tower_exact(policy):
    rotary = policy.model.model.language_model.rotary_emb
    frequencies = rotary.inv_freq.clone()
    policy.bfloat16()
    assert policy.model.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(rotary.inv_freq, frequencies)
    assert next(policy.tower.parameters()).dtype == torch.float32
    assert np.isfinite(policy(collate(encoded_turns(policy), policy)).detach().numpy()).all()


def test_casting_keeps_the_rotary_frequencies_of_a_trained_tower(untied_model):
    policy = load_policy(untied_model, freeze_vision=False)
    rotary = policy.tower.rotary_pos_emb
    frequencies = rotary.inv_freq.clone()
    assert not torch.equal(frequencies.bfloat16().float(), frequencies)
    policy.bfloat16()
    assert {parameter.dtype for parameter in policy.tower.parameters()} == {torch.bfloat16}
    assert torch.equal(rotary.inv_freq, frequencies)


def test_a_frozen_tower_computes_in_the_precision_of_the_stage(model_path):
    shown = [picture(112, 112), picture(56, 84, seed=1)]
    found = {}
    for precision in ("float32", "bfloat16"):
        policy = load_to_train(model_path, SFTConfig(precision=precision))
        assert {parameter.dtype for parameter in policy.tower.parameters()} == {DTYPES[precision]}
        expected = load_policy(model_path, dtype=precision).features(shown)  # as engines have it
        found[precision] = policy.features(shown)
        assert all(torch.equal(*pair) for pair in zip(found[precision], expected, strict=True))
    for exact, rounded in zip(found["float32"], found["bfloat16"], strict=True):
        assert rounded.dtype == torch.bfloat16
        assert (rounded - exact).norm() < 0.02 * exact.norm()
