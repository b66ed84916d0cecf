"""Trajectories whose work is fixed: so many looks, so many tokens, pictures of one size.

A model with random weights asks for no crop, and one that does asks when it likes. So the engine really
samples as many tokens as a turn has, and the turn is then what was written beforehand: a box at its end, or
an answer. Of a question's attempts every second one is right, so that every group has something to compare.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor

from models.config import Look
from models.encoding import Encoder
from models.protocol import render_box
from models.records import Question, RationaleStep, VLIRRecord
from models.region import Box
from models.tiny.world import PICTURE_SIZE, draw, sample_scene
from models.trajectory import AS_MANY_AS_FIT, Finish, GenerationRequest, SampledSpan
from tests.dictated_training import DictatedSampler
from tests.fixed_length import FixedLengthEngine, Pass

_FILLER = "I look closer. "
_RIGHT, _WRONG = "K7", "A1"
_BOXES_PER_SIDE = 4
MAX_LOOKS = _BOXES_PER_SIDE**2


@dataclass(frozen=True, slots=True)
class Writing:
    """What a trajectory holds: looks, and about so many sampled tokens, shared evenly among its turns.

    Every picture, view or crop, is shown with sides of ``picture_side`` pixels, a multiple of 28.
    """

    num_looks: int
    num_tokens: int
    picture_side: int

    def steps(self, encoder: Encoder, *, is_right: bool) -> tuple[RationaleStep, ...]:
        """The assistant's turn in its stretches, each but the last with another box."""
        share = self.num_tokens // (self.num_looks + 1)
        answer = f"</think><answer>{_RIGHT if is_right else _WRONG}</answer>"
        boxes = [self._box(number) for number in range(self.num_looks)]
        beginnings = ["<think>", *[""] * self.num_looks]
        texts = [
            filled(encoder, share, beginning=beginning, ending=ending)
            for beginning, ending in zip(beginnings, [*map(render_box, boxes), answer], strict=True)
        ]
        return tuple(RationaleStep(text, box) for text, box in zip(texts, [*boxes, None], strict=True))

    def record(self, encoder: Encoder, question: Question) -> VLIRRecord:
        """The same as a rationale record."""
        return VLIRRecord(
            question=question,
            steps=self.steps(encoder, is_right=True),
            final_answer=_RIGHT,
            seen_size=(self.picture_side, self.picture_side),
            teacher="written",
            prompt_id="written",
        )

    def _box(self, number: int) -> Box:
        """A sixteenth of the view, every time another."""
        side = self.picture_side / _BOXES_PER_SIDE
        left, top = number % _BOXES_PER_SIDE * side, number // _BOXES_PER_SIDE * side
        return Box(left, top, left + side, top + side, space="seen")


def rules(picture_side: int) -> Look:
    """Rules under which everything written is allowed."""
    return Look(
        max_pixels=picture_side**2,
        max_crops=MAX_LOOKS,
        max_turns=MAX_LOOKS + 1,
        max_sampled_tokens=AS_MANY_AS_FIT,
    )


def drawn_questions(count: int, *, picture_side: int) -> list[Question]:
    """Questions about different pictures, so large that a sixteenth of one, enlarged, fills its crop."""
    rng = np.random.default_rng(0)
    side = max(PICTURE_SIZE, 2 * picture_side)
    found = []
    for number in range(count):
        drawn = draw(sample_scene(rng, "train")).resize((side, side), Image.Resampling.BILINEAR)
        grain = rng.integers(0, 16, (side, side, 1), dtype=np.uint8)  # else empty corners are one picture
        image = Image.fromarray(np.asarray(drawn) // 16 * 15 + grain)
        asked = "What does the red card say?"
        found.append(Question.of_image(image, asked, id=f"question-{number}", answers=[_RIGHT]))
    return found


@cache
def filled(encoder: Encoder, num_tokens: int, *, beginning: str, ending: str) -> str:
    """Text with words before its ending until it has at least that many tokens."""
    text = beginning + ending
    while (missing := num_tokens - len(encoder.tokenize(text))) > 0:
        words = math.ceil(missing / len(encoder.tokenize(_FILLER)))
        text = beginning + _FILLER * words + text.removeprefix(beginning)
    return text


class WrittenSampler(DictatedSampler):
    """The engine of an R-GRPO run that works like vLLM and says what is written.

    ``at_update`` is told what vLLM did up to each update of the weights.
    """

    def __init__(
        self, engine: FixedLengthEngine, writing: Writing, at_update: Callable[[Pass], None]
    ) -> None:
        super().__init__(engine, self._turn)
        self.writing = writing
        self._at_update = at_update
        engine.watch()

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Give the engine new weights; a step of R-GRPO ends with it."""
        super().update_weights(weights, version=version)
        self._at_update(self._vllm.measured)
        self._vllm.measured = Pass()
        self.requests.clear()

    def _turn(self, request: GenerationRequest) -> tuple[SampledSpan, Finish]:
        number = sum(isinstance(span, SampledSpan) for span in request.spans)
        is_right = int(request.request_id.rpartition("#")[2]) % 2 == 0
        text = self.writing.steps(self._vllm.encoder, is_right=is_right)[number].text
        ids = self._vllm.encoder.tokenize(text)
        return SampledSpan(text, ids, (0.0,) * len(ids), self.version), "stop"
