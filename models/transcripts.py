"""Transcripts: trajectories on disk, as Parquet. All that happened, with pictures named by their digest.

A crop is a function of the question's picture, the box and the crop source, so :func:`recut` draws it again
and checks the digest. R-GRPO's rollouts and the evaluation's predictions are both made of these columns.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from models.config import CropSourceName
from models.errors import RecordError
from models.records import read_rows, write_rows
from models.region import Box, Picture, PixelBudget, Size, View, look, look_blank, look_low_resolution
from models.trajectory import (
    BoxEvent,
    CropSpan,
    Reward,
    SampledSpan,
    Span,
    StopReason,
    TextSpan,
    Trajectory,
    TurnError,
)

TRANSCRIPT_VERSION = "transcript/2"

_BOX = pa.list_(pa.float64())
_SPAN = pa.struct(
    [
        ("kind", pa.string()),  # sampled, text or crop
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("policy_version", pa.int32()),
        ("reported_tokens", pa.int32()),
        ("box", _BOX),
        ("image", pa.int32()),
        ("crop_sha256", pa.string()),
        ("crop_width", pa.int32()),
        ("crop_height", pa.int32()),
    ]
)
# A picture of the prompt as it was seen; "place" is the character of the question before which it stands.
_VIEW = pa.struct(
    [("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("place", pa.int32())]
)
_REWARD = pa.struct([(name, pa.float64()) for name in ("accuracy", "format", "validity", "length")])
TRANSCRIPT_FIELDS: tuple[tuple[str, pa.DataType], ...] = (
    ("question_id", pa.string()),
    ("sample_index", pa.int32()),
    ("question_text", pa.string()),
    ("system", pa.string()),
    ("views", pa.list_(_VIEW)),
    ("spans", pa.list_(_SPAN)),
    ("events", pa.list_(pa.struct([("box", _BOX), ("image", pa.int32()), ("error", pa.string())]))),
    ("stop", pa.string()),
    ("detail", pa.string()),
    ("reward", _REWARD),
)
TRANSCRIPT_SCHEMA = pa.schema(list(TRANSCRIPT_FIELDS))


@dataclass(frozen=True, slots=True)
class GivenView:
    """A picture of the prompt: its digest and size as the model saw it, its place in the question's text."""

    digest: str
    size: Size
    place: int

    @classmethod
    def of(cls, picture: Picture, place: int) -> "GivenView":
        """A picture without its pixels."""
        return cls(picture.digest, picture.size, place)


@dataclass(frozen=True, slots=True)
class GivenCrop:
    """A crop that was shown: its region (seen pixels) of picture number ``image``, its digest, its size."""

    box: Box
    digest: str
    size: Size
    image: int = 1

    @property
    def text(self) -> str:
        """A crop leaves no text."""
        return ""


@dataclass(frozen=True, slots=True)
class Transcript:
    """A trajectory without its pixels; the parts are those of :class:`models.trajectory.Trajectory`."""

    question_id: str
    sample_index: int
    question_text: str
    system: str | None
    views: tuple[GivenView, ...]
    spans: tuple[SampledSpan | TextSpan | GivenCrop, ...]
    events: tuple[BoxEvent, ...]
    stop: StopReason
    detail: str = ""
    reward: Reward | None = None

    @classmethod
    def of(cls, trajectory: Trajectory) -> "Transcript":
        """The transcript of a finished trajectory."""
        prompt = trajectory.prompt
        places = prompt.places or (0,) * len(prompt.pictures)
        return cls(
            question_id=trajectory.question_id,
            sample_index=trajectory.sample_index,
            question_text=prompt.text,
            system=prompt.system,
            views=tuple(map(GivenView.of, prompt.pictures, places)),
            spans=tuple(_without_pixels(span) for span in trajectory.spans),
            events=trajectory.events,
            stop=trajectory.stop,
            detail=trajectory.detail,
            reward=trajectory.reward,
        )

    @property
    def text(self) -> str:
        """The assistant's turn as text: what was sampled and what we told it."""
        return "".join(span.text for span in self.spans)

    @property
    def sampled_text(self) -> str:
        """Only what the model wrote."""
        return "".join(span.text for span in self.spans if isinstance(span, SampledSpan))

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens the model sampled; 0 for an engine that reports none."""
        return sum(span.num_tokens or 0 for span in self.spans if isinstance(span, SampledSpan))

    @property
    def accepted_boxes(self) -> tuple[Box, ...]:
        """The boxes that were not refused, in seen pixels."""
        return tuple(event.box for event in self.events if event.box is not None and event.error is None)

    @property
    def errors(self) -> tuple[TurnError, ...]:
        """The named protocol errors, in order."""
        return tuple(event.error for event in self.events if event.error is not None)

    @property
    def crops(self) -> tuple[GivenCrop, ...]:
        """The crops the model was given, in order."""
        return tuple(span for span in self.spans if isinstance(span, GivenCrop))


def write_transcripts(path: Path, transcripts: Iterable[Transcript]) -> int:
    """Write transcripts to one Parquet file and return their number."""
    return write_rows(path, TRANSCRIPT_SCHEMA, map(transcript_row, transcripts), version=TRANSCRIPT_VERSION)


def read_transcripts(path: Path) -> list[Transcript]:
    """All transcripts of a Parquet file that holds at least their columns, or of a folder of such files."""
    return [transcript_of(row) for row in read_rows(path, TRANSCRIPT_SCHEMA, version=TRANSCRIPT_VERSION)]


def recut(image: Image.Image, crop: GivenCrop, *, budget: PixelBudget, source: CropSourceName) -> Picture:
    """The crop's pixels, cut again from the question's picture.

    Raises RecordError when they differ from what the model was shown: another picture, budget or crop source.
    """
    view = View.of(Size(image.width, image.height), budget)
    cut = {"low_resolution": look_low_resolution, "blank": look_blank}.get(source, look)
    picture = cut(image, view.convert(crop.box, "original"), budget)
    if picture.digest != crop.digest:
        raise RecordError(
            f"The crop of {list(crop.box.corners())} differs from the one shown ({crop.digest[:12]}). "
            "Use the picture, the pixel budget and the crop source of the run that wrote the transcript."
        )
    return picture


def transcript_row(transcript: Transcript) -> dict[str, object]:
    """One row of the columns ``TRANSCRIPT_FIELDS``."""
    return {
        "question_id": transcript.question_id,
        "sample_index": transcript.sample_index,
        "question_text": transcript.question_text,
        "system": transcript.system,
        "views": [_view_row(view) for view in transcript.views],
        "spans": [_span_row(span) for span in transcript.spans],
        "events": [
            {"box": _corners(event.box), "image": event.image, "error": event.error}
            for event in transcript.events
        ],
        "stop": transcript.stop,
        "detail": transcript.detail,
        "reward": None if transcript.reward is None else asdict(transcript.reward),
    }


def transcript_of(row: dict[str, Any]) -> Transcript:
    """The transcript in a row of the columns ``TRANSCRIPT_FIELDS``.

    Raises RecordError, which names the trajectory, when a value is none that we write.
    """
    try:
        return _transcript(row)
    except (ValueError, TypeError, IndexError) as error:
        raise RecordError(
            f"The transcript of {row['question_id']!r} #{row['sample_index']} is damaged: {error}. Restore "
            "its file."
        ) from error


def _transcript(row: dict[str, Any]) -> Transcript:
    return Transcript(
        question_id=row["question_id"],
        sample_index=row["sample_index"],
        question_text=row["question_text"],
        system=row["system"],
        views=tuple(
            GivenView(view["sha256"], Size(view["width"], view["height"]), view["place"])
            for view in row["views"]
        ),
        spans=tuple(_span(span) for span in row["spans"]),
        events=tuple(
            BoxEvent(
                _box(event["box"]),
                None if event["error"] is None else TurnError(event["error"]),
                event["image"],
            )
            for event in row["events"]
        ),
        stop=StopReason(row["stop"]),
        detail=row["detail"],
        reward=None if row["reward"] is None else Reward(**row["reward"]),
    )


def _view_row(view: GivenView) -> dict[str, object]:
    return {
        "sha256": view.digest,
        "width": view.size.width,
        "height": view.size.height,
        "place": view.place,
    }


def _without_pixels(span: Span) -> SampledSpan | TextSpan | GivenCrop:
    if isinstance(span, CropSpan):
        return GivenCrop(box=span.box, digest=span.picture.digest, size=span.picture.size, image=span.image)
    return span


def _span_row(span: SampledSpan | TextSpan | GivenCrop) -> dict[str, object]:
    if isinstance(span, GivenCrop):
        return {
            "kind": "crop",
            "box": _corners(span.box),
            "image": span.image,
            "crop_sha256": span.digest,
            "crop_width": span.size.width,
            "crop_height": span.size.height,
        }
    if isinstance(span, TextSpan):
        return {"kind": "text", "text": span.text}
    return {
        "kind": "sampled",
        "text": span.text,
        "token_ids": span.token_ids,
        "logprobs": span.logprobs,
        "policy_version": span.policy_version,
        "reported_tokens": span.reported_tokens,
    }


def _span(row: dict[str, Any]) -> SampledSpan | TextSpan | GivenCrop:
    if row["kind"] == "crop":
        box = _box(row["box"])
        if box is None:
            raise RecordError("A crop in the transcript has no box; the file is damaged.")
        size = Size(row["crop_width"], row["crop_height"])
        return GivenCrop(box, row["crop_sha256"], size, row["image"])
    if row["kind"] == "text":
        return TextSpan(row["text"])
    return SampledSpan(
        text=row["text"],
        token_ids=None if row["token_ids"] is None else tuple(row["token_ids"]),
        logprobs=None if row["logprobs"] is None else tuple(row["logprobs"]),
        policy_version=row["policy_version"],
        reported_tokens=row["reported_tokens"],
    )


def _corners(box: Box | None) -> list[float] | None:
    return None if box is None else list(box.corners())


def _box(corners: list[float] | None) -> Box | None:
    return None if corners is None else Box(corners[0], corners[1], corners[2], corners[3], space="seen")
