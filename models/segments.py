"""Causal attention within the segments of one long row, and never across them.

A packed row is samples one after another. No mask is built: it would have the square of the row's length,
nearly all of it zeros. On CUDA in half precision one kernel takes the boundaries as they are; elsewhere
every run of equally long segments is one call of PyTorch's causal kernel.
"""

from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# The name under which transformers' models find this attention; without segments it is their "sdpa".
ATTENTION = "vlm_r3_segments"


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """The lengths of the segments of a row, in order; their sum is the row's length. ``ends`` is (N + 1,)
    int32: 0, then where each segment ends."""

    lengths: tuple[int, ...]
    ends: Tensor

    @classmethod
    def of(cls, lengths: tuple[int, ...]) -> "Segments":
        """The segments of these lengths."""
        return cls(lengths, torch.tensor((0, *lengths)).cumsum(0).to(torch.int32))

    def to(self, device: torch.device | str) -> "Segments":
        """The same with ``ends`` on another device."""
        return Segments(self.lengths, self.ends.to(device))

    def runs(self) -> list[tuple[int, int]]:
        """Number and length of every run of equally long segments, in order."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    segments: Segments | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention (B, T, H, D) of queries (B, H, T, D) to keys and values (B, groups, T, D), in transformers'
    form; with ``segments`` there is one row, B = 1."""
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]  # (T, H or groups, D)
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    one_kernel = query.is_cuda and is_half and _has_varlen_kernel(query.device)
    found = _in_one_kernel if one_kernel else _run_by_run
    return found(*rows, segments=segments, scaling=scaling)[None], None


def _run_by_run(query: Tensor, key: Tensor, value: Tensor, *, segments: Segments, scaling: float) -> Tensor:
    """Attention (T, H, D), one call per run of equal lengths."""
    runs = segments.runs()
    sizes = [count * length for count, length in runs]
    shares_heads = query.shape[1] != key.shape[1]
    found = []
    split = [rows.split(sizes) for rows in (query, key, value)]
    for (count, length), *parts in zip(runs, *split, strict=True):
        # (count * length, H, D) -> (count, H, length, D)
        queries, keys, values = (part.unflatten(0, (count, length)).transpose(1, 2) for part in parts)
        attended = scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scaling, enable_gqa=shares_heads
        )
        found.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(found)


def _in_one_kernel(
    query: Tensor, key: Tensor, value: Tensor, *, segments: Segments, scaling: float
) -> Tensor:
    """Attention (T, H, D) by PyTorch's kernel for sequences of many lengths."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(segments.lengths)
    # Heads are repeated here: not every release of the kernel shares them.
    repeats = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    attended = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        segments.ends,
        segments.ends,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),  # causal
    )
    assert isinstance(attended, Tensor), "more than the attention comes only when it is asked for"
    return attended


@cache
def _has_varlen_kernel(device: torch.device) -> bool:
    """The kernel is flash attention: not in every build of PyTorch, and for Ampere and newer GPUs only."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    is_built = torch.backends.cuda.is_flash_attention_available()
    return is_built and torch.cuda.get_device_capability(device) >= (8, 0)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
