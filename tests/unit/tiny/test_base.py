"""The committed base: it loads, it is the file its provenance describes, and it can do its base tasks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from models import tiny
from models.tiny import phrases, world
from models.tiny.checkpoint import read_provenance, weights_digest
from models.tiny.lessons import Encoder, Sight, add_crop_prompt, add_locate_prompt, open_chat
from models.tiny.pretrain import training_data_digest
from models.tiny.scoring import answers, iou
from models.tiny.tokenizer import build_tokenizer

BASE = Path(tiny.__file__).parent / "base"


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32).eval()


def test_weights_are_the_ones_the_provenance_describes() -> None:
    provenance = read_provenance(BASE)
    assert provenance["sha256"] == {"model.safetensors": weights_digest(BASE)}
    assert provenance["scores"]["num_scenes"] >= 500
    seed = provenance["recipe"]["seed"]
    assert provenance["training_pictures_sha256"] == training_data_digest(seed)


def test_the_folder_stays_small_enough_to_commit() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 20_000_000


def test_saved_tokenizer_is_the_built_one() -> None:
    processor = AutoProcessor.from_pretrained(BASE)
    assert processor.tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_processor_and_lessons_agree_on_ids_and_pixels() -> None:
    processor = AutoProcessor.from_pretrained(BASE)
    sight = Sight.of(world.sample_scene(np.random.default_rng(0), "validation"))
    question = phrases.read_question(sight.scene.cards[0].color)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    chat = processor.apply_chat_template(
        [{"role": "system", "content": phrases.BASE_SYSTEM_PROMPT}, {"role": "user", "content": content}],
        add_generation_prompt=True,
    )
    inputs = processor(text=[chat], images=[sight.picture], return_tensors="pt")
    lesson = open_chat(Encoder(processor.tokenizer))
    lesson.picture(sight.view)
    assert inputs["input_ids"][0].tolist() == lesson.text(question).ask().ids
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert inputs["pixel_values"].mean().item() == pytest.approx((sight.view / 127.5 - 1).mean(), abs=1e-3)


def test_embeddings_are_untied(model: Qwen2_5_VLForConditionalGeneration) -> None:
    # vLLM's weight reload keeps a stale output head when they are tied.
    assert model.lm_head.weight.data_ptr() != model.model.language_model.embed_tokens.weight.data_ptr()


def test_base_locates_and_reads(model: Qwen2_5_VLForConditionalGeneration) -> None:
    encoder, rng = Encoder(build_tokenizer()), np.random.default_rng(1)
    sights = [Sight.of(world.sample_scene(rng, "validation")) for _ in range(20)]
    locate, read = [], []
    for sight in sights:
        card = sight.scene.cards[0]
        prompt = open_chat(encoder)
        prompt.picture(sight.view)
        locate.append(add_locate_prompt(prompt, card.color))
        prompt = open_chat(encoder)
        add_crop_prompt(prompt, sight, card.box, in_two_steps=False)
        read.append(prompt)
    on_card = 0
    for text, sight in zip(answers(model, locate, num_tokens=10), sights):
        x1, y1, x2, y2 = json.loads(text)["bbox_2d"]
        on_card += iou((x1, y1, x2, y2), world.view_box(sight.scene.cards[0].box)) > 0.5
    codes = answers(model, read, num_tokens=3)
    # The full scores are in the provenance; these floors only catch a broken file.
    assert on_card >= 16
    assert sum(code == sight.scene.cards[0].code for code, sight in zip(codes, sights)) >= 14
