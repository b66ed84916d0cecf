"""The look-again loop (paper 3.2). Data generation, R-GRPO, evaluation and serving all use this one.

Every live trajectory is in flight in the engine at once: a trajectory that asked for a crop goes back into
the queue as soon as its crop is cut; nobody waits for the others (no barrier between turns).

    >>> from models.config import Look
    >>> from models.rollout import rollout
    >>> trajectories = rollout(engine, [question], look=Look())
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image

from models.ahead import ahead
from models.config import Look
from models.corruption import box_to_cut
from models.crops import CROP_SOURCES
from models.engine import Engine
from models.errors import EngineError, RecordError, RegionError
from models.protocol import ANSWER_STOP, SEVERAL_IMAGES, STOPS, BadJSON, BoxRequest, box_request
from models.records import Question
from models.region import Size, View, find_fault, see
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

# What the model is told about a refused box when the policy is "tell".
MESSAGES: Mapping[TurnError, str] = MappingProxyType(
    {
        TurnError.BAD_JSON: " [crop refused: bbox_2d must be four numbers]",
        TurnError.NO_SUCH_IMAGE: " [crop refused: there is no such image]",
        TurnError.INVERTED_BOX: " [crop refused: x1 must be less than x2 and y1 less than y2]",
        TurnError.OUTSIDE_IMAGE: " [crop refused: the box is outside the image]",
        TurnError.TOO_SMALL: " [crop refused: the box is too small]",
        TurnError.ASPECT_RATIO: " [crop refused: the box is too long]",
        TurnError.REPEATED_BOX: " [crop refused: this region was already shown]",
    }
)


def rollout(
    engine: Engine,
    questions: Iterable["Question | Asked"],
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
    loop = Loop(engine)
    exhausted = False
    try:
        while True:
            while not exhausted and (max_in_flight is None or len(loop.live) < max_in_flight):
                episode = next(waiting, None)
                if episode is None:
                    exhausted = True
                    break
                loop.start(episode)
            if not loop.live:
                return
            for episode in loop.step():
                if episode.stop is not None:
                    yield episode.trajectory()
    finally:
        # The caller stopped early or something failed: leave no request running in the engine.
        for request_id in tuple(loop.live):
            loop.abort(request_id)


class Loop:
    """The episodes that are in flight in one engine; new ones may start at any time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.live: dict[str, Episode] = {}

    def start(self, episode: "Episode") -> None:
        """Take an episode in and submit its first turn; its id must not be in flight."""
        self.live[episode.id] = episode
        self.engine.submit(episode.request())

    def step(self) -> "Iterator[Episode]":
        """One step of the engine: the episodes that got a piece, as they are answered. One that has ended is
        live no more, another is on its way again.
        """
        for piece in self.engine.step():
            episode = self.live.get(piece.request_id)
            if episode is None:
                raise EngineError(f"The engine returned {piece.request_id!r}, which nobody waits for.")
            episode.receive(piece)
            if episode.stop is None:
                self.engine.submit(episode.request())
            else:
                del self.live[episode.id]
            yield episode

    def abort(self, episode_id: str) -> None:
        """Forget an episode and free its place in the engine; unknown ids are ignored."""
        if self.live.pop(episode_id, None) is not None:
            self.engine.abort(episode_id)


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
    made: tuple[Question, Asked] | None = None

    def ready(question: Question | Asked) -> Asked:
        nonlocal made
        if isinstance(question, Asked):
            return question
        if made is None or made[0] is not question:
            made = question, Asked.of(question, look)
        return made[1]

    for index, (_, asked) in enumerate(ahead(ready, questions)):
        yield Episode(asked, index % num_samples, look=look, temperature=temperature, seed=seed, stops=stops)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question made ready to be asked: its pictures decoded and smart-resized once for all samples."""

    id: str
    images: tuple[Image.Image, ...]
    views: tuple[View, ...]
    prompt: Prompt

    @classmethod
    def of(cls, question: Question, look: Look) -> "Asked":
        """Decode and resize. Raises RecordError or RegionError for a picture that cannot be used."""
        return cls.about(question.id, question.text, [question.image()], look, files=[question.image_bytes])

    @classmethod
    def about(
        cls,
        id: str,
        text: str,
        images: Sequence[Image.Image],
        look: Look,
        *,
        places: tuple[int, ...] = (),
        files: Sequence[bytes] = (),
    ) -> "Asked":
        """A question about any number of pictures, also none, which stand at ``places`` in the text.

        With crops, the system prompt of several pictures says how to name one. ``files`` are what the
        pictures were decoded from, if known. Raises RegionError for a picture that cannot be used.
        """
        system = look.system
        if system is not None and look.max_crops and len(images) > 1:
            system += SEVERAL_IMAGES.format(number=len(images))
        encoded = files or [b""] * len(images)
        pictures = tuple(
            see(image, look.budget, file=file) for image, file in zip(images, encoded, strict=True)
        )
        views = tuple(View.of(Size(image.width, image.height), look.budget) for image in images)
        return cls(id, tuple(images), views, Prompt(text, pictures, system, places))


class Episode:
    """One trajectory while it is alive: takes pieces, answers crop commands, knows when it is over.

    ``id`` names it in the engine where question and sample do not; what is sampled does not depend on it.
    """

    def __init__(
        self,
        asked: Asked,
        sample_index: int,
        *,
        look: Look,
        temperature: float = 0.0,
        seed: int = 0,
        stops: tuple[str, ...] = STOPS,
        id: str = "",
        shows_drafts: bool = False,
    ) -> None:
        self._name = f"{asked.id}#{sample_index}"
        self.id = id or self._name
        self.stop: StopReason | None = None
        self._asked = asked
        self._sample_index = sample_index
        self._look = look
        self._temperature = temperature
        self._stops = stops
        self._shows_drafts = shows_drafts
        self._seed = derive_seed(seed, asked.id, sample_index)
        self._rng = np.random.default_rng(self._seed)
        self._spans: list[Span] = []
        self._events: list[BoxEvent] = []
        self._turns = 0  # stretches of generation
        self._commands = 0
        self._sampled = 0
        self._given = 0
        self._prompted = 0
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
            seed=derive_seed(self._seed, self._name, self._turns),
            shows_drafts=self._shows_drafts,
        )

    @property
    def spans(self) -> Sequence[Span]:
        """What has been written and given so far."""
        return self._spans

    @property
    def num_given_tokens(self) -> int:
        """Tokens the model was given before its last turn: question, crops, messages. 0 where the engine does
        not count.
        """
        return max(0, self._given)

    @property
    def events(self) -> Sequence[BoxEvent]:
        """The crop commands so far."""
        return self._events

    def receive(self, piece: Piece) -> None:
        """Append what was sampled and decide: answered, over, a crop, or on with the text."""
        if piece.finish == "error":
            self._end(StopReason.ENGINE_ERROR, piece.error)
            return
        self._spans.append(piece.span)
        self._turns += 1
        self._given = piece.context_tokens - self._sampled
        self._prompted += piece.context_tokens
        # An engine that does not count tokens is bounded by characters, which are at least as many.
        num_tokens = piece.span.num_tokens
        self._sampled += len(piece.span.text) if num_tokens is None else num_tokens
        if piece.finish == "stop" and ANSWER_STOP in piece.span.text:
            self._end(StopReason.ANSWERED)
        elif piece.finish == "end":
            self._end(StopReason.END_WITHOUT_ANSWER)
        elif piece.finish == "context":
            full = "" if self._sampled else "what it was given fills the context (engine.max_model_len)"
            self._end(StopReason.CONTEXT_LIMIT, full)
        elif piece.finish == "length" or self._sampled >= self._look.max_sampled_tokens:
            self._end(StopReason.TOKEN_LIMIT)
        else:
            self._answer_command(piece.span.text)
            # Generation pauses at every closing brace, and formulas are full of them: only commands count.
            if self.stop is None and self._commands >= self._look.max_turns:
                self._end(StopReason.TURN_LIMIT)

    def trajectory(self) -> Trajectory:
        """What happened, once the episode has ended."""
        if self.stop is None:
            raise EngineError(f"Trajectory {self.id!r} is still running.")
        return Trajectory(
            question_id=self._asked.id,
            sample_index=self._sample_index,
            prompt=self._asked.prompt,
            spans=tuple(self._spans),
            events=tuple(self._events),
            stop=self.stop,
            detail=self._detail,
            num_prompt_tokens=self._prompted,
        )

    def _answer_command(self, newest: str) -> None:
        """Give the crop that the text so far asks for, if it asks for one within its ``newest`` end."""
        written = "".join(span.text for span in self._spans if not isinstance(span, CropSpan))
        asked = box_request(written, seen=len(written) - len(newest))
        if asked is None:
            return
        self._commands += 1
        if isinstance(asked, BadJSON):
            self._refuse(BoxEvent(None, TurnError.BAD_JSON), asked.text)
            return
        if sum(event.error is None for event in self._events) >= self._look.max_crops:
            self._end(StopReason.CROP_LIMIT)
            return
        box, number = asked.box, asked.image
        error = self._find_error(asked)
        if error is not None:
            self._refuse(BoxEvent(box, error, number), f"box {list(box.corners())} of image {number}")
            return
        image, view = self._asked.images[number - 1], self._asked.views[number - 1]
        try:
            cut = box_to_cut(box, view, self._look.corruption, self._rng)
            given = CROP_SOURCES[self._look.crop_source](image, cut, self._look.budget, self._rng)
        except RegionError as unusable:
            # Not too long as seen, but too long in the original, whose sides are scaled differently.
            self._refuse(BoxEvent(box, TurnError.ASPECT_RATIO, number), str(unusable))
            return
        self._events.append(BoxEvent(box, image=number))
        if given is not None:
            self._spans.append(CropSpan(*given, image=number))

    def _find_error(self, asked: BoxRequest) -> TurnError | None:
        """The first rule that a crop command breaks; a box can repeat only one of the same picture."""
        if not 1 <= asked.image <= len(self._asked.images):
            return TurnError.NO_SUCH_IMAGE
        earlier = tuple(
            event.box
            for event in self._events
            if event.box is not None and event.error is None and event.image == asked.image
        )
        fault = find_fault(
            asked.box,
            self._asked.views[asked.image - 1],
            earlier,
            min_side=self._look.min_side,
            max_aspect_ratio=self._look.max_aspect_ratio,
            repeated_iou=self._look.repeated_iou,
        )
        return None if fault is None else TurnError(fault.value)

    def _refuse(self, event: BoxEvent, detail: str) -> None:
        assert event.error is not None, "a refusal has a reason"
        self._events.append(event)
        if event.error in self._look.end_on:
            self._end(StopReason.PROTOCOL_ERROR, f"{event.error}: {detail}")
        else:
            self._spans.append(TextSpan(MESSAGES[event.error]))

    def _end(self, stop: StopReason, detail: str = "") -> None:
        self.stop = stop
        self._detail = detail


def derive_seed(seed: int, name: str, index: int) -> int:
    """A 63-bit seed that depends on nothing but its arguments: stable across processes and machines."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
