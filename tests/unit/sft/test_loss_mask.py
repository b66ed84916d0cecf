"""Which tokens of a record carry loss, found out a second time from its ids alone."""

import pytest

from models.encoding import Encoder
from tests.training_data import LOOK, records


@pytest.fixture
def encoder(untied_model):
    return Encoder.load(untied_model)


def mask_by_hand(encoder, ids):
    """Everything after the last header of the assistant, but for what stands from a picture's first marker to
    its last, and for what follows the end of the turn."""
    header = encoder.tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    starts = [at for at in range(len(ids)) if ids[at : at + len(header)] == header]
    mask, in_picture, is_over = [], False, False
    for at, token in enumerate(ids):
        in_picture = in_picture or token == encoder.vision_start_id
        mask.append(at >= starts[-1] + len(header) and not in_picture and not is_over)
        in_picture = in_picture and token != encoder.vision_end_id
        is_over = is_over or (at > starts[-1] + len(header) and token == encoder.eos_id)
    return mask


def test_loss_is_on_rationale_boxes_answer_and_end_of_turn_only(encoder):
    found = records(6)
    assert {len(record.steps) for record in found} == {1, 2}  # with and without a crop
    for record in found:
        encoded = encoder.encode_record(record, LOOK)
        ids = encoded.ids.tolist()
        assert encoded.sampled.tolist() == mask_by_hand(encoder, ids)
        written = encoder.tokenizer.decode(encoded.ids[encoded.sampled])
        assert written == "".join(step.text for step in record.steps) + "<|im_end|>"
        markers = {encoder.image_token_id, encoder.vision_start_id, encoder.vision_end_id}
        assert not markers & set(encoded.ids[encoded.sampled].tolist())
