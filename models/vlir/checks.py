"""What is looked at in every stored record before any accelerator starts: one plain row of findings each.

The Parquet files are read without :func:`models.records.read_records`, which refuses the first bad row: here
a fault must become a finding with the record's id, so that all faults are seen at once. Pictures are decoded
one at a time and not kept.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from models import answers
from models.config import Look
from models.errors import RecordError, RegionError
from models.protocol import BoxRequest, box_request, extract_answer, is_well_formed
from models.records import RECORD_SCHEMA, SCHEMA_VERSION, sha256
from models.region import Box, Size, View, find_fault
from models.vlir.layout import MANIFEST, QUESTIONS, RECORDS

_BOX_MENTION = re.compile(r"bbox_2d")
_BOX_LITERAL = re.compile(r"\{[^{}]*bbox_2d[^{}]*\}")
_MISSING = "missing"


@dataclass(frozen=True, slots=True)
class ColumnFinding:
    """One column of one file: the type found and the type expected, in Arrow's words."""

    id: str
    found: str
    expected: str


@dataclass(frozen=True, slots=True)
class RecordFinding:
    """What one stored record turned out to be. Booleans are True for a sound record."""

    id: str
    split: str
    text_length: int
    num_crops: int
    num_boxes_in_text: int
    num_answers: int
    is_well_formed: bool
    boxes_parse: bool
    boxes_are_those_in_text: bool
    boxes_are_inside: bool
    seen_size_follows_look: bool
    answer_matches_gold: bool
    image_is_intact: bool
    image_is_not_held_out: bool
    was_accepted: bool


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a built set. Raises RecordError when there is none: the build did not finish."""
    path = folder / MANIFEST
    if not path.is_file():
        raise RecordError(
            f"{folder} has no {MANIFEST}: build_vlir did not finish there. Build the set first."
        )
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def record_files(folder: Path) -> list[Path]:
    """The shards of the training records, in name order. Raises RecordError when there are none."""
    files = sorted((folder / RECORDS).glob("*.parquet"))
    if not files:
        raise RecordError(f"{folder / RECORDS} holds no Parquet file. Build the set first.")
    return files


def check_columns(folder: Path) -> list[ColumnFinding]:
    """Schema version and columns of every shard, beside what they should be."""
    findings = []
    for path in record_files(folder):
        schema = pq.read_schema(path)
        version = (schema.metadata or {}).get(b"schema_version", _MISSING.encode()).decode()
        findings.append(ColumnFinding(f"{path.name}:schema_version", version, SCHEMA_VERSION))
        for name in dict.fromkeys([*RECORD_SCHEMA.names, *schema.names]):
            found, expected = _type_of(name, schema), _type_of(name, RECORD_SCHEMA)
            # Arrow and Parquet name the element of a list differently; that is no difference in type.
            same = found is not None and found == expected
            findings.append(
                ColumnFinding(
                    f"{path.name}:{name}",
                    str(expected if same else found or _MISSING),
                    str(expected or _MISSING),
                )
            )
    return findings


def held_out_pictures(folder: Path) -> set[str]:
    """sha256 of every picture that training must not see: those of the validation and test questions."""
    files = [folder / QUESTIONS / f"{split}.parquet" for split in ("validation", "test")]
    return {
        digest
        for path in files
        if path.is_file()
        for digest in pq.read_table(path, columns=["image_sha256"])["image_sha256"].to_pylist()
    }


def check_records(folder: Path, look: Look) -> Iterator[RecordFinding]:
    """A finding per stored record. Call only when :func:`check_columns` found what it expects."""
    held_out = held_out_pictures(folder)
    for path in record_files(folder):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield check_record(row, look, held_out)


def check_record(row: Mapping[str, Any], look: Look, held_out: set[str]) -> RecordFinding:
    """The finding about one row of a record file."""
    steps = row["steps"] or []
    text = "".join(step["text"] or "" for step in steps)
    stored = [step["box"] for step in steps if step["box"] is not None]
    literals = _BOX_LITERAL.findall(text)
    requests = [box_request(literal) for literal in literals]
    asked = [
        list(request.box.corners())
        for request in requests
        if isinstance(request, BoxRequest) and request.image == 1
    ]
    num_mentions = len(_BOX_MENTION.findall(text))
    return RecordFinding(
        id=row["id"] or "",
        split=row["split"] or "",
        text_length=len((row["text"] or "").strip()),
        num_crops=len(stored),
        num_boxes_in_text=num_mentions,
        num_answers=text.count("<answer>"),
        is_well_formed=is_well_formed(text),
        boxes_parse=len(asked) == num_mentions,
        boxes_are_those_in_text=stored == asked,
        boxes_are_inside=all(_is_sound(corners, row, look) for corners in stored),
        seen_size_follows_look=_seen_size_follows(row, look),
        answer_matches_gold=_answer_matches(row, text),
        image_is_intact=is_intact(row),
        image_is_not_held_out=row["image_sha256"] not in held_out,
        was_accepted=row["reason"] == "",
    )


def is_intact(row: Mapping[str, Any]) -> bool:
    """True when the row's picture has the stated sha256 and size, and decodes to its last pixel."""
    data = (row["image"] or {}).get("bytes") or b""
    if sha256(data) != row["image_sha256"]:
        return False
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return (image.width, image.height) == (row["width"], row["height"])


def _type_of(name: str, schema: pa.Schema) -> pa.DataType | None:
    return schema.field(name).type if name in schema.names else None


def _is_sound(corners: list[float], row: Mapping[str, Any], look: Look) -> bool:
    """A stored box of positive area inside the seen picture, by the rules of the loop."""
    if len(corners) != 4 or None in corners:
        return False
    try:
        view = View(Size(row["width"], row["height"]), Size(row["seen_width"], row["seen_height"]))
    except (RegionError, TypeError):
        return False
    box = Box(corners[0], corners[1], corners[2], corners[3], space="seen")
    fault = find_fault(
        box,
        view,
        min_side=look.min_side,
        max_aspect_ratio=look.max_aspect_ratio,
        repeated_iou=look.repeated_iou,
    )
    return fault is None


def _seen_size_follows(row: Mapping[str, Any], look: Look) -> bool:
    """Boxes in pixels of another size than the model will see point at the wrong place, silently."""
    try:
        seen = View.of(Size(row["width"], row["height"]), look.budget).seen
    except (RegionError, TypeError):
        return False
    return (seen.width, seen.height) == (row["seen_width"], row["seen_height"])


def _answer_matches(row: Mapping[str, Any], text: str) -> bool:
    """The answer in the text, the stored final answer and a gold answer are the same."""
    golds = [gold for gold in row["answers"] or [] if gold]
    answer = extract_answer(text)
    return bool(golds) and answer == row["final_answer"] and answers.matches(answer, golds)
