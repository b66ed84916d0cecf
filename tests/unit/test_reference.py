"""The frozen starting model that beta above 0 compares with."""

import pytest
import torch

from models.policy import collate, load_policy, load_reference
from tests.tiny_models import trajectory_with_crops


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_a_reference_sees_what_the_policy_sees_and_stays(untied_model, freeze_vision):
    policy = load_policy(untied_model, freeze_vision=freeze_vision)
    reference = load_reference(untied_model, policy, dtype="float32")
    batch = collate([policy.encoder.encode(trajectory_with_crops(policy.encoder, 2))], policy)
    before = policy(batch, temperature=0.7)
    assert torch.equal(reference(batch, temperature=0.7), before)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert (reference.tower is policy.tower) == freeze_vision  # a frozen one is held once
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    assert not torch.equal(policy(batch, temperature=0.7), before)
    unmoved = load_policy(untied_model, freeze_vision=freeze_vision).state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, unmoved[name]), name


def test_a_reference_in_bfloat16_is_the_policy_as_deepspeed_casts_it(untied_model):
    # Else the penalty would pull from the first step on, towards rounding.
    policy = load_policy(untied_model).to(torch.bfloat16)
    reference = load_reference(untied_model, policy, dtype="bfloat16")
    batch = collate([policy.encoder.encode(trajectory_with_crops(policy.encoder, 1))], policy)
    assert torch.equal(reference(batch), policy(batch))
