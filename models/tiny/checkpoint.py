"""The base's folder as ``from_pretrained`` and vLLM load it: weights, tokenizer, processor, provenance."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from models.tiny.architecture import MAX_PIXELS, MERGE_SIZE, MIN_PIXELS, PATCH_SIZE
from models.tiny.tokenizer import CHAT_TEMPLATE, END_TOKEN, PAD_TOKEN

WEIGHTS_FILE = "model.safetensors"
PROVENANCE_FILE = "provenance.json"
_GRAY = [0.5, 0.5, 0.5]  # mean and deviation: pixels become -1 .. 1


def save_base(
    model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write everything but the provenance. The model must be untied (``architecture.untie``)."""
    pad, end = (tokenizer.convert_tokens_to_ids(token) for token in (PAD_TOKEN, END_TOKEN))
    model.generation_config = GenerationConfig(bos_token_id=pad, eos_token_id=end, pad_token_id=pad)
    model.float().save_pretrained(folder)
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors writes it for its owner only
    pixels: dict[str, Any] = {
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
        "image_mean": _GRAY,
        "image_std": _GRAY,
    }
    images, videos = Qwen2VLImageProcessor(**pixels), Qwen2VLVideoProcessor(**pixels)
    processor = Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)
    processor.save_pretrained(folder)
    # Older readers, vLLM among them, look for these two instead of processor_config.json.
    images.save_pretrained(folder)


def write_provenance(folder: Path, provenance: dict[str, Any]) -> None:
    """Write how the weights were made, with their digest."""
    record = provenance | {"sha256": {WEIGHTS_FILE: weights_digest(folder)}}
    (folder / PROVENANCE_FILE).write_text(json.dumps(record, indent=2) + "\n")


def read_provenance(folder: Path) -> dict[str, Any]:
    """The record written by :func:`write_provenance`."""
    record: dict[str, Any] = json.loads((folder / PROVENANCE_FILE).read_text())
    return record


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights file, hexadecimal."""
    return hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
