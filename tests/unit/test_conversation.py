"""What was said before becomes context, as the model left it."""

import time

import pytest
from PIL import Image

from models.config import Look
from models.conversation import MAX_COMMANDS, Said, follow_up, retell
from models.engine import ScriptedEngine
from models.protocol import SEVERAL_IMAGES, split_at_commands
from models.rollout import MESSAGES, Asked, stream
from models.trajectory import CropSpan, GenerationRequest, SampledSpan, Span, TextSpan, TurnError
from tests.serving_server import NOISE

# A picture of 448 x 448 is seen at 112 x 112.
LOOK = Look(min_pixels=3136, max_pixels=12544, max_crops=2, max_sampled_tokens=400)
SMALL = Image.new("RGB", (56, 56), "red")


def command(*corners: int, image: int = 1) -> str:
    return f'{{"bbox_2d": {list(corners)}, "image": {image}}}'


def told(spans: tuple[Span, ...]) -> list[str]:
    """Spans as text, crops as their digest; texts of the model in a row are one."""
    found: list[str] = []
    for before, span in zip((None, *spans), spans):
        piece = span.picture.digest if isinstance(span, CropSpan) else span.text
        if isinstance(before, SampledSpan) and isinstance(span, SampledSpan):
            found[-1] += piece
        else:
            found.append(piece)
    return found


@pytest.mark.parametrize(
    "turns",
    [
        ["<answer>K7</answer>"],
        [f"<think>I look. {command(28, 28, 56, 56)}", " A formula {1}", ". </think><answer>K7</answer>"],
        [command(0, 0, 28, 28), command(0, 0, 28, 28), command(99, 9, 20, 30), "so <answer>K7</answer>"],
        [command(0, 0, 28, 28, image=2), command(0, 0, 28, 28, image=3), '{"bbox_2d": [1]}', "no answer"],
        [command(0, 0, 28, 28), command(28, 28, 56, 56), "x " + command(56, 56, 84, 84)],
    ],
)
def test_a_reply_is_retold_as_the_loop_gave_it(turns):
    def script(request: GenerationRequest) -> str:
        return turns[sum(isinstance(span, SampledSpan) for span in request.spans)]

    asked = Asked.about("q", "?", [NOISE, SMALL], LOOK)
    (trajectory,) = stream(
        ScriptedEngine(script), questions=[asked], look=LOOK, num_samples=1, temperature=0.0, seed=0
    )
    assert told(retell(asked, trajectory.sampled_text, LOOK)) == told(trajectory.spans)


def test_what_a_client_wrote_after_the_end_stays():
    over = "".join(command(28 * n, 0, 28 * n + 28, 28) for n in range(4)) + " so K7"
    spans = retell(Asked.about("q", "?", [NOISE], LOOK), over, LOOK)
    assert "".join(span.text for span in spans if isinstance(span, SampledSpan)) == over
    assert sum(isinstance(span, CropSpan) for span in spans) == LOOK.max_crops


def test_a_reply_of_nothing_but_commands_is_soon_only_text():
    hostile = "{bbox_2d}" * 7000
    began = time.process_time()
    spans = retell(Asked.about("q", "?", [NOISE], LOOK), hostile, LOOK)
    assert time.process_time() - began < 1
    assert "".join(span.text for span in spans if isinstance(span, SampledSpan)) == hostile
    assert sum(isinstance(span, TextSpan) for span in spans) == MAX_COMMANDS


def test_pieces_of_a_text_make_it_up():
    text = f"a {{1}} {command(1, 2, 3, 4)} b </answer> c {{bbox_2d}} }}{{ d"
    pieces = split_at_commands(text)
    assert "".join(pieces) == text
    assert pieces == [f"a {{1}} {command(1, 2, 3, 4)}", " b </answer>", " c {bbox_2d}", " }{ d"]
    assert split_at_commands("") == []


EARLIER = [
    (Said("what is it?", (NOISE,)), f"Look {command(0, 0, 28, 28)} K7"),
    (
        Said("and  here?", (SMALL,), (4,)),
        f"{command(0, 0, 28, 28, image=2)} red {command(0, 0, 9, 9, image=3)}",
    ),
]


def followed(max_earlier_crops: int = 9, earlier_look: Look | None = LOOK) -> Asked:
    question = Said("which?", (SMALL, NOISE), (0, 6))
    return follow_up(
        "q", question, EARLIER, LOOK, earlier_look=earlier_look, max_earlier_crops=max_earlier_crops
    )


def test_pictures_are_numbered_over_the_conversation():
    asked = followed()
    assert asked.images == (NOISE, SMALL, SMALL, NOISE)
    assert [view.original.width for view in asked.views] == [448, 56, 56, 448]
    assert asked.prompt.system == LOOK.system + SEVERAL_IMAGES.format(number=4)
    assert (len(asked.prompt.pictures), asked.prompt.places) == (2, (0, 6))
    first, second = asked.prompt.earlier
    assert list(second.question.parts())[1] == second.question.pictures[0]
    assert [span.image for span in first.reply if isinstance(span, CropSpan)] == [1]
    assert [span.image for span in second.reply if isinstance(span, CropSpan)] == [2]
    (refused,) = [span for span in second.reply if isinstance(span, TextSpan)]
    assert refused.text == MESSAGES[TurnError.NO_SUCH_IMAGE], "the third picture came later"
    assert len(asked.prompt.shown()) == 6
    assert asked.prompt.shown()[:2] == (first.question.pictures[0], *first.crops)


def test_the_newest_crops_stay_where_there_is_no_room_for_all():
    first, second = followed(max_earlier_crops=1).prompt.earlier
    assert (first.crops, len(second.crops)) == ((), 1)
    assert [len(exchange.crops) for exchange in followed(max_earlier_crops=0).prompt.earlier] == [0, 0]


def test_asked_directly_earlier_replies_are_text():
    assert [exchange.reply for exchange in followed(earlier_look=None).prompt.earlier] == [
        (SampledSpan(reply),) for _, reply in EARLIER
    ]
