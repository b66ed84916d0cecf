from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import Look
from models.encoding import NOT_SAMPLED, Encoder, TextSoFar, mrope_positions
from models.errors import EncodingError
from models.records import Question, RationaleStep, VLIRRecord
from models.region import Box
from models.rollout import rollout
from models.tiny import world
from models.trajectory import (
    CropSpan,
    Exchange,
    GenerationRequest,
    Piece,
    Prompt,
    SampledSpan,
    StopReason,
    TextSpan,
)
from tests.tiny_models import NUM_UNUSED_IDS, load_reference, picture, sampled, trajectory_with_crops

# 448 x 448 pictures are seen at 112 x 112.
LOOK = Look(min_pixels=3136, max_pixels=12544, system="Look twice.")


@pytest.fixture(scope="module")
def encoder(untied_model: Path) -> Encoder:
    return Encoder.load(untied_model)


def test_collapsed_stream_has_one_pad_per_picture(encoder):
    trajectory = trajectory_with_crops(encoder, 2)
    collapsed = encoder.collapse(trajectory.prompt, trajectory.spans)
    assert collapsed.ids.count(encoder.image_token_id) == 3
    assert [p.size.width for p in collapsed.pictures] == [112, 56, 84]


def test_encoded_stream_has_one_pad_per_visual_token(encoder):
    # view 112 x 112: 4 x 4 = 16; crops 56 x 56: 2 x 2 = 4 and 84 x 56: 2 x 3 = 6
    encoded = encoder.encode(trajectory_with_crops(encoder, 2))
    assert (encoded.ids == encoder.image_token_id).sum() == 16 + 4 + 6
    assert encoded.positions.shape == (3, len(encoded))


def test_sampled_ids_are_exactly_what_the_engine_returned(encoder):
    trajectory = trajectory_with_crops(encoder, 3)
    encoded = encoder.encode(trajectory)
    spans = [span for span in trajectory.spans if isinstance(span, SampledSpan)]
    assert tuple(encoded.ids[encoded.sampled]) == sum((span.token_ids for span in spans), ())
    assert encoder.decode(encoded.ids[encoded.sampled].tolist()) == trajectory.sampled_text


def test_ids_that_the_tokenizer_would_merge_are_kept_apart(encoder):
    # "card" sampled letter by letter: tokenising the text again would give fewer ids.
    letters = tuple(encoder.tokenize(letter)[0] for letter in "card")
    assert len(encoder.tokenize("card")) < len(letters)
    trajectory = trajectory_with_crops(encoder, 0)
    span = SampledSpan("card", letters, (-1.0,) * 4)
    encoded = encoder.encode(replace(trajectory, spans=(span,)))
    assert tuple(encoded.ids[encoded.sampled]) == letters


def test_ids_that_their_text_would_not_give_are_told(encoder):
    letters = [encoder.tokenize(letter)[0] for letter in "card"]
    half = encoder.tokenize("界")[:2]  # bytes that make no character: their text is another one
    same = [encoder.tokenize("card"), (*encoder.tokenize("</answer>"), encoder.eos_id), ()]
    assert encoder.drifts([letters, *same, half]) == [True, False, False, False, True]
    assert encoder.drifts([]) == []


def test_only_what_the_engine_sampled_is_marked(encoder):
    trajectory = trajectory_with_crops(encoder, 1)
    refusal = TextSpan(" [crop refused: the box is too small]")
    with_refusal = replace(trajectory, spans=(*trajectory.spans[:2], refusal, *trajectory.spans[2:]))
    plain, told = encoder.encode(trajectory), encoder.encode(with_refusal)
    assert len(told) == len(plain) + len(encoder.tokenize(refusal.text))
    assert told.num_sampled == plain.num_sampled
    vision = (encoder.vision_start_id, encoder.image_token_id, encoder.vision_end_id)
    assert not np.isin(told.ids[told.sampled], vision).any()
    prompt_length = len(encoder.expand_ids(encoder.collapse(trajectory.prompt, ())))
    assert not told.sampled[:prompt_length].any()


def test_a_crop_that_did_not_fit_into_the_engine_does_not_lengthen_what_is_trained_on(encoder):
    trajectory = trajectory_with_crops(encoder, 2)
    cut_off = next(end for end, span in enumerate(trajectory.spans) if isinstance(span, CropSpan))
    before = encoder.encode(replace(trajectory, spans=trajectory.spans[:cut_off]))
    # The engine refused the next turn: its context is full.
    refused = (*trajectory.spans[: cut_off + 1], SampledSpan("", (), ()))
    found = encoder.encode(replace(trajectory, spans=refused, stop=StopReason.CONTEXT_LIMIT))
    assert found.ids.tolist() == before.ids.tolist()
    assert found.sampled[-1]
    assert len(found.pictures) == 1


def test_logprobs_and_versions_stand_at_their_tokens(encoder):
    trajectory = trajectory_with_crops(encoder, 2)
    encoded = encoder.encode(trajectory)
    spans = [span for span in trajectory.spans if isinstance(span, SampledSpan)]
    expected = np.float32(sum((span.logprobs for span in spans), ()))
    assert np.array_equal(encoded.engine_logprobs[encoded.sampled], expected)
    assert (encoded.engine_logprobs[~encoded.sampled] == 0).all()
    assert (encoded.versions[encoded.sampled] == 3).all()
    assert (encoded.versions[~encoded.sampled] == NOT_SAMPLED).all()


def test_a_crop_is_wrapped_in_vision_markers(encoder):
    crop = CropSpan(picture(28, 56), Box(0, 0, 9, 9, "seen"))
    before = len(encoder.collapse(Prompt("?"), ()).ids)
    ids = encoder.collapse(Prompt("?"), (crop,)).ids[before:]
    assert ids == (encoder.vision_start_id, encoder.image_token_id, encoder.vision_end_id)


def test_the_prompt_follows_the_chat_template(encoder):
    ids = encoder.collapse(Prompt("how many?", (picture(28, 28),), "Look twice."), ()).ids
    assert encoder.tokenizer.decode(ids) == (
        "<|im_start|>system\nLook twice.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>how many?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_pictures_stand_at_their_places_in_the_prompt(encoder):
    pictures = (picture(28, 28), picture(56, 28))
    prompt = Prompt("is it like that?", pictures, None, (6, 16))
    (start, pad, end) = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    collapsed = encoder.collapse(prompt, ())
    user = encoder.tokenizer.decode(collapsed.ids).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    assert user == f"is it {start}{pad}{end}like that?{start}{pad}{end}"
    assert collapsed.pictures == pictures


def test_a_conversation_follows_the_chat_template(encoder):
    view, crop, other = picture(28, 28), picture(56, 28), picture(28, 56)
    span = CropSpan(crop, Box(0, 0, 9, 9, "seen"))
    reply = (SampledSpan("I look {}"), span, SampledSpan("K7"), TextSpan(" [no]"))
    prompt = Prompt("sure?", (other,), "Look twice.", (4,), (Exchange(Prompt("code?", (view,)), reply),))
    collapsed = encoder.collapse(prompt, ())
    pad = "<|vision_start|><|image_pad|><|vision_end|>"
    assert encoder.tokenizer.decode(collapsed.ids) == (
        "<|im_start|>system\nLook twice.<|im_end|>\n"
        f"<|im_start|>user\n{pad}code?<|im_end|>\n"
        f"<|im_start|>assistant\nI look {{}}{pad}K7 [no]<|im_end|>\n"
        f"<|im_start|>user\nsure{pad}?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert collapsed.pictures == (view, crop, other)
    assert not any(collapsed.sampled)


def test_mrope_positions_worked_out_by_hand():
    # Two texts, a picture of 2 rows and 3 columns, two texts. The picture starts at position 2; the text
    # after it goes on at 2 + max(2, 3) = 5.
    is_pad = np.array([False] * 2 + [True] * 6 + [False] * 2)
    assert mrope_positions(is_pad, [(2, 3)]).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],  # time
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],  # row
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],  # column
    ]


@pytest.mark.parametrize("num_crops", range(5))
def test_mrope_positions_equal_those_of_transformers(encoder, untied_model, num_crops):
    model = load_reference(untied_model)
    encoded = encoder.encode(trajectory_with_crops(encoder, num_crops))
    ids = torch.from_numpy(encoded.ids)[None]
    _, grids = encoder.patches(encoded.pictures)
    is_image = (ids == encoder.image_token_id).int()
    expected, _ = model.model.get_rope_index(ids, is_image, image_grid_thw=grids)
    assert np.array_equal(encoded.positions, expected[:, 0].numpy())


def test_mrope_positions_refuse_a_missing_picture():
    with pytest.raises(EncodingError, match=r"\[6\].*need \[\]"):
        mrope_positions(np.array([False] + [True] * 6), [])


def test_patches_are_those_that_the_resizing_processor_would_make(encoder):
    # A seen picture is a fixed point of smart-resize, so the processor with resizing on must not touch it.
    shown = picture(84, 56)
    patches, grids = encoder.patches([shown])
    values = encoder.processor.image_processor([shown.image], return_tensors="pt")
    assert grids.tolist() == [[1, 4, 6]]
    assert torch.equal(patches, values["pixel_values"])


def test_vision_tokens_and_ids_without_text_are_banned(encoder):
    unused = range(encoder.vocab_size - NUM_UNUSED_IDS, encoder.vocab_size)
    assert set(unused) <= set(encoder.banned_ids)
    vision = {encoder.vision_start_id, encoder.vision_end_id, encoder.image_token_id}
    assert vision <= set(encoder.banned_ids)
    assert encoder.eos_id not in encoder.banned_ids
    assert len(encoder.banned_ids) == 5 + NUM_UNUSED_IDS  # start, end, vision pad, image pad, video pad


def test_a_sampled_vision_token_is_our_error(encoder):
    span = SampledSpan("", (encoder.image_token_id,), (-1.0,))
    with pytest.raises(EncodingError, match="banned"):
        encoder.collapse(Prompt("?"), (span,))


def test_a_trajectory_without_logprobs_cannot_be_trained_on(encoder):
    trajectory = trajectory_with_crops(encoder, 0)
    ids = encoder.tokenize("card")
    with pytest.raises(EncodingError, match="no log-probs"):
        encoder.encode(replace(trajectory, spans=(SampledSpan("card", ids),)))
    with pytest.raises(EncodingError, match="no token ids"):
        encoder.collapse(Prompt("?"), (SampledSpan("card"),))


def test_a_question_must_not_smuggle_in_a_picture(encoder):
    with pytest.raises(EncodingError, match="2 image pads for 1 pictures"):
        encoder.collapse(Prompt("what is <|image_pad|>?", (picture(28, 28),)), ())


def test_injected_text_must_not_contain_special_tokens(encoder):
    with pytest.raises(EncodingError, match="im_end"):
        encoder.collapse(Prompt("?"), (TextSpan("over<|im_end|>"),))


def test_a_picture_that_was_not_resized_is_refused(encoder):
    with pytest.raises(EncodingError, match="30x28"):
        encoder.expand(encoder.collapse(Prompt("?", (picture(30, 28),)), ()))


def drawn_question(seed: int) -> tuple[Question, world.Scene]:
    scene = world.sample_scene(np.random.default_rng(seed), "train")
    asked = world.ask(scene, "read", np.random.default_rng(seed))
    question = Question.of_image(world.draw(scene), asked.text, answers=[asked.answer])
    return question, scene


def looking_record(seed: int = 0) -> VLIRRecord:
    question, scene = drawn_question(seed)
    corners = world.view_box(scene.cards[0].box)
    box = Box(*map(float, corners), space="seen")
    first = f'<think>I look closer. {{"bbox_2d": [{", ".join(map(str, corners))}]}}'
    steps = (RationaleStep(first, box), RationaleStep(" It says K7.</think><answer>K7</answer>"))
    return VLIRRecord(question, steps, "K7", seen_size=(112, 112), teacher="t", prompt_id="p")


def test_a_record_trains_its_text_and_the_end_token(encoder):
    record = looking_record()
    encoded = encoder.encode_record(record, LOOK)
    trained = encoded.ids[encoded.sampled].tolist()
    assert trained[-1] == encoder.eos_id
    assert encoder.decode(trained) == record.text
    assert len(encoded.pictures) == 2


class EchoEngine:
    """Answers each turn with the next step of a record, as token ids that its tokenizer gives."""

    def __init__(self, encoder: Encoder, record: VLIRRecord) -> None:
        self._encoder = encoder
        self._steps = list(record.steps)
        self._waiting: list[GenerationRequest] = []

    def submit(self, request: GenerationRequest) -> None:
        self._waiting.append(request)

    def step(self) -> list[Piece]:
        request = self._waiting.pop()
        text = self._steps.pop(0).text
        return [Piece(request.request_id, sampled(self._encoder, text), "stop")]

    def abort(self, request_id: str) -> None: ...

    def close(self) -> None: ...


def test_training_on_a_record_sees_what_the_rollout_sees(encoder):
    record = looking_record()
    (trajectory,) = rollout(EchoEngine(encoder, record), [record.question], look=LOOK)
    rolled_out, trained = encoder.encode(trajectory), encoder.encode_record(record, LOOK)
    # The same sequence, crops included, but for the end token that closes a record.
    assert rolled_out.ids.tolist() == trained.ids[:-1].tolist()
    assert rolled_out.pictures == trained.pictures
    assert np.array_equal(rolled_out.sampled, trained.sampled[:-1])
    assert np.array_equal(rolled_out.positions, trained.positions[:, :-1])


def test_a_record_made_for_another_pixel_budget_is_refused(encoder):
    record = replace(looking_record(), seen_size=(224, 224))
    with pytest.raises(EncodingError, match=r"\(224, 224\).*\(112, 112\)"):
        encoder.encode_record(record, LOOK)


def test_text_that_grows_holds_whole_characters_only(encoder):
    text = "It says 界é🙂, K7."
    ids = encoder.tokenize(text)
    assert len(ids) > len("界é🙂"), "the tokenizer knows these characters byte by byte"
    so_far = TextSoFar(encoder)
    pieces = [so_far.grow(ids[: number + 1]) for number in range(len(ids))]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_text_of_bytes_that_make_no_character_is_that_of_the_whole(encoder):
    first, second = encoder.tokenize("界")[:2], encoder.tokenize(" says K7.")
    ids = [*first, *second, first[0], *second]
    so_far = TextSoFar(encoder)
    grown = "".join(so_far.grow(ids[: number + 1]) for number in range(len(ids)))
    assert grown == encoder.decode(ids)
    assert grown.count("\ufffd") == 2
