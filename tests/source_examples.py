"""Public training sets in miniature: a few rows in files of their true schema."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TEXTS = pa.list_(pa.string())
SPANS = pa.list_(pa.struct([("objectId", pa.string()), ("value", pa.string())]))

TEXTVQA = pa.schema(
    [
        ("image_id", pa.string()),
        ("question_id", pa.int32()),
        ("question", pa.string()),
        ("question_tokens", TEXTS),
        ("image", IMAGE),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("flickr_original_url", pa.string()),
        ("flickr_300k_url", pa.string()),
        ("answers", TEXTS),
        ("image_classes", TEXTS),
        ("set_name", pa.string()),
        ("ocr_tokens", TEXTS),
    ]
)
DOCVQA = pa.schema(
    [
        ("questionId", pa.string()),
        ("question", pa.string()),
        ("question_types", TEXTS),
        ("image", IMAGE),
        ("docId", pa.int64()),
        ("ucsf_document_id", pa.string()),
        ("ucsf_document_page_no", pa.string()),
        ("answers", TEXTS),
        ("data_split", pa.string()),
    ]
)
INFOGRAPHICVQA = pa.schema(
    [
        ("questionId", pa.string()),
        ("question", pa.string()),
        ("answers", TEXTS),
        ("answer_type", TEXTS),
        ("image", IMAGE),
        ("image_url", pa.string()),
        ("operation/reasoning", TEXTS),
        ("ocr", pa.string()),
        ("data_split", pa.string()),
    ]
)
M3COT = pa.schema(
    [
        ("id", pa.string()),
        ("category", pa.string()),
        ("image_id", pa.string()),
        ("question", pa.string()),
        ("choices", TEXTS),
        ("context", pa.string()),
        ("answer", pa.string()),
        ("rationale", pa.string()),
        ("split", pa.string()),
        ("image", IMAGE),
        ("domain", pa.string()),
        ("topic", pa.string()),
    ]
)
GQA_INSTRUCTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("imageId", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("fullAnswer", pa.string()),
        ("isBalanced", pa.bool_()),
        ("groups", pa.struct([("global", pa.string()), ("local", pa.string())])),
        ("annotations", pa.struct([(name, SPANS) for name in ("answer", "fullAnswer", "question")])),
        ("semanticStr", pa.string()),
    ]
)
GQA_IMAGES = pa.schema([("id", pa.string()), ("image", IMAGE)])


def picture(colour: str = "red", size: tuple[int, int] = (40, 30), format: str = "PNG", **options) -> bytes:
    """A picture's file."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, format, **options)
    return data.getvalue()


def stored(colour: str = "red", size: tuple[int, int] = (40, 30), path: str = "") -> dict[str, Any]:
    """A picture as the hub stores it."""
    return {"bytes": picture(colour, size), "path": path or f"{colour}.png"}


def write_parquet(
    path: Path, schema: pa.Schema, rows: Sequence[dict[str, Any]], *, group: int = 1000
) -> None:
    """A Parquet file; columns that a row leaves out are null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [{name: row.get(name) for name in schema.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(whole, schema=schema), path, row_group_size=group)


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    """A JSONL file; bytes are written as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def textvqa(**changes) -> dict[str, Any]:
    """A row of TextVQA."""
    row = {
        "image_id": "0054c91397f2fe05",
        "question_id": 7,
        "question": "what brand is this?",
        "image": stored(),
        "answers": ["nokia"] * 6 + ["Nokia", "nokia", "nokia 3310", "nokia"],
        "set_name": "train",
        "ocr_tokens": ["NOKIA"],
    }
    return {**row, **changes}


def docvqa(**changes) -> dict[str, Any]:
    """A row of DocVQA."""
    row = {
        "questionId": "337",
        "question": "what is the date mentioned in this letter?",
        "question_types": ["handwritten"],
        "image": stored("white", (60, 80)),
        "docId": 279,
        "ucsf_document_id": "xnbl0037",
        "ucsf_document_page_no": "1",
        "answers": ["1/8/93", "1/8/1993"],
        "data_split": "train",
    }
    return {**row, **changes}


def infographicvqa(**changes) -> dict[str, Any]:
    """A row of InfographicVQA."""
    row = {
        "questionId": "65718",
        "question": "Which platform is used most?",
        "answers": ["facebook"],
        "answer_type": ["single span"],
        "image": stored("blue", (50, 90), path="20471.jpeg"),
        "image_url": "https://example.org/pictures/20471.jpeg",
        "operation/reasoning": ["counting"],
        "ocr": "{}",
        "data_split": "train",
    }
    return {**row, **changes}


def m3cot(**changes) -> dict[str, Any]:
    """A row of M3CoT."""
    row = {
        "id": "physical-commonsense-8",
        "category": "commonsense",
        "image_id": "physical-commonsense-8",
        "question": "Which object conducts electricity best?",
        "choices": ["wood", "copper", "glass"],
        "context": "Look at the three objects.",
        "answer": "B",
        "rationale": "Copper is a metal, so the answer is B.",
        "split": "train",
        "image": stored("grey"),
        "domain": "commonsense",
        "topic": "physical-commonsense",
    }
    return {**row, **changes}


def gqa(id: str, image: str, *objects: str, **changes) -> dict[str, Any]:
    """A row of GQA's instructions; the first object is the answer's."""
    spans = [{"objectId": each, "value": str(place)} for place, each in enumerate(objects)]
    row = {
        "id": id,
        "imageId": image,
        "question": "What is on the desk?",
        "answer": "lamp",
        "fullAnswer": "The lamp is on the desk.",
        "isBalanced": True,
        "annotations": {"answer": spans[:1], "fullAnswer": spans[:1], "question": spans[1:]},
    }
    return {**row, **changes}


def vsr(**changes) -> dict[str, Any]:
    """A row of VSR."""
    row = {
        "image": "000000085637.jpg",
        "image_link": "http://images.cocodataset.org/train2017/000000085637.jpg",
        "caption": "The cat is at the right side of the dog.",
        "label": 1,
        "relation": "at the right side of",
        "annotator_id": 3,
        "vote_true_validator_id": [2],
        "vote_false_validator_id": [],
    }
    return {**row, **changes}


def visual_cot(**changes) -> dict[str, Any]:
    """A row of Visual CoT's metadata."""
    row = {
        "question": "What brand is this?",
        "answer": "nokia",
        "image": "0054c91397f2fe05.jpg",
        "width": 40,
        "height": 30,
        "bboxs": [[4, 5.5, 20, 25]],
        "dataset": "textvqa",
        "split": "train",
    }
    return {**row, **changes}
