"""Small honest pieces that the tests of this stage share."""

from collections.abc import Callable

import pytest

from models.config import Look, QuestionMix, VLIRConfig
from models.crops import crop_from_original
from models.presets import load_preset
from models.protocol import box_request, render_box
from models.records import Question, RationaleStep, VLIRRecord
from models.region import Picture, Size, View
from models.trajectory import BoxEvent, CropSpan, Prompt, SampledSpan, StopReason, Trajectory
from models.vlir.drawn import DrawnQuestion, draw_questions
from models.vlir.filters import Candidate
from models.vlir.generate import to_record

MIX = {"read": 0.5, "add": 0.3, "where": 0.2}


@pytest.fixture(scope="session")
def look() -> Look:
    """The tiny preset's rules of looking, with room for a teacher."""
    return load_preset("tiny").look.model_copy(update={"max_sampled_tokens": 2048})


@pytest.fixture(scope="session")
def perfect() -> VLIRConfig:
    """A teacher without faults: boxes on the card, no slip of any kind."""
    return VLIRConfig(
        box_jitter=0.0,
        box_growth=0.0,
        wrong_region_rate=0.0,
        misread_rate=0.0,
        needless_look_rate=0.0,
        muddled_rate=0.0,
        junk_rate=0.0,
    )


@pytest.fixture(scope="session")
def drawn() -> list[DrawnQuestion]:
    """Forty questions of the training split."""
    return list(draw_questions("train", QuestionMix(num_questions=40, kinds=MIX), seed=3))


@pytest.fixture(scope="session")
def reading(drawn: list[DrawnQuestion]) -> DrawnQuestion:
    """A question that needs one look."""
    return next(item for item in drawn if item.asked.kind == "read")


@pytest.fixture
def make_candidate(look: Look) -> Callable[..., Candidate]:
    """Make a try at a question from the pieces its teacher wrote; a crop is given after each but the last."""

    def make(question: Question, *pieces: str, stop: StopReason = StopReason.ANSWERED) -> Candidate:
        spans: list[SampledSpan | CropSpan] = []
        events = []
        for piece in pieces[:-1]:
            picture, box = crop_from_original(question.image(), box_request(piece).box, look.budget, None)
            spans += [SampledSpan(piece), CropSpan(picture, box)]
            events.append(BoxEvent(box))
        spans.append(SampledSpan(pieces[-1]))
        prompt = Prompt(question.text, (Picture.of(question.image()),))
        trajectory = Trajectory(question.id, 0, prompt, tuple(spans), tuple(events), stop)
        record = to_record(question, trajectory, look=look, teacher="test", prompt_id="test")
        return Candidate(record, trajectory)

    return make


@pytest.fixture
def sound_record(reading: DrawnQuestion) -> VLIRRecord:
    """A record without fault, written by hand."""
    question = reading.question
    code = question.answers[0]
    box = question.gold_boxes[0]
    seen = View(Size(448, 448), Size(112, 112)).convert(box, "seen")
    command = render_box(seen)
    return VLIRRecord(
        question=question,
        steps=(
            RationaleStep(f"<think>I look closer at the card. {command}", seen),
            RationaleStep(f" It says {code}.</think><answer>{code}</answer>"),
        ),
        final_answer=code,
        seen_size=(112, 112),
        teacher="test",
        prompt_id="test",
    )
