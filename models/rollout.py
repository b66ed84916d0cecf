"""The look-again loop (paper 3.2). Data generation, R-GRPO, evaluation and serving all use this one.

Every live trajectory is in flight in the engine at once: a trajectory that asked for a crop goes back into
the queue as soon as its crop is cut; nobody waits for the others (no barrier between turns).

    >>> from models.config import Look
    >>> from models.rollout import rollout
    >>> trajectories = rollout(engine, [question], look=Look())
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image

from models.config import CropSourceName, Look
from models.corruption import box_to_cut
from models.engine import Engine
from models.errors import EngineError, RecordError, RegionError
from models.protocol import ANSWER_STOP, STOPS, BadJSON, box_request
from models.records import Question
from models.region import Box, Picture, PixelBudget, Size, View, find_fault, look, look_low_resolution, see
from models.trajectory import (
    BoxEvent,
    CropSpan,
    GenerationRequest,
    Piece,
    Prompt,
    Span,
    StopReason,
    TextSpan,
    Trajectory,
    TurnError,
)

# What a crop command is answered with; the names are those of the ablations.
CropSource = Callable[[Image.Image, Box, PixelBudget, np.random.Generator], tuple[Picture, Box] | None]


def crop_from_original(
    image: Image.Image, box: Box, budget: PixelBudget, rng: np.random.Generator
) -> tuple[Picture, Box]:
    """The paper's rule: the region, cut from the original picture and zoomed."""
    view = View.of(Size(image.width, image.height), budget)
    return look(image, view.convert(box, "original"), budget), box


def crop_low_resolution(
    image: Image.Image, box: Box, budget: PixelBudget, rng: np.random.Generator
) -> tuple[Picture, Box]:
    """The fair control: the same region and number of tokens, but only what the model already saw."""
    view = View.of(Size(image.width, image.height), budget)
    return look_low_resolution(image, view.convert(box, "original"), budget), box


def crop_random_region(
    image: Image.Image, box: Box, budget: PixelBudget, rng: np.random.Generator
) -> tuple[Picture, Box]:
    """A region of the asked size at a uniformly random place: what is the choice of the region worth?"""
    view = View.of(Size(image.width, image.height), budget)
    x = float(rng.uniform(0, view.seen.width - box.width))
    y = float(rng.uniform(0, view.seen.height - box.height))
    moved = Box(x, y, x + box.width, y + box.height, "seen")
    return look(image, view.convert(moved, "original"), budget), moved


def no_crop(image: Image.Image, box: Box, budget: PixelBudget, rng: np.random.Generator) -> None:
    """Nothing is injected: the model goes on right after its crop command."""
    return


CROP_SOURCES: Mapping[CropSourceName, CropSource] = MappingProxyType(
    {
        "original": crop_from_original,
        "low_resolution": crop_low_resolution,
        "random_region": crop_random_region,
        "none": no_crop,
    }
)

# What the model is told about a refused box when the policy is "tell".
MESSAGES: Mapping[TurnError, str] = MappingProxyType(
    {
        TurnError.BAD_JSON: " [crop refused: bbox_2d must be four numbers]",
        TurnError.INVERTED_BOX: " [crop refused: x1 must be less than x2 and y1 less than y2]",
        TurnError.OUTSIDE_IMAGE: " [crop refused: the box is outside the image]",
        TurnError.TOO_SMALL: " [crop refused: the box is too small]",
        TurnError.ASPECT_RATIO: " [crop refused: the box is too long]",
        TurnError.REPEATED_BOX: " [crop refused: this region was already shown]",
    }
)


def rollout(
    engine: Engine,
    questions: Iterable[Question],
    *,
    look: Look,
    num_samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Trajectory]:
    """All trajectories, grouped by question in the order given, ``num_samples`` of each.

    Raises EngineError when the engine itself fails; a failure of one request ends that trajectory with
    ``StopReason.ENGINE_ERROR``. Raises RecordError when two questions have the same id.
    """
    asked = [question for question in questions for _ in range(num_samples)]
    order = {(question.id, index % num_samples): index for index, question in enumerate(asked)}
    if len(order) < len(asked):
        raise RecordError(f"{len(asked) - len(order)} attempts share a question id; ids must be unique.")
    finished: list[Trajectory | None] = [None] * len(asked)
    for trajectory in stream(
        engine, questions=asked, look=look, num_samples=num_samples, temperature=temperature, seed=seed
    ):
        finished[order[trajectory.question_id, trajectory.sample_index]] = trajectory
    return [trajectory for trajectory in finished if trajectory is not None]


def stream(
    engine: Engine,
    *,
    questions: Iterable["Question | Asked"],
    look: Look,
    num_samples: int,
    temperature: float,
    seed: int,
    max_in_flight: int | None = None,
    stops: tuple[str, ...] = STOPS,
) -> Iterator[Trajectory]:
    """Trajectories as they finish. ``questions`` holds each question ``num_samples`` times in a row.

    A question may be made ready by the caller, who then deals with pictures that cannot be used. Without
    ``stops`` the model writes until it ends by itself or reaches a limit.
    """
    waiting = _episodes(
        questions, look=look, num_samples=num_samples, temperature=temperature, seed=seed, stops=stops
    )
    live: dict[str, Episode] = {}
    exhausted = False
    try:
        while True:
            while not exhausted and (max_in_flight is None or len(live) < max_in_flight):
                episode = next(waiting, None)
                if episode is None:
                    exhausted = True
                    break
                live[episode.id] = episode
                engine.submit(episode.request())
            if not live:
                return
            for piece in engine.step():
                if piece.request_id not in live:
                    raise EngineError(f"The engine returned {piece.request_id!r}, which nobody waits for.")
                episode = live[piece.request_id]
                episode.receive(piece)
                if episode.stop is None:
                    engine.submit(episode.request())
                else:
                    del live[episode.id]
                    yield episode.trajectory()
    finally:
        # The caller stopped early or something failed: leave no request running in the engine.
        for request_id in live:
            engine.abort(request_id)


def _episodes(
    questions: Iterable["Question | Asked"],
    *,
    look: Look,
    num_samples: int,
    temperature: float,
    seed: int,
    stops: tuple[str, ...],
) -> Iterator["Episode"]:
    """One episode per entry; the samples of a question, which come in a row, share its decoded picture."""
    asked: Asked | None = None
    for index, question in enumerate(questions):
        if isinstance(question, Asked):
            asked = question
        elif asked is None or asked.question is not question:
            asked = Asked.of(question, look)
        yield Episode(asked, index % num_samples, look=look, temperature=temperature, seed=seed, stops=stops)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question made ready to be asked: its picture decoded and smart-resized once for all samples."""

    question: Question
    image: Image.Image
    view: View
    prompt: Prompt

    @classmethod
    def of(cls, question: Question, look: Look) -> "Asked":
        """Decode and resize. Raises RecordError or RegionError for a picture that cannot be used."""
        image = question.image()
        view = View.of(Size(image.width, image.height), look.budget)
        prompt = Prompt(text=question.text, pictures=(see(image, look.budget),), system=look.system)
        return cls(question, image, view, prompt)


class Episode:
    """One trajectory while it is alive: takes pieces, answers crop commands, knows when it is over."""

    def __init__(
        self,
        asked: Asked,
        sample_index: int,
        *,
        look: Look,
        temperature: float = 0.0,
        seed: int = 0,
        stops: tuple[str, ...] = STOPS,
    ) -> None:
        question = asked.question
        self.id = f"{question.id}#{sample_index}"
        self.stop: StopReason | None = None
        self._asked = asked
        self._sample_index = sample_index
        self._look = look
        self._temperature = temperature
        self._stops = stops
        self._seed = derive_seed(seed, question.id, sample_index)
        self._rng = np.random.default_rng(self._seed)
        self._spans: list[Span] = []
        self._events: list[BoxEvent] = []
        self._turns = 0
        self._sampled = 0
        self._detail = ""

    def request(self) -> GenerationRequest:
        """The next turn to generate."""
        return GenerationRequest(
            request_id=self.id,
            prompt=self._asked.prompt,
            spans=tuple(self._spans),
            stops=self._stops,
            max_new_tokens=self._look.max_sampled_tokens - self._sampled,
            temperature=self._temperature,
            # A fresh stream per turn: the same seed would repeat the same random numbers after every crop.
            seed=derive_seed(self._seed, self.id, self._turns),
        )

    def receive(self, piece: Piece) -> None:
        """Append what was sampled and decide: answered, over, a crop, or on with the text."""
        if piece.finish == "error":
            self._end(StopReason.ENGINE_ERROR, piece.error)
            return
        self._spans.append(piece.span)
        self._turns += 1
        # An engine that does not count tokens is bounded by characters, which are at least as many.
        num_tokens = piece.span.num_tokens
        self._sampled += len(piece.span.text) if num_tokens is None else num_tokens
        if piece.finish == "stop" and ANSWER_STOP in piece.span.text:
            self._end(StopReason.ANSWERED)
        elif piece.finish == "end":
            self._end(StopReason.END_WITHOUT_ANSWER)
        elif piece.finish == "context":
            self._end(StopReason.CONTEXT_LIMIT)
        elif piece.finish == "length" or self._sampled >= self._look.max_sampled_tokens:
            self._end(StopReason.TOKEN_LIMIT)
        else:
            self._answer_command()
            if self.stop is None and self._turns >= self._look.max_turns:
                self._end(StopReason.TURN_LIMIT)

    def trajectory(self) -> Trajectory:
        """What happened, once the episode has ended."""
        if self.stop is None:
            raise EngineError(f"Trajectory {self.id!r} is still running.")
        return Trajectory(
            question_id=self._asked.question.id,
            sample_index=self._sample_index,
            prompt=self._asked.prompt,
            spans=tuple(self._spans),
            events=tuple(self._events),
            stop=self.stop,
            detail=self._detail,
        )

    def _answer_command(self) -> None:
        """Give the crop that the text so far asks for, if it asks for one."""
        written = "".join(span.text for span in self._spans if not isinstance(span, CropSpan))
        box = box_request(written)
        if box is None:
            return
        if isinstance(box, BadJSON):
            self._refuse(None, TurnError.BAD_JSON, box.text)
            return
        if sum(event.error is None for event in self._events) >= self._look.max_crops:
            self._end(StopReason.CROP_LIMIT)
            return
        accepted = tuple(event.box for event in self._events if event.box is not None and event.error is None)
        fault = find_fault(
            box,
            self._asked.view,
            accepted,
            min_side=self._look.min_side,
            max_aspect_ratio=self._look.max_aspect_ratio,
            repeated_iou=self._look.repeated_iou,
        )
        if fault is not None:
            self._refuse(box, TurnError(fault.value), f"box {list(box.corners())}")
            return
        try:
            cut = box_to_cut(box, self._asked.view, self._look.corruption, self._rng)
            given = CROP_SOURCES[self._look.crop_source](self._asked.image, cut, self._look.budget, self._rng)
        except RegionError as unusable:
            # Not too long as seen, but too long in the original, whose sides are scaled differently.
            self._refuse(box, TurnError.ASPECT_RATIO, str(unusable))
            return
        self._events.append(BoxEvent(box))
        if given is not None:
            self._spans.append(CropSpan(*given))

    def _refuse(self, box: Box | None, error: TurnError, detail: str) -> None:
        self._events.append(BoxEvent(box, error))
        if error in self._look.end_on:
            self._end(StopReason.PROTOCOL_ERROR, f"{error}: {detail}")
        else:
            self._spans.append(TextSpan(MESSAGES[error]))

    def _end(self, stop: StopReason, detail: str = "") -> None:
        self.stop = stop
        self._detail = detail


def derive_seed(seed: int, name: str, index: int) -> int:
    """A 63-bit seed that depends on nothing but its arguments: stable across processes and machines."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
