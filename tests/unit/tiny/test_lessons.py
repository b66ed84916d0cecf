"""Lessons of the base: positions, loss weights, gazes, and what must never be in them."""

import numpy as np
import pytest
import torch

from models.protocol import SYSTEM_PROMPT
from models.tiny import phrases, world
from models.tiny.architecture import build_model
from models.tiny.batches import collate, forward_hidden
from models.tiny.gaze import Gaze, GazeRecorder
from models.tiny.lessons import (
    CROP_KINDS,
    Encoder,
    Lesson,
    Sight,
    Turn,
    add_locate_turn,
    open_chat,
    overlap_shares,
    sample_crop_box,
    sample_lesson,
)
from models.tiny.pictures import encode_pictures, patches_of, token_grid
from models.tiny.tokenizer import build_tokenizer
from models.tiny.warmup import sample_page, view_labels

PLAIN: dict[Turn, float] = {"locate": 1, "read_crop": 2, "read": 1, "add": 1, "where": 1, "arithmetic": 1}
TURNS: dict[Turn, float] = {**PLAIN, "prose_locate": 2, "prose_read": 2, "prose_where": 1, "prose_sum": 1}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(build_tokenizer())


@pytest.fixture(scope="module")
def sight() -> Sight:
    return Sight.of(world.sample_scene(np.random.default_rng(3), "train"))


@pytest.fixture
def lessons(encoder: Encoder, sight: Sight) -> list[Lesson]:
    rng = np.random.default_rng(0)
    return [sample_lesson(sight, encoder, rng, TURNS, max_tokens=160) for _ in range(8)]


def test_lessons_match_the_library_in_features_positions_and_logits(
    encoder: Encoder, lessons: list[Lesson]
) -> None:
    model = build_model(encoder.tokenizer, seed=0).eval()
    ids, _, positions = collate(lessons, length=160)
    pictures = [picture for lesson in lessons for picture in lesson.pictures]
    grids = torch.tensor([[1, picture.shape[0] // 14, picture.shape[1] // 14] for picture in pictures])
    # The library takes both frames of a still picture: (patches, 3 colours x 2 frames x 14 x 14).
    frames = [np.repeat(patches_of(picture).reshape(-1, 3, 1, 196), 2, axis=2) for picture in pictures]
    pixels = torch.from_numpy(np.concatenate(frames).reshape(-1, 1176)).float() / 127.5 - 1
    with torch.no_grad():
        features = encode_pictures(model.model.visual, pictures)
        expected = model.model.visual(pixels, grids).pooler_output
        assert torch.allclose(features, expected, atol=1e-4)

        is_image = (ids == encoder.image_token).int()
        mask = torch.arange(160)[None] < torch.tensor([len(lesson.ids) for lesson in lessons])[:, None]
        library_positions, _ = model.model.get_rope_index(
            ids, mm_token_type_ids=is_image, image_grid_thw=grids, attention_mask=mask.long()
        )
        assert torch.equal(library_positions[:, mask], positions[:, mask])

        hidden = forward_hidden(model, ids, positions, features, image_token=encoder.image_token)
        output = model(
            input_ids=ids,
            attention_mask=mask.long(),
            pixel_values=pixels,
            image_grid_thw=grids,
            mm_token_type_ids=is_image,
        )
        assert torch.allclose(model.lm_head(hidden)[mask], output.logits[mask], atol=1e-4)


def test_plain_turns_teach_the_answer_with_its_end(encoder: Encoder, sight: Sight) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        lesson = sample_lesson(sight, encoder, rng, PLAIN, max_tokens=160)
        text = encoder.tokenizer.decode(lesson.ids)
        learned = [token for token, weight in zip(lesson.ids, lesson.weights) if weight > 0]
        assert "<|im_start|>" not in encoder.tokenizer.decode(learned)
        assert learned.count(encoder.end_token) == text.count("<|im_start|>assistant\n")


def test_random_words_are_context_and_never_answers(encoder: Encoder, lessons: list[Lesson]) -> None:
    words = set(encoder.prose.tolist())
    for lesson in lessons:
        assert len(lesson.ids) <= 160
        learned = {token for token, weight in zip(lesson.ids, lesson.weights) if weight > 0}
        assert not learned & words


def test_the_base_never_sees_the_protocol(encoder: Encoder, lessons: list[Lesson]) -> None:
    for lesson in lessons:
        text = encoder.tokenizer.decode(lesson.ids)
        assert "think>" not in text
        assert "answer>" not in text
        assert SYSTEM_PROMPT not in text
        for turn in text.split("<|im_start|>assistant\n")[1:]:
            assert "<|vision_start|>" not in turn.split("<|im_end|>")[0]


def test_locate_turn_answers_with_the_box_and_looks_at_the_cards_cell(encoder: Encoder, sight: Sight) -> None:
    card = sight.scene.cards[0]
    lesson = open_chat(encoder)
    first_key = lesson.picture(sight.view)
    add_locate_turn(lesson, card, first_key)
    assert encoder.tokenizer.decode(lesson.ids).endswith(
        phrases.box_json(world.view_box(card.box)) + "<|im_end|>"
    )
    for place, gaze in enumerate(lesson.gazes):
        # The token after the gaze's query is coordinate number `place`.
        assert encoder.tokenizer.decode([lesson.ids[gaze.query + 1]]) == str(world.view_box(card.box)[place])
        assert gaze.weights.argmax() == world.card_cell(card)
        assert lesson.ids[first_key : first_key + 16] == [encoder.image_token] * 16


@pytest.mark.parametrize("kind", CROP_KINDS)
def test_crop_boxes_hold_the_code_and_stay_in_the_picture(kind: str, sight: Sight) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        card = sight.scene.cards[int(rng.integers(len(sight.scene.cards)))]
        x1, y1, x2, y2 = sample_crop_box(card, kind, rng)
        left, top, right, bottom = card.text_box
        assert 0 <= x1 <= left
        assert 0 <= y1 <= top
        assert right <= x2 <= world.PICTURE_SIZE
        assert bottom <= y2 <= world.PICTURE_SIZE


def test_overlap_shares_are_areas() -> None:
    # Region 40 x 20 in 1 x 4 tokens of 10 px; the part covers 5 px of the second and 10 px of the third.
    shares = overlap_shares((15, 0, 30, 20), (0, 0, 40, 20), 1, 4)
    assert shares is not None
    assert shares == pytest.approx([0, 1 / 3, 2 / 3, 0])
    assert overlap_shares((50, 0, 60, 20), (0, 0, 40, 20), 1, 4) is None


def test_gaze_loss_is_zero_only_where_attention_is_the_target(encoder: Encoder) -> None:
    model = build_model(encoder.tokenizer, seed=0).eval()
    recorder = GazeRecorder(model.model.language_model)
    ids = torch.tensor([[5, 6, 7, 8]])
    positions = torch.arange(4).expand(3, 1, 4)
    with torch.no_grad():
        forward_hidden(model, ids, positions, None, image_token=-1)
        # Token 0 can only look at itself, so its attention is the target and the divergence is 0.
        certain = Gaze(0, 0, np.ones(1, np.float32), (0, 1))
        elsewhere = Gaze(3, 0, np.ones(1, np.float32), (0, 1))
        assert recorder.loss([[certain]]).item() == pytest.approx(0, abs=1e-5)
        assert recorder.loss([[elsewhere]]).item() > 0.01
        assert recorder.loss([[]]).item() == 0


def test_warmup_labels_name_the_cards_and_characters(sight: Sight) -> None:
    labels = view_labels(sight.scene)
    assert (labels[:, 0] < len(world.COLORS)).sum() == len(sight.scene.cards)
    card = sight.scene.cards[0]
    assert tuple(labels[world.card_cell(card), 1:] * 2) == world.view_box(card.box)
    page, characters = sample_page(np.random.default_rng(0))
    assert token_grid(page) == (4, 4)
    assert characters.shape == (16, 2, 20)
    assert characters.sum() > 0
