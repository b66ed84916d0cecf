"""MLflow traces: a sample of trajectories to drill down into, search by tag and leave feedback on.

A trace is a chat whose answer has the crops in the place where the model received them; below it stand one
span per look, and the picture with all boxes drawn in.
"""

import base64
import io
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import SpanType
from mlflow.tracing.attachments import Attachment
from PIL import Image

from models.evaluation.overlay import draw_boxes
from models.region import Size
from tasks import tracking
from tasks.settings import Settings

_RUN, _MODEL = "mlflow.sourceRun", "mlflow.modelId"


def log_traces(
    settings: Settings,
    run_id: str,
    gallery: Mapping[str, Any],
    *,
    num: int,
    tags: Mapping[str, str],
    models: Mapping[str, str],
) -> list[str]:
    """Log up to ``num`` trajectories of a report's gallery under a tracked run; returns the traces' ids.

    Each has the tags question_id, variant, correct, kind, source and num_crops, and those of ``tags``.
    ``models`` are digests of weights by variant: such a trace is linked to the tracker's record of its model.
    """
    mlflow.set_tracking_uri(settings.tracking_uri)
    experiment, links = tracking.experiment_id(settings), {}
    for variant, digest in models.items():
        model = tracking.logged_model(settings, name=variant, digest=digest, tags={})
        links[variant] = {_MODEL: model}
    sample = _sample(gallery, num)
    found = [
        _log(
            gallery["pictures"],
            question,
            variant,
            experiment,
            tags=tags,
            metadata={_RUN: run_id, **links.get(variant, {})},
        )
        for question, variant in sample
    ]
    mlflow.flush_trace_async_logging()
    for id, (question, _) in zip(found, sample, strict=True):
        mlflow.log_expectation(trace_id=id, name="answer", value=" or ".join(question["answers"]))
    return found


def _sample(gallery: Mapping[str, Any], num: int) -> list[tuple[Mapping[str, Any], str]]:
    """The first questions of the gallery, which are its most telling, by both models that it compares."""
    first = gallery["sets"][0] if gallery.get("sets") else {"questions": [], "compare": []}
    names = list(dict.fromkeys(first["compare"]))
    pairs = [
        (question, name)
        for question in first["questions"]
        for name in names
        if question["attempts"].get(name, {}).get("parts")
    ]
    return pairs[:num]


def _log(
    pictures: Mapping[str, str],
    question: Mapping[str, Any],
    variant: str,
    experiment: str,
    *,
    tags: Mapping[str, str],
    metadata: Mapping[str, str],
) -> str:
    attempt = question["attempts"][variant]
    root = mlflow.start_span_no_context(
        "trajectory",
        span_type=SpanType.AGENT,
        inputs={"messages": [{"role": "user", "content": _asked(pictures, question)}]},
        tags={**_tags(question, variant, attempt), **tags},
        metadata=dict(metadata),
        experiment_id=experiment,
    )
    if question["pictures"]:
        whole = mlflow.start_span_no_context("what it looked at", parent_span=root)
        whole.end(outputs={"boxes": _overlay(pictures, question, attempt)})
    crops = iter([part for part in attempt["parts"] if "crop" in part])
    for number, box in enumerate(attempt["boxes"], start=1):
        look = mlflow.start_span_no_context(
            f"look {number}",
            span_type=SpanType.TOOL,
            parent_span=root,
            inputs={"bbox_2d": box["at"], "image": box["image"]},
        )
        crop = None if box["error"] else next(crops, None)
        look.end(outputs={"refused": box["error"]} if crop is None else {"crop": _attached(pictures, crop)})
    message = {"role": "assistant", "content": [_piece(pictures, part) for part in attempt["parts"]]}
    root.end(outputs={"choices": [{"message": message}]})
    return str(root.trace_id)


def _tags(question: Mapping[str, Any], variant: str, attempt: Mapping[str, Any]) -> dict[str, str]:
    outcome = {True: "right", False: "wrong", None: "unscored"}[attempt["right"]]
    return {
        "question_id": question["id"],
        "variant": variant,
        "correct": outcome,
        "kind": question["kind"],
        "source": question["source"],
        "num_crops": str(attempt["crops"]),
    }


def _asked(pictures: Mapping[str, str], question: Mapping[str, Any]) -> list[dict[str, Any]]:
    shown = [_image(pictures[picture["key"]]) for picture in question["pictures"]]
    return [*shown, {"type": "text", "text": question["text"]}]


def _piece(pictures: Mapping[str, str], part: Mapping[str, Any]) -> dict[str, Any]:
    if "crop" in part:
        return _image(pictures[part["crop"]])
    return {"type": "text", "text": part["text"] if "text" in part else part["note"]}


def _image(uri: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri}}


def _attached(pictures: Mapping[str, str], crop: Mapping[str, Any]) -> Attachment:
    return Attachment(content_type="image/webp", content_bytes=_bytes(pictures[crop["crop"]]))


def _overlay(
    pictures: Mapping[str, str], question: Mapping[str, Any], attempt: Mapping[str, Any]
) -> Attachment:
    """The first picture with the boxes that were asked of it."""
    picture = question["pictures"][0]
    image = Image.open(io.BytesIO(_bytes(pictures[picture["key"]])))
    boxes = [(box["at"], not box["error"]) for box in attempt["boxes"] if box["at"] and box["image"] == 1]
    buffer = io.BytesIO()
    draw_boxes(image, boxes, seen=Size(*picture["size"])).save(buffer, format="PNG")
    return Attachment(content_type="image/png", content_bytes=buffer.getvalue())


def _bytes(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])
