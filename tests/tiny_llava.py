"""A random tiny LLaVA-NeXT in Hugging Face layout (the real classes, made in a second)."""

from pathlib import Path

import torch

from models._compat import declare_torchvision_operators

declare_torchvision_operators()

from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import AddedToken  # noqa: E402
from transformers import (  # noqa: E402
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

from models.tiny.tokenizer import build_tokenizer  # noqa: E402

IMAGE_TOKEN = "<image>"
SIDE = 28  # of the encoder's picture: 4 patches of 14
# As in llava-hf/llama3-llava-next-8b-hf, in the words of the tiny tokenizer.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_llava(folder: Path, *, seed: int = 0) -> Path:
    """Write a LLaVA-NeXT of two text layers and a CLIP tower of two; returns ``folder``."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    token_id = tokenizer.convert_tokens_to_ids
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=14,
            projection_dim=64,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            bos_token_id=token_id("<|endoftext|>"),
            eos_token_id=token_id("<|im_end|>"),
            pad_token_id=token_id("<|endoftext|>"),
            initializer_range=0.2,
        ),
        image_token_index=token_id(IMAGE_TOKEN),
        image_grid_pinpoints=[[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]],
        image_seq_length=(SIDE // 14) ** 2,
        vision_feature_layer=-2,
    )
    torch.manual_seed(seed)
    LlavaNextForConditionalGeneration(config).float().save_pretrained(folder)
    _rename_as_published(folder / "model.safetensors")
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=config.image_grid_pinpoints,
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    return folder


def _rename_as_published(file: Path) -> None:
    """Give the tower's weights the names of the published checkpoints, which vLLM reads.

    transformers 5 writes others.
    """
    tower = "vision_tower."
    weights = {
        name.replace(tower, f"{tower}vision_model."): tensor for name, tensor in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
