"""Attention supervision: an auxiliary loss that tells two pairs of heads where to look, dropped after
pretraining.

It is what makes colour binding work at this size: heads 0 and 1 of layer 1 learn to look from a coordinate
that is about to be written to the asked card in the view, heads 2 and 3 from a character that is about to be
read to that character in the crop.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from models.tiny.architecture import HEAD_SIZE

SUPERVISED_LAYER = 1
LOCATE_HEADS = (0, 1)
READ_HEADS = (2, 3)


@dataclass(frozen=True)
class Gaze:
    """Where the token at ``query`` should look: ``weights`` (sum 1) over the tokens from ``first_key`` on."""

    query: int
    first_key: int
    weights: np.ndarray
    heads: tuple[int, int]


class GazeRecorder:
    """Keeps queries and keys of the supervised layer during a forward, to compute the loss afterwards."""

    def __init__(self, language_model: Any) -> None:
        attention = language_model.layers[SUPERVISED_LAYER].self_attn
        self._seen: dict[str, Any] = {}
        attention.register_forward_pre_hook(self._keep_positions, with_kwargs=True)
        attention.q_proj.register_forward_hook(
            lambda _module, _inputs, output: self._seen.update(query=output)
        )
        attention.k_proj.register_forward_hook(lambda _module, _inputs, output: self._seen.update(key=output))

    def _keep_positions(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self._seen["positions"] = kwargs["position_embeddings"]

    def loss(self, gazes: list[list[Gaze]]) -> torch.Tensor:
        """Mean KL divergence from the attention to the gazes; ``gazes[row]`` are of that row of the batch."""
        flat = [(row, gaze) for row, of_row in enumerate(gazes) for gaze in of_row]
        if not flat:
            return torch.zeros(())
        query, key = (self._heads(name) for name in ("query", "key"))  # (batch, heads, length, head size)
        cos, sin = (wave.float() for wave in self._seen["positions"])
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        length = query.shape[2]
        rows = torch.tensor([row for row, _ in flat])
        places = torch.tensor([gaze.query for _, gaze in flat])
        heads = torch.tensor([gaze.heads for _, gaze in flat])
        target = torch.zeros(len(flat), length)
        for index, (_, gaze) in enumerate(flat):
            target[index, gaze.first_key : gaze.first_key + len(gaze.weights)] = torch.from_numpy(
                gaze.weights
            )
        chosen = query[rows[:, None], heads, places[:, None]]  # (gazes, 2, head size)
        scores = torch.einsum("ghd,ghtd->ght", chosen, key[rows[:, None], heads]) / math.sqrt(HEAD_SIZE)
        future = torch.arange(length)[None] > places[:, None]
        log_attention = scores.masked_fill(future[:, None], -1e9).log_softmax(-1)
        entropy = -(target * (target + 1e-9).log()).sum(-1).mean()
        return -(log_attention * target[:, None]).sum(-1).mean() - entropy

    def _heads(self, name: str) -> torch.Tensor:
        states = self._seen[name].float()
        return states.view(*states.shape[:2], -1, HEAD_SIZE).transpose(1, 2)
