"""Layers of vLLM on a CPU with the C++ kernels of its CPU build, where vLLM calls PyTorch many times instead.

vLLM leaves the fusing of such calls to torch.compile. A small model is not worth its compiling
(``engine.enforce_eager``), and then they are a quarter of its forward pass. Once registered
(:func:`register_layers`), vLLM takes these classes in place of its own, and calls ``forward_cpu`` without
torch.compile only.
"""

from typing import Any

import torch
from torch import Tensor
from vllm import _custom_ops as kernels
from vllm.model_executor.custom_op import CustomOp
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding

# The kernels compute with vectors of so many values; rows of others they refuse, or in bfloat16 crash with.
_VECTOR = 8


class FusedRMSNorm(RMSNorm):
    """RMSNorm, after the sum with a residual if there is one, in one call."""

    def forward_cpu(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The norm (..., D); with a residual (..., D) both that of the sum and the sum, in place."""
        if self.variance_size_override is not None or not self.has_weight or x.shape[-1] % _VECTOR:
            return self.forward_native(x, residual)
        if residual is None:
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
            kernels.rms_norm(out, x.contiguous(), self.weight, self.variance_epsilon)
            return out
        if not (x.is_contiguous() and residual.is_contiguous()):
            return self.forward_native(x, residual)
        kernels.fused_add_rms_norm(x, residual, self.weight, self.variance_epsilon)
        return x, residual


class TabledMRotaryEmbedding(MRotaryEmbedding):
    """Rotary embedding by time, row and column (mRoPE): its table of cosines and sines is the same in all
    layers and made once a pass, and turns queries and keys by the kernel for one position per token."""

    _made: tuple[Tensor, Tensor, Tensor] | None = None  # positions, and the rows and the table for them

    def forward_cpu(
        self, positions: Tensor, query: Tensor, key: Tensor | None = None, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """``query`` and ``key`` (T, heads x head size) turned in place; ``positions`` (3, T)."""
        is_whole = self.rotary_dim % (2 * _VECTOR) == self.head_size % _VECTOR == 0
        if positions.ndim == 1 or self.mrope_interleaved or not is_whole:
            return self.forward_native(positions, query, key, offsets)
        if self._made is None or self._made[0] is not positions:
            self._made = (positions, torch.arange(positions.shape[1]), self._table(positions, query))
        _, rows, table = self._made
        kernels.rotary_embedding(rows, query, key, self.head_size, table, self.is_neox_style)
        return query, key

    def _table(self, positions: Tensor, query: Tensor) -> Tensor:
        """Cosines, then sines, (T, rotary size): of each section of frequencies by its own axis."""
        assert self.mrope_section, "positions of three axes come with sections"
        axes = self._match_cos_sin_cache_dtype(query)[positions].chunk(2, dim=-1)
        parts = [axis.split(self.mrope_section, dim=-1) for axis in axes]  # each (3, T, section)
        return torch.cat([part[number] for split in parts for number, part in enumerate(split)], dim=-1)


def register_layers(platform: Any) -> None:
    """Have engines that start from now on use these layers, where vLLM's ``platform`` is a CPU; once per
    process. Elsewhere vLLM knows its own by names that would change."""
    if platform.is_cpu():
        CustomOp.register_oot(FusedRMSNorm, name="RMSNorm")
        CustomOp.register_oot(TabledMRotaryEmbedding, name="MRotaryEmbedding")
