"""The tiny model: the real ``Qwen2_5_VLForConditionalGeneration`` with about 2.5 million parameters.

The language model is narrow (SFT and R-GRPO train it on two CPU cores); the rest is vision tower, frozen
later on. Every picture of at most 112 x 112 pixels is one attention window, so windowed and full attention
are the same thing. Embeddings are untied in the saved model: vLLM's weight reload keeps a stale output head
when they are tied.
"""

import math
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from models.tiny import tokenizer as tiny_tokenizer
from models.tiny import world

HIDDEN_SIZE = 128
NUM_LAYERS = 4
HEAD_SIZE = 32  # supported by vLLM's attention kernels
NUM_HEADS = HIDDEN_SIZE // HEAD_SIZE
INTERMEDIATE_SIZE = 512
VISION_HIDDEN_SIZE = 128
VISION_LAYERS = 3
VISION_INTERMEDIATE_SIZE = 384
PATCH_SIZE = 14
MERGE_SIZE = 2
TOKEN_SIZE = PATCH_SIZE * MERGE_SIZE  # pixels of one side of a visual token
MIN_PIXELS, MAX_PIXELS = 4 * TOKEN_SIZE**2, 16 * TOKEN_SIZE**2  # 3136 and 12544
INIT_STD = 0.04  # measured: 0.02 learns more slowly at this width


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The configuration for a tokenizer; the vocabulary is rounded up to a multiple of 8."""
    token_id = tokenizer.convert_tokens_to_ids
    pad, end = token_id(tiny_tokenizer.PAD_TOKEN), token_id(tiny_tokenizer.END_TOKEN)
    text = {
        "vocab_size": math.ceil(len(tokenizer) / 8) * 8,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_HEADS,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "type": "mrope",
            "mrope_section": [HEAD_SIZE // 8, HEAD_SIZE * 3 // 16, HEAD_SIZE * 3 // 16],
            "rope_theta": 10000.0,
        },
        "tie_word_embeddings": False,
        "bos_token_id": pad,
        "eos_token_id": end,
        "pad_token_id": pad,
        "initializer_range": INIT_STD,
    }
    vision = {
        "depth": VISION_LAYERS,
        "hidden_size": VISION_HIDDEN_SIZE,
        "intermediate_size": VISION_INTERMEDIATE_SIZE,
        "num_heads": VISION_HIDDEN_SIZE // HEAD_SIZE,
        "out_hidden_size": HIDDEN_SIZE,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "window_size": world.PICTURE_SIZE,
        "fullatt_block_indexes": [VISION_LAYERS - 1],
        "initializer_range": INIT_STD,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A fresh model in fp32 with the initialisations that make small models learn soon (see below).

    While it is trained, input and output embeddings are one parameter; :func:`untie` separates them before
    saving.
    """
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer)).float()
    generator = torch.Generator().manual_seed(seed + 1)
    for layer in model.model.language_model.layers:
        _start_as_matching_and_copying(layer.self_attn, generator)
    _order_numbers(model.model.language_model.embed_tokens.weight, tokenizer, generator)
    model.lm_head.weight = model.model.language_model.embed_tokens.weight
    return model


def untie(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Give the output head its own copy of the embedding matrix, in place."""
    model.lm_head.weight = torch.nn.Parameter(model.model.language_model.embed_tokens.weight.detach().clone())


@torch.no_grad()
def _start_as_matching_and_copying(attention: Any, generator: torch.Generator) -> None:
    """Mimetic initialisation: W_q = W_k and W_o = W_v^T, scaled orthogonal: match, then copy."""
    size = HIDDEN_SIZE
    match = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    copy = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    attention.q_proj.weight.copy_(match)
    attention.k_proj.weight.copy_(match)
    attention.v_proj.weight.copy_(0.7 * copy)
    attention.o_proj.weight.copy_(0.7 * copy.T)


@torch.no_grad()
def _order_numbers(
    embeddings: torch.Tensor, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator
) -> None:
    """Start the integers' embeddings (vocab, hidden) as random projections of Fourier features of their
    value.

    Neighbouring coordinates then begin as neighbours. The unit is the view's side: boxes are written in its
    pixels.
    """
    waves = torch.tensor([0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24]) * math.pi
    projection = torch.randn(2 * len(waves), HIDDEN_SIZE, generator=generator) / math.sqrt(len(waves))
    for value in range(tiny_tokenizer.LARGEST_INTEGER + 1):
        phase = waves * value / world.VIEW_SIZE
        token = tokenizer.convert_tokens_to_ids(str(value))
        embeddings[token] = INIT_STD * (torch.cat([phase.cos(), phase.sin()]) @ projection)
