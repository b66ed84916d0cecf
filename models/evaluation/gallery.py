"""The gallery of a report: which questions are shown, and all the page needs to draw their trajectories.

The data is plain JSON. Pictures are embedded once, by digest, however many trajectories show them.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from PIL import Image

from models.config import CropSourceName, Look
from models.evaluation.predictions import Prediction
from models.records import Question
from models.region import Box, Picture, Size, View, see
from models.trajectory import SampledSpan
from models.transcripts import GivenCrop, recut

# Larger pictures are reduced for the page; what the model saw is kept in the files of the run.
MAX_SHOWN_SIDE = 480
# Up to this many pixels PNG is small enough, and exact.
_PNG_PIXELS = 160 * 160


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """A variant in the gallery, with its greedy attempts by question id."""

    name: str
    label: str
    crop_source: CropSourceName
    attempts: Mapping[str, Prediction]


@dataclass(slots=True)
class PictureStore:
    """Pictures as data URIs, each once; knows how many bytes they take."""

    uris: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0

    def add(self, picture: Picture) -> str:
        """Store a picture and return its key."""
        key = picture.digest[:16]
        if key not in self.uris:
            self.uris[key] = data_uri(picture.image)
            self.num_bytes += len(self.uris[key])
        return key


def gallery(
    rows: Sequence[GalleryRow],
    questions: Mapping[str, Question],
    *,
    look: Look,
    num_questions: int,
    max_bytes: int,
) -> dict[str, Any]:
    """The data of the page's gallery: pictures, variants, questions and attempts.

    Shows the first ``num_questions`` that :func:`choose` names, fewer when their pictures exceed
    ``max_bytes``.
    """
    store = PictureStore()
    shown: list[dict[str, Any]] = []
    for id in choose(rows):
        if len(shown) == num_questions or store.num_bytes > max_bytes:
            break
        question = questions[id]
        image = question.image()
        shown.append(
            {
                **_question(question, image, look=look, store=store),
                "attempts": {
                    row.name: _attempt(row.attempts[id], image, row.crop_source, look=look, store=store)
                    for row in rows
                    if id in row.attempts
                },
            }
        )
    return {
        "variants": [{"name": row.name, "label": row.label} for row in rows],
        "questions": shown,
        "pictures": store.uris,
    }


def choose(rows: Sequence[GalleryRow]) -> list[str]:
    """Question ids, the most telling first: kinds and outcomes take turns.

    An outcome is right, wrong or unscored in each of the rows, so that questions gained and lost between two
    rows come up as early as those that all rows got right. Only questions that every row was asked are shown,
    where there are such.
    """
    asked = [set(row.attempts) for row in rows if row.attempts]
    ids = set.intersection(*asked) or set.union(*asked) if asked else set()
    groups: dict[tuple[object, ...], list[str]] = {}
    for id in sorted(ids):
        attempts = [row.attempts.get(id) for row in rows]
        kind = next(attempt.kind for attempt in attempts if attempt is not None)
        outcome = tuple(None if attempt is None else attempt.correct for attempt in attempts)
        groups.setdefault((kind, *outcome), []).append(id)
    # The largest groups first within a turn: they are what usually happens.
    ordered = sorted(groups.values(), key=lambda group: (-len(group), group[0]))
    return [id for turn in zip_longest(*ordered) for id in turn if id is not None]


def data_uri(image: Image.Image) -> str:
    """A picture for the page: PNG when small, else JPEG reduced to ``MAX_SHOWN_SIDE``."""
    buffer = io.BytesIO()
    if image.width * image.height <= _PNG_PIXELS:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        reduced = image.copy()
        reduced.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE))
        reduced.save(buffer, format="JPEG", quality=82)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _question(question: Question, image: Image.Image, *, look: Look, store: PictureStore) -> dict[str, Any]:
    view = View.of(Size(image.width, image.height), look.budget)
    return {
        "id": question.id,
        "kind": question.kind,
        "text": question.text,
        "answers": list(question.answers),
        "view": store.add(see(image, look.budget)),
        "size": [view.seen.width, view.seen.height],
        "gold": [_corners(view.convert(box, "seen")) for box in question.gold_boxes],
    }


def _attempt(
    prediction: Prediction,
    image: Image.Image,
    crop_source: CropSourceName,
    *,
    look: Look,
    store: PictureStore,
) -> dict[str, Any]:
    transcript = prediction.transcript
    parts: list[dict[str, Any]] = []
    for span in transcript.spans:
        if isinstance(span, GivenCrop):
            picture = recut(image, span, budget=look.budget, source=crop_source)
            parts.append(
                {
                    "crop": store.add(picture),
                    "size": [span.size.width, span.size.height],
                    "tokens": span.size.area // look.pixel_factor**2,
                    "box": _corners(span.box),
                }
            )
        else:
            parts.append({"text" if isinstance(span, SampledSpan) else "note": span.text})
    return {
        "right": prediction.correct,
        "answer": prediction.answer,
        "stop": str(transcript.stop),
        "detail": transcript.detail,
        "tokens": transcript.num_sampled_tokens,
        "iou": prediction.first_box_iou,
        "crops": len(transcript.crops),
        "boxes": [
            {"at": None if event.box is None else _corners(event.box), "error": event.error}
            for event in transcript.events
        ],
        "parts": parts,
    }


def _corners(box: Box) -> list[float]:
    return [round(value, 2) for value in box.corners()]
