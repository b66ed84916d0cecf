"""The gallery of a report: which trajectories are shown, and all the page needs to draw them.

The data is plain JSON. Pictures are embedded once, by digest, however many trajectories show them.
"""

import base64
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

from PIL import Image

from models.config import CropSourceName, Look
from models.errors import RecordError, RegionError
from models.records import Question
from models.region import Box, Picture, Size, View
from models.trajectory import Reward, SampledSpan, TextSpan
from models.transcripts import GivenCrop, Transcript, recut

# Larger pictures are reduced for the page; what the model saw is kept in the files of the run.
MAX_SHOWN_SIDE = 480
MAX_CROP_SIDE = 320
_QUALITY = 80
_METHOD = 2  # of 0 (fast) to 6 (small): as small as the usual 4 on drawn pictures, in half the time


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a question, as the gallery shows it.

    ``correct`` is None where nothing was scored: ``reason`` then says why. ``score`` is for rules that give
    more than right or wrong (0 to 1), ``advantage`` for rollouts. ``transcript`` is None when the question
    was not put to the model.
    """

    transcript: Transcript | None
    correct: bool | None
    answer: str | None
    kind: str = ""
    first_box_iou: float | None = None
    score: float | None = None
    advantage: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """Who attempted: a model or one of several samples; its attempts by question id."""

    name: str
    label: str
    attempts: Mapping[str, Attempt]
    crop_source: CropSourceName = "original"


@dataclass(frozen=True, slots=True)
class Subject:
    """A question with its pictures. ``gold_boxes`` are in original pixels of the first."""

    id: str
    kind: str
    source: str
    text: str
    answers: tuple[str, ...]
    images: Callable[[], Sequence[Image.Image]]
    gold_boxes: tuple[Box, ...] = ()

    @classmethod
    def of(cls, question: Question) -> "Subject":
        """A question about one picture."""
        return cls(
            id=question.id,
            kind=question.kind,
            source=question.source,
            text=question.text,
            answers=question.answers,
            images=lambda: [question.image()],
            gold_boxes=question.gold_boxes,
        )


@dataclass(frozen=True, slots=True)
class GallerySet:
    """Questions that the same columns attempted. ``compare`` names the two that are shown at first.

    ``subjects`` gives the questions of some ids, in any order. At most ``num_trajectories`` are shown.
    """

    name: str
    label: str
    columns: tuple[Column, ...]
    subjects: Callable[[Collection[str]], Iterable[Subject]]
    compare: tuple[str, str]
    num_trajectories: int


@dataclass(slots=True)
class PictureStore:
    """Pictures as data URIs, each once, up to a number of bytes."""

    max_bytes: int
    uris: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0

    @property
    def is_full(self) -> bool:
        """True when there is no room for another one."""
        return self.num_bytes >= self.max_bytes

    def add(self, picture: Picture, *, max_side: int) -> str:
        """Store a picture, reduced when a side is longer than ``max_side``, and return its key."""
        key = picture.digest[:16]
        if key not in self.uris:
            self.uris[key] = data_uri(picture.image, max_side=max_side)
            self.num_bytes += len(self.uris[key])
        return key


def gallery(sets: Sequence[GallerySet], *, look: Look, max_bytes: int) -> dict[str, Any]:
    """The data of the page's gallery: sets of questions with their attempts, and pictures by key.

    Every set shows the first questions that :func:`choose` names, fewer when the pictures of all sets exceed
    ``max_bytes``.
    """
    store = PictureStore(max_bytes)
    return {"sets": [_set(one, look=look, store=store) for one in sets], "pictures": store.uris}


def choose(columns: Sequence[Column]) -> list[str]:
    """Question ids, the most telling first: kinds and outcomes take turns.

    An outcome is right, wrong or unscored in each of the columns, so that questions gained and lost between
    two of them come up as early as those that all got right. Only questions that every column was asked are
    shown, where there are such.
    """
    asked = [set(column.attempts) for column in columns if column.attempts]
    ids = set.intersection(*asked) or set.union(*asked) if asked else set()
    groups: dict[tuple[object, ...], list[str]] = {}
    for id in sorted(ids):
        attempts = [column.attempts.get(id) for column in columns]
        kind = next(attempt.kind for attempt in attempts if attempt is not None)
        outcome = tuple(None if attempt is None else attempt.correct for attempt in attempts)
        groups.setdefault((kind, *outcome), []).append(id)
    # The largest groups first within a turn: they are what usually happens.
    ordered = sorted(groups.values(), key=lambda group: (-len(group), group[0]))
    return [id for turn in zip_longest(*ordered) for id in turn if id is not None]


def data_uri(image: Image.Image, *, max_side: int = MAX_SHOWN_SIDE) -> str:
    """A picture for the page: WebP, no side longer than ``max_side``."""
    reduced = image.copy()
    reduced.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    reduced.save(buffer, format="WEBP", quality=_QUALITY, method=_METHOD)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _set(one: GallerySet, *, look: Look, store: PictureStore) -> dict[str, Any]:
    wanted = choose(one.columns)[: max(1, one.num_trajectories // max(1, len(one.columns)))]
    entries: dict[str, dict[str, Any]] = {}
    for subject in one.subjects(frozenset(wanted)):
        if store.is_full:
            break
        entries[subject.id] = _entry(subject, one.columns, look=look, store=store)
    return {
        "name": one.name,
        "label": one.label,
        "compare": list(one.compare),
        "columns": [{"name": column.name, "label": column.label} for column in one.columns],
        "num_asked": len(set().union(*(column.attempts for column in one.columns))),
        "questions": [entries[id] for id in wanted if id in entries],
    }


def _entry(subject: Subject, columns: Sequence[Column], *, look: Look, store: PictureStore) -> dict[str, Any]:
    try:
        images = list(subject.images())
        views = [View.of(Size(image.width, image.height), look.budget) for image in images]
    except (RecordError, RegionError):  # such a question was not asked; its attempt says why
        images, views = [], []
    pictures = [
        {
            "key": store.add(Picture.of(image), max_side=MAX_SHOWN_SIDE),
            "size": [view.seen.width, view.seen.height],
            "gold": [_corners(view.convert(box, "seen")) for box in subject.gold_boxes] if not place else [],
        }
        for place, (image, view) in enumerate(zip(images, views, strict=True))
    ]
    return {
        "id": subject.id,
        "kind": subject.kind,
        "source": subject.source,
        "text": subject.text,
        "answers": list(subject.answers),
        "pictures": pictures,
        "attempts": {
            column.name: _attempt(
                column.attempts[subject.id], images, column.crop_source, look=look, store=store
            )
            for column in columns
            if subject.id in column.attempts
        },
    }


def _attempt(
    attempt: Attempt,
    images: Sequence[Image.Image],
    crop_source: CropSourceName,
    *,
    look: Look,
    store: PictureStore,
) -> dict[str, Any]:
    found = {
        "right": attempt.correct,
        "answer": attempt.answer,
        "iou": attempt.first_box_iou,
        "score": attempt.score,
        "advantage": attempt.advantage,
        "reason": attempt.reason,
    }
    transcript = attempt.transcript
    if transcript is None:
        return {**found, "stop": "not_asked", "detail": "", "tokens": 0, "crops": 0, "boxes": [], "parts": []}
    return {
        **found,
        "stop": str(transcript.stop),
        "detail": transcript.detail,
        "tokens": transcript.num_sampled_tokens,
        "crops": len(transcript.crops),
        "reward": None if transcript.reward is None else _reward(transcript.reward),
        "boxes": [
            {
                "at": None if event.box is None else _corners(event.box),
                "image": event.image,
                "error": event.error,
            }
            for event in transcript.events
        ],
        **_parts(transcript, images, crop_source, look=look, store=store),
    }


def _parts(
    transcript: Transcript,
    images: Sequence[Image.Image],
    crop_source: CropSourceName,
    *,
    look: Look,
    store: PictureStore,
) -> dict[str, Any]:
    """What was said and given, in order; without the crops, and why, where they cannot be drawn again."""
    try:
        parts = [
            _crop(span, images[span.image - 1], crop_source, look=look, store=store)
            if isinstance(span, GivenCrop)
            else _said(span)
            for span in transcript.spans
        ]
    except RecordError as error:
        said = [_said(span) for span in transcript.spans if not isinstance(span, GivenCrop)]
        return {"parts": said, "reason": str(error)}
    return {"parts": parts}


def _said(span: SampledSpan | TextSpan) -> dict[str, str]:
    """What the model wrote, or what it was told."""
    return {"text" if isinstance(span, SampledSpan) else "note": span.text}


def _crop(
    span: GivenCrop, image: Image.Image, crop_source: CropSourceName, *, look: Look, store: PictureStore
) -> dict[str, Any]:
    picture = recut(image, span, budget=look.budget, source=crop_source)
    return {
        "crop": store.add(picture, max_side=MAX_CROP_SIDE),
        "size": [span.size.width, span.size.height],
        "tokens": span.size.area // look.pixel_factor**2,
        "box": _corners(span.box),
    }


def _reward(reward: Reward) -> dict[str, float]:
    return {name: round(value, 4) for name, value in {**asdict(reward), "total": reward.total}.items()}


def _corners(box: Box) -> list[float]:
    return [round(value, 2) for value in box.corners()]
