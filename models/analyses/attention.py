"""Where a model looks while it writes: the share of attention on the picture, the crops and the text.

Maps of attention are quadratic in the length, so none is ever kept: the forward pass runs the usual fast
kernel, and beside it, layer by layer, the rows of the sampled tokens are computed in blocks and summed up at
once over the four parts of the sequence. Memory is heads x block x length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.encoding import Encoded, Encoder
from models.errors import ConfigError
from models.policy import Policy, collate
from models.trajectory import Prompt, Trajectory

from transformers.integrations.sdpa_attention import sdpa_attention_forward  # isort: skip
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # isort: skip

# The parts of a sequence, in the order of the columns of what `attention_shares` returns.
PARTS = ("image", "crop", "prompt", "answer")
IMAGE, CROP, PROMPT, ANSWER = range(len(PARTS))
# Rows of a map that are in memory together.
_BLOCK = 256
_MEASURED = "vlm_r3_measured"


def parts(encoded: Encoded, prompt: Prompt, encoder: Encoder) -> NDArray[np.int64]:
    """The part (T,) that each token belongs to: index into ``PARTS``.

    Visual tokens of the prompt's pictures are *image*, those in the assistant's turn are *crop*; the markers
    around a picture are text.
    """
    length = len(encoder.expand_ids(encoder.collapse(prompt, ())))
    is_visual = encoded.ids == encoder.image_token_id
    is_prompt = np.arange(len(encoded)) < length
    return np.where(is_visual, np.where(is_prompt, IMAGE, CROP), np.where(is_prompt, PROMPT, ANSWER))


@torch.no_grad()
def attention_shares(policy: Policy, trajectory: Trajectory) -> NDArray[np.float64]:
    """Shares (sampled tokens, 4) of attention on ``PARTS``, mean over heads and layers; every row sums to 1.

    A row is the attention of the position that predicts the token: what was looked at to write it. Raises
    ConfigError for a model with windowed attention in its language model.
    """
    encoded = policy.encoder.encode(trajectory)
    rows = np.flatnonzero(encoded.sampled) - 1
    belongs = parts(encoded, trajectory.prompt, policy.encoder)
    batch = collate([encoded], policy)
    # Padding on the right gets no attention from what comes before it, so its part does not matter.
    padded = np.pad(belongs, (0, batch.ids.shape[1] - len(encoded)), constant_values=ANSWER)
    meter = _Meter(
        rows=torch.from_numpy(rows).to(policy.device),
        part_of=nn.functional.one_hot(torch.from_numpy(padded), len(PARTS)).float().to(policy.device),
    )
    with _metered(policy.model.model.language_model, meter):
        policy.hidden_states(batch, meter.rows)
    return meter.mean().double().cpu().numpy()


@dataclass(slots=True)
class _Meter:
    """Sums up attention as the layers go by. ``rows`` (R,) are positions, ``part_of`` (T, parts) one-hot."""

    rows: Tensor
    part_of: Tensor
    layers: list[Tensor] = field(default_factory=list)  # (R, parts) each

    def measure(self, query: Tensor, key: Tensor, scaling: float) -> None:
        """Take a layer: query (1, H, T, D) and key (1, G, T, D), H a multiple of G."""
        keys = key[0].repeat_interleave(query.shape[1] // key.shape[1], dim=0).float()  # (H, T, D)
        queries = query[0, :, self.rows].float()  # (H, R, D)
        positions = torch.arange(keys.shape[1], device=keys.device)
        sums = []
        for start in range(0, len(self.rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            logits = queries[:, block] @ keys.transpose(1, 2) * scaling  # (H, block, T)
            is_later = positions > self.rows[block, None]
            weights = logits.masked_fill(is_later, -torch.inf).softmax(dim=-1)
            sums.append((weights @ self.part_of).mean(dim=0))  # (block, parts)
        self.layers.append(torch.cat(sums))

    def mean(self) -> Tensor:
        """Mean over the layers (R, parts)."""
        return torch.stack(self.layers).mean(dim=0)


@contextmanager
def _metered(language_model: Any, meter: _Meter) -> Iterator[None]:
    """Every attention of the model is measured inside the block, and computed as before."""
    config = language_model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ConfigError(
            f"The language model has layers of kind {', '.join(sorted(kinds))}; attention is measured only "
            "where every token may look at all earlier ones. Use a Qwen2.5-VL without sliding windows."
        )

    def measured(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        meter.measure(query, key, options["scaling"])
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(_MEASURED, measured)
    config._attn_implementation = _MEASURED
    try:
        yield
    finally:
        config._attn_implementation = before
