"""Lessons as tensors, and the language model's forward on them with picture features in place."""

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from models.tiny.lessons import Lesson


def collate(lessons: list[Lesson], *, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids (batch, length), weights (batch, length), positions (3, batch, length), padded on the right."""
    ids = np.full((len(lessons), length), lessons[0].encoder.pad_token, np.int64)
    weights = np.zeros((len(lessons), length), np.float32)
    positions = np.zeros((3, len(lessons), length), np.int64)
    for row, lesson in enumerate(lessons):
        size = len(lesson.ids)
        ids[row, :size] = lesson.ids
        weights[row, :size] = lesson.weights
        positions[:, row, :size] = np.array(lesson.positions).T
    return torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(positions)


def forward_hidden(
    model: Qwen2_5_VLForConditionalGeneration,
    ids: torch.Tensor,
    positions: torch.Tensor,
    features: torch.Tensor | None,
    *,
    image_token: int,
) -> torch.Tensor:
    """Last hidden states (batch, length, hidden) for ids (batch, length); features replace image tokens."""
    embedded = model.model.language_model.embed_tokens(ids)
    if features is not None:
        embedded = embedded.masked_scatter((ids == image_token)[..., None], features.to(embedded.dtype))
    output = model.model.language_model(inputs_embeds=embedded, position_ids=positions, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden
