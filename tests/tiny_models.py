"""A random tiny Qwen2.5-VL in Hugging Face layout (the real classes, made in a second), and turns for it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.encoding import Encoder  # before transformers: it declares torchvision's operators
from models.engine import Engine
from models.region import Box, Picture
from models.tiny.tokenizer import build_tokenizer
from models.trajectory import (
    BoxEvent,
    CropSpan,
    GenerationRequest,
    Piece,
    Prompt,
    SampledSpan,
    Span,
    StopReason,
    Trajectory,
)

from transformers import (  # isort: skip
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

# Two ids beyond the tokenizer, as real checkpoints have: the embedding is padded, the ids mean nothing.
NUM_UNUSED_IDS = 2


def save_random_model(folder: Path, *, tied: bool, seed: int = 0) -> Path:
    """Write a model with grouped-query attention and a windowed vision tower; returns ``folder``.

    Weights are drawn wide (std 0.2): log-probs are far from uniform, and every part of the input matters.
    """
    tokenizer = build_tokenizer()
    token_id = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + NUM_UNUSED_IDS,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "type": "mrope",
                "mrope_section": [4, 6, 6],
                "rope_theta": 10000.0,
            },
            "tie_word_embeddings": tied,
            "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": token_id("<|endoftext|>"),
            "initializer_range": 0.2,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    Qwen2_5_VLForConditionalGeneration(config).float().save_pretrained(folder)
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(folder)
    return folder


def as_published(folder: Path) -> Path:
    """Lay a model's files out as those of Qwen/Qwen2.5-VL are, which older transformers wrote: the language
    model's settings stand beside the others, and weights have other names; returns ``folder``.
    """
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    for name in ("model_type", "dtype", "tie_word_embeddings"):
        text.pop(name, None)
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    config["torch_dtype"] = config.pop("dtype", "float32")
    (folder / "config.json").write_text(json.dumps({**text, **config}, indent=2))
    weights = load_file(folder / "model.safetensors")
    older = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): tensor
        for name, tensor in weights.items()
    }
    save_file(older, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def load_reference(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """The model as transformers itself loads it."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)


def picture(width: int, height: int, *, seed: int = 0) -> Picture:
    """A picture of coloured noise; both sides must be multiples of 28."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Picture.of(Image.fromarray(pixels))


def sampled(encoder: Encoder, text: str, *, version: int = 3) -> SampledSpan:
    """A span as an engine reports it: ids of the text, and a different log-prob for every token."""
    ids = encoder.tokenize(text)
    return SampledSpan(text, ids, tuple(-0.1 * (i + 1) for i in range(len(ids))), version)


def turn_with_crops(encoder: Encoder, num_crops: int) -> tuple[Span, ...]:
    """An assistant's turn that looks ``num_crops`` times, at crops of different shapes, and answers."""
    spans: list[Span] = [sampled(encoder, "<think>I look closer.")]
    for crop in range(num_crops):
        corners = (10 * crop, 20, 10 * crop + 30, 50)
        spans.append(sampled(encoder, f' {{"bbox_2d": {list(corners)}}}'))
        # 56 x 56, 84 x 56, 112 x 56, ...: 4, 6, 8, ... visual tokens
        shown = picture(28 * (crop + 2), 56, seed=crop + 1)
        spans.append(CropSpan(shown, Box(*map(float, corners), space="seen")))
    return (*spans, sampled(encoder, " It says K7.</think><answer>K7</answer>"))


def trajectory_with_crops(encoder: Encoder, num_crops: int, *, view_seed: int = 0) -> Trajectory:
    """A finished trajectory about a 112 x 112 view (16 visual tokens)."""
    prompt = Prompt("what code is on the red card?", (picture(112, 112, seed=view_seed),), "Look twice.")
    spans = turn_with_crops(encoder, num_crops)
    events = tuple(BoxEvent(span.box) for span in spans if isinstance(span, CropSpan))
    return Trajectory(f"q{num_crops}", 0, prompt, spans, events, StopReason.ANSWERED)


def finish(engine: Engine, requests: Sequence[GenerationRequest]) -> dict[str, Piece]:
    """What the engine makes of all requests together, by request id in the order given."""
    for one in requests:
        engine.submit(one)
    pieces: dict[str, Piece] = {}
    while len(pieces) < len(requests):
        pieces.update({piece.request_id: piece for piece in engine.step()})
    return {one.request_id: pieces[one.request_id] for one in requests}
