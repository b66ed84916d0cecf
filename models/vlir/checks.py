"""What is looked at in every stored record before any accelerator starts: one plain row of findings each.

The Parquet files are read without :func:`models.records.read_records`, which refuses the first bad row: here
a fault must become a finding with the record's id, so that all faults are seen at once. Pictures are decoded
a few at a time and not kept.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from models import answers
from models.config import Look, ValidationConfig
from models.errors import RecordError, RegionError
from models.protocol import (
    ANSWER_STOP,
    BOX_STOP,
    BoxRequest,
    box_request,
    extract_answer,
    is_well_formed,
    reasoning_text,
)
from models.records import sha256
from models.region import Box, Size, View, find_fault
from models.vlir.layout import HELD_OUT, MANIFEST, QUESTIONS, RECORDS
from models.vlir.measured import Measured
from models.vlir.texts import foreign_language, script_share

HELD_OUT_SPLITS = ("validation", "test")
# Rows that are in memory together with their pictures.
_BATCH = 64
_NUM_THREADS = 4
_AFTER_THINKING = re.compile(r"</think>|<answer>")
_BOX_MENTION = re.compile(r"bbox_2d")
_BOX_LITERAL = re.compile(r"\{[^{}]*bbox_2d[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Rules:
    """What records are judged by. ``held_out`` maps the sha256 of a picture to the set that keeps it."""

    look: Look
    held_out: Mapping[str, str] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()
    min_script_share: float = 0.0
    languages: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path, look: Look, config: ValidationConfig) -> "Rules":
        """The rules for the set in ``folder``."""
        return cls(look, held_out_pictures(folder), config.scripts, config.min_script_share, config.languages)


@dataclass(frozen=True, slots=True)
class RecordFinding:
    """What one stored record turned out to be. Booleans are True for a sound record.

    ``held_out_in`` names the set that keeps the picture from training, ``foreign_text`` the script or the
    language that a text should not have; both are empty for a sound record.
    """

    id: str
    has_id: bool
    split: str
    question_characters: int
    rationale_characters: int
    num_crops: int
    num_boxes_in_text: int
    num_answers: int
    is_well_formed: bool
    steps_take_turns: bool
    steps_end_with_a_box: bool
    ends_with_answer: bool
    boxes_parse: bool
    boxes_are_those_in_text: bool
    boxes_are_inside: bool
    seen_size_follows_look: bool
    answer_matches_gold: bool
    image_is_intact: bool
    held_out_in: str
    was_accepted: bool
    foreign_text: str


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


def held_out_pictures(folder: Path) -> dict[str, str]:
    """Who keeps which picture (by sha256) from training: held-out questions and evaluation sets."""
    pictures = {
        digest: f"{QUESTIONS}/{split}"
        for split in HELD_OUT_SPLITS
        for digest in _column(folder / QUESTIONS / f"{split}.parquet", "image_sha256")
    }
    kept = folder / HELD_OUT
    origins = zip(_column(kept, "image_sha256"), _column(kept, "origin"), strict=True)
    return pictures | {digest: origin or HELD_OUT for digest, origin in origins}


def check_records(folder: Path, rules: Rules, measured: Measured) -> Iterator[list[RecordFinding]]:
    """A finding per stored record, batch by batch; ``measured`` counts the records meanwhile.

    A record without an id goes by its place. Pictures are decoded in threads, while Pillow lets others run.
    Call only when :func:`models.vlir.set_checks.check_columns` found what it expects.
    """
    with ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        for path in record_files(folder):
            number = 0
            for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH):
                rows = batch.to_pylist()
                measured.add(rows)
                findings = pool.map(check_record, rows, repeat(rules))
                yield [
                    finding if finding.has_id else replace(finding, id=f"{path.name} row {number + place}")
                    for place, finding in enumerate(findings)
                ]
                number += len(rows)


def check_record(row: Mapping[str, Any], rules: Rules) -> RecordFinding:
    """The finding about one row of a record file."""
    steps = row["steps"] or []
    texts = [step["text"] or "" for step in steps]
    text = "".join(texts)
    stored = [step["box"] for step in steps if step["box"] is not None]
    asked = [_asked_box(literal) for literal in _BOX_LITERAL.findall(text)]
    num_mentions = len(_BOX_MENTION.findall(text))
    question, rationale = (row["text"] or "").strip(), reasoning_text(text)
    return RecordFinding(
        id=row["id"] or "",
        has_id=bool(row["id"]),
        split=row["split"] or "",
        question_characters=len(question),
        rationale_characters=len(rationale),
        num_crops=len(stored),
        num_boxes_in_text=num_mentions,
        num_answers=text.count("<answer>"),
        is_well_formed=is_well_formed(text),
        steps_take_turns=_take_turns(steps),
        steps_end_with_a_box=all(
            _ends_with_command(step["text"] or "") for step in steps if step["box"] is not None
        ),
        ends_with_answer=text.rstrip().endswith(ANSWER_STOP),
        boxes_parse=None not in asked and len(asked) == num_mentions,
        boxes_are_those_in_text=stored == [box for box in asked if box is not None],
        boxes_are_inside=all(_is_sound(corners, row, rules.look) for corners in stored),
        seen_size_follows_look=_seen_size_follows(row, rules.look),
        answer_matches_gold=_answer_matches(row, text),
        image_is_intact=is_intact(row),
        held_out_in=rules.held_out.get(row["image_sha256"], ""),
        was_accepted=row["reason"] == "",
        foreign_text=_foreign(question, rules) or _foreign(rationale, rules),
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


def _column(path: Path, name: str) -> list[Any]:
    """A column of a Parquet file; nothing when there is no such file."""
    return pq.read_table(path, columns=[name])[name].to_pylist() if path.is_file() else []


def _asked_box(literal: str) -> list[float] | None:
    """The corners of a crop command about the record's one picture; None when it is none."""
    request = box_request(literal)
    if isinstance(request, BoxRequest) and request.image == 1:
        return list(request.box.corners())
    return None


def _take_turns(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Every step but the last ends in a crop, while the thinking goes on; the last one has none."""
    *looks, last = steps or [{"box": None, "text": ""}]
    thinks = all(step["box"] is not None and not _AFTER_THINKING.search(step["text"] or "") for step in looks)
    return thinks and last["box"] is None


def _ends_with_command(text: str) -> bool:
    """The crop follows its command at once; whether it is the command for this box is asked elsewhere."""
    return text.endswith(BOX_STOP) and box_request(text) is not None


def _foreign(text: str, rules: Rules) -> str:
    """The script or the language that a text should not have; empty when there is nothing to say."""
    if rules.scripts and script_share(text, rules.scripts) < rules.min_script_share:
        return f"not {'/'.join(rules.scripts)}"
    return foreign_language(text, rules.languages) if rules.languages else ""


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
