"""Pictures cross to the engine's process once."""

from models.region import Box
from models.serving.engine_process import KnownPictures
from models.trajectory import CropSpan, GenerationRequest, Prompt
from tests.tiny_models import picture


def request(*, seed: int = 0, num_crops: int = 0) -> GenerationRequest:
    prompt = Prompt("what is it?", (picture(112, 112, seed=seed),), None)
    box = Box(0, 0, 9, 9, "seen")
    spans = tuple(CropSpan(picture(56, 56, seed=100 + number), box) for number in range(num_crops))
    return GenerationRequest("r", prompt, spans, (), 6, 0.0)


def test_a_picture_crosses_once():
    here, there = KnownPictures(), KnownPictures()
    sizes = []
    for asked in (request(), request(num_crops=1), request(num_crops=1), request(seed=1)):
        data = here.pack(asked)
        assert there.unpack(data) == asked
        sizes.append(len(data))
    whole, crop = 112 * 112 * 3, 56 * 56 * 3
    assert sizes[0] > whole
    assert crop < sizes[1] < whole
    assert sizes[2] < crop
    assert sizes[3] > whole


def test_both_ends_forget_the_same():
    room = 3 * 112 * 112 * 3  # three pictures
    here, there = KnownPictures(room), KnownPictures(room)
    for seed in (0, 1, 2, 0, 3, 1, 4, 0, 0, 2, 5, 3):
        asked = request(seed=seed)
        assert there.unpack(here.pack(asked)) == asked
