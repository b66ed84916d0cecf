"""What a GPU holds while a published shape is trained in bfloat16: counted, on no GPU.

    python -m tests.memory_forecast [--tokens N]

Per weight DeepSpeed holds 2 bytes to compute with, 12 of master weight and moments, 4 of gradient (as counted
among the live tensors of a run on a CPU); ZeRO 2 divides the last two among the ranks, ZeRO 3 all. In the
optimiser's step AdamW makes one tensor more of the gradient's size. What a layer keeps for
its gradient is counted on tensors without data. Not counted: CUDA itself, the frozen tower (1.3 GB), features
of pictures, and memory that fragments.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from unittest import mock

import torch

from models.output_head import CHUNK_BYTES
from models.policy import DTYPES  # before transformers' model: it declares torchvision's operators
from models.segments import ATTENTION, Segments, _in_one_kernel
from models.tiny.tokenizer import build_tokenizer
from tests.model_shapes import SHAPES, Shape, configuration

from transformers import Qwen2_5_VLForConditionalGeneration  # isort: skip

_CHUNK_HEIGHT = 4.4  # times CHUNK_BYTES, see there
_BUCKET_BYTES = 2 * 500_000_000  # DeepSpeed's reduce_bucket_size, in bfloat16
_LIVE_BYTES = 2 * 1_000_000_000  # ZeRO-3: stage3_max_live_parameters, gathered at once
# Shape, stage of ZeRO, ranks; the first, second and fourth are the presets one-gpu, paper-3b and paper-7b.
ROWS = (("3b", 2, 1), ("3b", 2, 4), ("7b", 2, 2), ("7b", 2, 4), ("7b", 3, 4), ("7b", 2, 8))


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes on one GPU: of weights, of master weights and moments, of the gradient, at the height of a
    backward pass (without gradient checkpointing, and with), and in the optimiser's step."""

    weights: float
    adam: float
    gradient: float
    backward_kept: float
    backward: float
    step: float


def forecast(shape: Shape, *, zero_stage: int, num_ranks: int, tokens: int) -> Forecast:
    """Of a micro-batch of so many tokens, however many are sampled; ``zero_stage`` is 2 or 3."""
    count = parameters(shape)
    weights = 2 * count / num_ranks + _LIVE_BYTES if zero_stage == 3 else 2 * count
    adam, gradient = 12 * count / num_ranks, 4 * count / num_ranks
    layer = tokens * layer_bytes(shape)
    inputs = tokens * 2 * shape.hidden_size * shape.num_layers
    again = layer + tokens * 3 * 2 * shape.intermediate_size  # and the MLP's gradients, the largest
    head = 2 * 2 * shape.hidden_size * shape.vocab_size  # its gradient so far, and a chunk's
    chunk = _CHUNK_HEIGHT * CHUNK_BYTES + head
    states = weights + adam + gradient + _BUCKET_BYTES
    return Forecast(
        weights=weights,
        adam=adam,
        gradient=gradient,
        backward_kept=states + layer * shape.num_layers + chunk,
        backward=states + inputs + max(again, chunk),
        step=weights + adam + 2 * gradient,
    )


@cache
def parameters(shape: Shape) -> int:
    """Weights of the language model, a tied head once."""
    model = _model(shape)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "visual" not in name)


@cache
def layer_bytes(shape: Shape, *, tokens: int = 256) -> float:
    """What one layer keeps for its gradient, bytes per token, with the kernel that GPUs have."""
    model = _model(replace(shape, num_layers=1)).model.language_model
    hidden = torch.empty(1, tokens, shape.hidden_size, dtype=torch.bfloat16, device="meta")
    positions = torch.zeros(3, 1, tokens, dtype=torch.int64, device="meta")
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with (
        mock.patch("models.segments._run_by_run", _in_one_kernel),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model.layers[0](
            hidden.requires_grad_(),
            position_embeddings=model.rotary_emb(hidden, positions),
            segments=Segments.of((tokens,)).to("meta"),
        )
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights) / tokens


def _model(shape: Shape) -> Qwen2_5_VLForConditionalGeneration:
    """Without data."""
    config = configuration(shape, build_tokenizer())
    config.get_text_config()._attn_implementation = ATTENTION
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config).to(DTYPES["bfloat16"])
    model.tie_weights()
    return model


def table(tokens: int) -> str:
    """The rows as Markdown, GB (10^9 bytes)."""
    lines = [
        "| model | ZeRO | GPUs | weights | AdamW | gradient | backward, layers kept | backward | step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, zero_stage, num_ranks in ROWS:
        found = forecast(SHAPES[name], zero_stage=zero_stage, num_ranks=num_ranks, tokens=tokens)
        parts = (
            *(found.weights, found.adam, found.gradient),
            *(found.backward_kept, found.backward, found.step),
        )
        numbers = " | ".join(f"{part / 1e9:.0f}" for part in parts)
        lines.append(f"| {name.upper()} | {zero_stage} | {num_ranks} | {numbers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.memory_forecast")
    parser.add_argument("--tokens", type=int, default=20480, help="of a micro-batch")
    print(table(parser.parse_args(arguments).tokens))
    return 0


if __name__ == "__main__":
    sys.exit(main())
