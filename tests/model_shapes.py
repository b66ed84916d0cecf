"""Model folders of the real shapes with random weights, in Hugging Face layout.

Speed does not depend on what the weights say, so a GPU can be measured without a download. What is not real
is the tokenizer: that of the tiny model, with a thousand or so entries. Embedding and output head have the
ids beyond it too, at their full cost; they are never sampled.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from models.config import Precision, resolve_model_path
from models.policy import DTYPES  # before transformers' model: it declares torchvision's operators
from models.tiny.tokenizer import END_TOKEN, PAD_TOKEN, build_tokenizer

from transformers import (  # isort: skip
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

_STD = 0.02  # initializer_range of the published models


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides what a model costs; ``vocab_size`` 0 takes the tokenizer's. The tower's width is 1280."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int = 0
    tied: bool = False
    vision_layers: int = 32
    vision_hidden_size: int = 1280
    vision_intermediate_size: int = 3420


# 3b and 7b: config.json of Qwen/Qwen2.5-VL-3B-Instruct and Qwen/Qwen2.5-VL-7B-Instruct.
SHAPES: Mapping[str, Shape] = {
    "small": Shape(
        hidden_size=768,
        intermediate_size=2048,
        num_layers=12,
        num_heads=12,
        num_kv_heads=4,
        vision_layers=4,
        vision_hidden_size=512,
        vision_intermediate_size=1376,
    ),
    "3b": Shape(
        hidden_size=2048,
        intermediate_size=11008,
        num_layers=36,
        num_heads=16,
        num_kv_heads=2,
        vocab_size=151936,
        tied=True,
    ),
    "7b": Shape(
        hidden_size=3584,
        intermediate_size=18944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        vocab_size=152064,
    ),
}
NAMES = ("tiny", *SHAPES)


def model_folder(name: str, folder: Path, *, num_layers: int = 0, dtype: Precision = "bfloat16") -> Path:
    """A model of a shape; ``tiny`` is the embedded one, others are written into ``folder``.

    ``num_layers`` of the language model, in its real widths; 0 takes all.
    """
    if name == "tiny":
        return resolve_model_path("embedded")
    shape = SHAPES[name]
    return save_random(replace(shape, num_layers=num_layers or shape.num_layers), folder, dtype=dtype)


def save_random(shape: Shape, folder: Path, *, dtype: Precision, seed: int = 0) -> Path:
    """Write a model with random weights and biases, made on a GPU if there is one; returns ``folder``."""
    tokenizer = build_tokenizer()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(configuration(shape, tokenizer)).to(DTYPES[dtype])
    model.to_empty(device=device)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=_STD, generator=generator)
    model.save_pretrained(folder)
    del model, parameter
    torch.cuda.empty_cache()  # vLLM counts what is kept as taken; does nothing without a GPU
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)
    return folder


def configuration(shape: Shape, tokenizer: Any) -> Qwen2_5_VLConfig:
    """What ``config.json`` says of a shape, with the ids of a tokenizer."""
    token_id = tokenizer.convert_tokens_to_ids
    eighth = shape.hidden_size // shape.num_heads // 8  # of a head: published are 16, 24, 24 of 64 pairs
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": shape.vocab_size or math.ceil(len(tokenizer) / 8) * 8,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "type": "mrope",
                "mrope_section": [eighth, eighth * 3 // 2, eighth * 3 // 2],
                "rope_theta": 1000000.0,
            },
            "tie_word_embeddings": shape.tied,
            "bos_token_id": token_id(PAD_TOKEN),
            "eos_token_id": token_id(END_TOKEN),
            "pad_token_id": token_id(PAD_TOKEN),
            "initializer_range": _STD,
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden_size,
            "intermediate_size": shape.vision_intermediate_size,
            "num_heads": 16,
            "out_hidden_size": shape.hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": _every_quarter(shape.vision_layers),
            "tokens_per_second": 2,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=shape.tied,
    )


def _every_quarter(depth: int) -> list[int]:
    """The blocks whose attention is not windowed: of 32 they are 7, 15, 23, 31."""
    return list(range(max(1, depth // 4) - 1, depth, max(1, depth // 4)))
