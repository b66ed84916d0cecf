"""What training costs in floating-point operations, and what a device could do in the same time.

Model FLOPs only: what the mathematics needs of the tokens in a batch, causal attention as half a square, the
last layer's MLP and the output head for the positions that predict a sampled token. Padding and recomputation
do not count, nor do tokens that several sequences share more than once. Six operations per active weight and
token (two forward, four backward); a frozen tower is counted apart, forward, and only for pictures that it
really looks at.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.policy import Batch

_TRAINED = 3  # times the forward pass

# Dense bfloat16 on tensor cores, FLOP/s, by what torch calls the device; NVIDIA's data sheets (the figures
# "with sparsity" halved) of A100, H100, H200, H20, L40S, L4, A40, A10 and HGX B200; AMD's of the MI300X.
PEAKS = {
    r"B200": 2250e12,
    r"H20\b": 148e12,
    r"H200 NVL|H100 NVL": 835.5e12,
    r"H100 PCIe": 756.5e12,
    r"H100|H200|GH200|H800": 989.5e12,
    r"A100|A800": 312e12,
    r"L40S": 362e12,
    r"A40\b": 149.7e12,
    r"A10\b": 125e12,
    r"L4\b": 121e12,
    r"MI300X": 1307.4e12,
}


def peak_of(device_name: str) -> float | None:
    """Peak FLOP/s of a device in bfloat16; None for one that is not in the table, or a part of one (MIG)."""
    if "MIG" in device_name:
        return None
    return next((peak for name, peak in PEAKS.items() if re.search(name, device_name)), None)


def device_name() -> str:
    """The GPU that torch uses, or "CPU"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


@dataclass(frozen=True, slots=True)
class Work:
    """What the language model does in one pass: tokens, query-key pairs, positions that are predicted."""

    tokens: int = 0
    pairs: int = 0
    predicted: int = 0

    @classmethod
    def of(cls, batch: Batch) -> "Work":
        """Of a batch, packed or not, without its padding."""
        tokens, predicted = int(batch.mask.sum()), int(batch.sampled[:, 1:].sum())
        if batch.segments is None:
            return cls(tokens, sum(map(_causal, batch.mask.sum(dim=1).tolist())), predicted)
        lengths = batch.segments.lengths
        used = lengths[:-1] if sum(lengths) > tokens else lengths
        seen = sum(above * length for above, length in zip(batch.segments.seen, used, strict=False))
        return cls(tokens, seen + sum(map(_causal, used)), predicted)

    def __add__(self, other: "Work") -> "Work":
        """Both passes."""
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.predicted + other.predicted)


def language_flops(config: Any, work: Work) -> float:
    """Forward pass of the language model, given transformers' configuration of the whole model."""
    text = config.get_text_config()
    width, heads, kv_heads = text.hidden_size, text.num_attention_heads, text.num_key_value_heads
    head = width // heads
    attention = 2 * width * heads * head + 2 * width * kv_heads * head  # q and o; k and v
    mlp, layers = 3 * width * text.intermediate_size, text.num_hidden_layers
    every, last = layers * attention + (layers - 1) * mlp, mlp + width * text.vocab_size
    weights = every * work.tokens + last * work.predicted
    scores = 2 * layers * heads * head * work.pairs  # q k, and what they weigh
    return 2.0 * (weights + scores)


def attention_share(config: Any, work: Work) -> float:
    """The part of :func:`language_flops` that grows with the square of the length."""
    none = Work(work.tokens, 0, work.predicted)
    return 1 - language_flops(config, none) / language_flops(config, work)


def training_flops(config: Any, work: Work) -> float:
    """Forward and backward pass of the language model."""
    return _TRAINED * language_flops(config, work)


def vision_flops(config: Any, grids: Sequence[tuple[int, int]]) -> float:
    """Forward pass of the tower over pictures of (rows, columns) patches."""
    vision = config.vision_config
    width, merge = vision.hidden_size, vision.spatial_merge_size**2
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * width
    block = 4 * width**2 + 3 * width * vision.intermediate_size
    merged = (merge * width) ** 2 + merge * width * vision.out_hidden_size
    num_full = len(vision.fullatt_block_indexes)
    total = 0.0
    for rows, columns in grids:
        patches = rows * columns
        windows = _window_pairs(rows, columns, side=vision.window_size // vision.patch_size)
        pairs = num_full * patches**2 + (vision.depth - num_full) * windows
        weights = patches * (patch + vision.depth * block) + patches // merge * merged
        total += 2.0 * (weights + 2 * width * pairs)
    return total


def _causal(length: int) -> int:
    return length * (length + 1) // 2


def _window_pairs(rows: int, columns: int, *, side: int) -> int:
    """Pairs within windows of ``side`` x ``side`` patches, those at the edges smaller."""
    heights = [min(side, rows - start) for start in range(0, rows, side)]
    widths = [min(side, columns - start) for start in range(0, columns, side)]
    return sum((height * width) ** 2 for height in heights for width in widths)
