"""A trajectory told while it happens: text as it is sampled, looks as they are answered.

>>> narrator = Narrator(episode)
>>> narrator.draft("<think>The code is")   # from the engine's drafts
>>> narrator.catch_up()                    # after the episode received a piece
"""

from collections.abc import Iterator
from dataclasses import dataclass

from models.errors import EngineError
from models.region import Box, Picture
from models.rollout import Episode
from models.trajectory import CropSpan, SampledSpan, TurnError


@dataclass(frozen=True, slots=True)
class Wrote:
    """The model wrote this."""

    text: str


@dataclass(frozen=True, slots=True)
class Looked:
    """The model asked for a region: ``box`` (seen pixels, None when it did not parse) of picture ``image``,
    after ``position`` characters of its text.

    ``crop`` is what it was given; a refused command has an ``error`` instead.
    """

    position: int
    box: Box | None
    image: int
    crop: Picture | None
    error: TurnError | None


Told = Wrote | Looked


class Narrator:
    """Tells one episode from its beginning, everything once, in the order it happened."""

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self._drafted = ""
        self._position = 0
        self._num_spans = 0
        self._num_events = 0

    def draft(self, text: str) -> Wrote:
        """Text of the turn that is being written."""
        self._drafted += text
        self._position += len(text)
        return Wrote(text)

    def catch_up(self) -> Iterator[Told]:
        """What the episode's last pieces added. Raises EngineError when drafts told something else."""
        spans = self.episode.spans[self._num_spans :]
        self._num_spans += len(spans)
        for span in spans:
            if isinstance(span, SampledSpan):
                yield from self._rest_of(span.text)
        crops = [span for span in spans if isinstance(span, CropSpan)]
        for event in self.episode.events[self._num_events :]:
            self._num_events += 1
            crop = crops.pop(0).picture if crops and event.error is None else None
            yield Looked(self._position, event.box, event.image, crop, event.error)

    def _rest_of(self, text: str) -> Iterator[Wrote]:
        if not text.startswith(self._drafted):
            raise EngineError(
                f"{self.episode.id!r}: the drafts say {self._drafted[-80:]!r}, the turn is {text[-80:]!r}."
            )
        rest = text[len(self._drafted) :]
        self._drafted = ""
        if rest:
            self._position += len(rest)
            yield Wrote(rest)
