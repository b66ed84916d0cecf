"""VSR (Liu et al. 2023, cambridgeltl/vsr_random and vsr_zeroshot): is a caption true of a COCO picture?

The rows only name their pictures, which are those of COCO 2017, downloaded apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from models.vlir.sources.base import Fault, FaultKind, Sample
from models.vlir.sources.boxes import FittedBoxes
from models.vlir.sources.faults import BadRow, Row, content_id, question_of, samples, shown, text_of
from models.vlir.sources.files import PictureFolder
from models.vlir.sources.lines import Lines, check_training_file
from models.vlir.sources.visual_cot import BoxJoin

LICENCE = "Apache-2.0 (repository), CC BY 4.0 (card); pictures: COCO's terms"
_QUESTION = "Is this statement about the picture true? {caption} Answer yes or no."
_NEEDED = ("image", "caption", "label")
_COCO_FOLDERS = ("train2017", "val2017")
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class VSR:
    """The statements of a training file."""

    label: str
    licence: str
    lines: Lines
    pictures: PictureFolder
    join: BoxJoin | None

    def num_rows(self) -> int:
        """How many rows there are."""
        return self.lines.num_rows

    def rows(self, *, start: int = 0) -> Iterator[Sample | Fault]:
        """Every row from number ``start`` on."""
        return samples(self.lines.rows(), start=start, id_of=self._id, sample_of=self._sample)

    def _id(self, row: Row) -> str:
        return f"{self.label}-{content_id(text_of(row, 'image'), text_of(row, 'caption'))}"

    def _sample(self, number: int, id: str, row: Row) -> Sample:
        caption = question_of(row, "caption")
        label = row.get("label")
        if label is None:
            raise BadRow(FaultKind.NO_ANSWER, "label is missing")
        if isinstance(label, bool) or label not in (0, 1):
            raise BadRow(FaultKind.BAD_ROW, f"label is {shown(label)}; it must be 0 or 1")
        names = picture_names(row)
        data = self.pictures.read_first(names)
        text, answers = _QUESTION.format(caption=caption), ("yes",) if label else ("no",)
        fitted = FittedBoxes()
        if self.join is not None:
            fitted = self.join.fit(data, caption, answers, names[:1])
        return Sample(
            row=number,
            id=id,
            text=text,
            answers=answers,
            image_bytes=data,
            picture=names[0],
            boxes=fitted.boxes,
            question=caption,
            num_dropped_boxes=fitted.num_dropped,
        )


def picture_names(row: Row) -> tuple[str, ...]:
    """Where a row's picture may lie: in the folder itself, or as COCO's archives unpack."""
    name = text_of(row, "image")
    if not name:
        raise BadRow(FaultKind.MISSING_IMAGE, "the row names no picture")
    link = PurePosixPath(urlsplit(text_of(row, "image_link")).path).parent.name
    folders = dict.fromkeys((link, *_COCO_FOLDERS)) if link else dict.fromkeys(_COCO_FOLDERS)
    return (name, *(f"{folder}/{name}" for folder in folders))


def find_lines(data: Path) -> Lines:
    """The training file at a place, a folder or a file. Raises RecordError for any other."""
    path = data / "train.jsonl" if data.is_dir() else data
    check_training_file(path, "VSR")
    lines = Lines((path,), max_line_bytes=_MAX_LINE_BYTES)
    lines.check_fields(_NEEDED, "VSR")
    return lines
