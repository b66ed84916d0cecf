"""Gradients that are no numbers, planted in a real model; its losses stay as they are."""

import torch
from torch import Tensor

from models.policy import Batch, Policy


def nan_in_gradient_of_row(policy: Policy) -> None:
    """The first sample of the next micro-batch gets a gradient that is no number, at its second own token."""
    places: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple[Batch, ...]) -> None:
        places.append(inputs[0].own[0].start + 1)
        noting.remove()

    noting = policy.register_forward_pre_hook(note)

    def spoil(gradient: Tensor) -> Tensor:
        spoiled = gradient.clone()
        spoiled[0, places[0]] = torch.nan
        return spoiled

    def plant(module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(spoil)
        handle.remove()

    # Where the last layer still has every token of the row.
    handle = policy.model.model.language_model.layers[-1].input_layernorm.register_forward_hook(plant)


def nan_in_gradient_of(policy: Policy) -> None:
    """The weights of a layer get one; no sample is to blame."""
    weight = policy.model.model.language_model.layers[0].mlp.down_proj.weight
    weight.register_hook(lambda gradient: gradient * torch.nan)
