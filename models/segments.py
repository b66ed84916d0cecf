"""Causal attention within the segments of one long row, and never across them.

A packed row is samples one after another; what several of them begin with stands there once, as a segment of
its own that the others go on from. No mask of the row is built: it would have the square of the row's length,
nearly all of it zeros. On CUDA in half precision one kernel takes the boundaries as they are; elsewhere every
run of segments of the same shape is one call of PyTorch's kernel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from inspect import signature
from itertools import accumulate, groupby
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
    """The segments of a row, in order; their ``lengths`` sum up to the row's. A segment sees itself, and all
    of the segments that it goes on from: ``seen`` counts their tokens. Boundaries are (N + 1,) int32: 0, then
    where each segment ends; ``keys`` are the places in the row of all that each segment sees, one segment
    after the other, None when no segment goes on from another."""

    lengths: tuple[int, ...]
    seen: tuple[int, ...]
    ends: Tensor
    key_ends: Tensor
    keys: Tensor | None  # (sum of seen and lengths,) int64

    @classmethod
    def of(cls, lengths: Sequence[int], parents: Sequence[int | None] | None = None) -> "Segments":
        """The segments of these lengths; ``parents`` are the numbers of those they go on from, which come
        before them in the row."""
        ends = tuple(accumulate(lengths, initial=0))
        parents = parents or [None] * len(lengths)
        places: list[Tensor] = []  # of what each segment sees, itself at the end
        for number, parent in enumerate(parents):
            own = torch.arange(ends[number], ends[number + 1])
            places.append(own if parent is None else torch.cat([places[parent], own]))
        shares = any(parent is not None for parent in parents)
        return cls(
            lengths=tuple(lengths),
            seen=tuple(len(place) - length for place, length in zip(places, lengths, strict=True)),
            ends=torch.tensor(ends, dtype=torch.int32),
            key_ends=torch.tensor(tuple(accumulate(map(len, places), initial=0)), dtype=torch.int32),
            keys=torch.cat(places) if shares else None,
        )

    def to(self, device: torch.device | str) -> "Segments":
        """The same with its tensors on another device."""
        keys = None if self.keys is None else self.keys.to(device)
        return Segments(self.lengths, self.seen, self.ends.to(device), self.key_ends.to(device), keys)

    def runs(self) -> list[tuple[int, int, int]]:
        """Every run of segments of one shape, in order: their number, what each sees above, its length."""
        shapes = zip(self.seen, self.lengths, strict=True)
        return [(len(list(run)), seen, length) for (seen, length), run in groupby(shapes)]


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
    # (T, H or groups, D); not states[0], whose gradient would be written into zeros of the whole size.
    rows = [states.squeeze(0).transpose(0, 1) for states in (query, key, value)]
    if segments.keys is not None:
        rows[1:] = [states.index_select(0, segments.keys) for states in rows[1:]]
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    one_kernel = query.is_cuda and is_half and _has_varlen_kernel(query.device)
    found = _in_one_kernel if one_kernel else _run_by_run
    return found(*rows, segments=segments, scaling=scaling)[None], None


def _run_by_run(query: Tensor, key: Tensor, value: Tensor, *, segments: Segments, scaling: float) -> Tensor:
    """Attention (T, H, D), one call per run of segments of one shape."""
    runs = segments.runs()
    asking_sizes = [count * length for count, _, length in runs]
    asked_sizes = [count * (seen + length) for count, seen, length in runs]
    shares_heads = query.shape[1] != key.shape[1]
    found = []
    split = (query.split(asking_sizes), key.split(asked_sizes), value.split(asked_sizes))
    for (count, seen, length), *parts in zip(runs, *split, strict=True):
        # (count * length, H, D) -> (count, H, length, D)
        queries, keys, values = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in parts)
        attended = scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=_causal_below(seen, length, query.device) if seen else None,
            is_causal=not seen,
            scale=scaling,
            enable_gqa=shares_heads,
        )
        found.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(found)


@lru_cache(maxsize=128)  # the shapes of a row, for all layers; more would hold memory for nothing
def _causal_below(seen: int, length: int, device: torch.device) -> Tensor:
    """Who sees whom where a segment goes on from ``seen`` tokens, (length, seen + length) bool."""
    return torch.ones(length, seen + length, dtype=torch.bool, device=device).tril(diagonal=seen)


def _in_one_kernel(
    query: Tensor, key: Tensor, value: Tensor, *, segments: Segments, scaling: float
) -> Tensor:
    """Attention (T, H, D) by PyTorch's kernel for sequences of many lengths."""
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {"enable_gqa": True} if _shares_heads(varlen_attn) else {}
    if not grouped:
        repeats = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    attended = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        segments.ends,
        segments.key_ends,
        max(segments.lengths),
        max(seen + length for _, seen, length in segments.runs()),
        scale=scaling,
        # Causal; where there are more keys than queries, the last query sees the last key.
        window_size=(-1, 0),
        **grouped,
    )
    assert isinstance(attended, Tensor), "more than the attention comes only when it is asked for"
    return attended


@cache
def _shares_heads(kernel: Callable[..., Any]) -> bool:
    """Whether this release of the kernel takes several heads of queries to one of keys and values, which are
    repeated otherwise: 7 and 8 times in the published models."""
    return "enable_gqa" in signature(kernel).parameters


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
