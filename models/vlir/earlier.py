"""An earlier set that a build goes on from: what its questions came to, so that nobody is asked again.

Only an index of it is in memory: sixteen bytes per stored try, and eight per question. The tries themselves
are read when their question's turn comes, without pictures, a row group at a time; questions come in the
order of their sources, so that a group is read once.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.config import Look, VLIRConfig
from models.errors import RecordError
from models.records import SCHEMA_VERSION, Question, sha256
from models.vlir.askers import Attempt
from models.vlir.checks import read_manifest
from models.vlir.entries import digest_of
from models.vlir.filters import OUR_FAILURES
from models.vlir.layout import MANIFEST, RECORDS, REJECTED, VALIDATION

# What a box of a record means, and whether it may be there, depends on these.
_DECISIVE = (
    *("min_pixels", "max_pixels", "pixel_factor", "max_crops", "min_side"),
    *("max_aspect_ratio", "repeated_iou"),
)
_IDENTITY = ["source", "id", "image_sha256", "text", "answers", "gold_boxes"]
_RATIONALE = [
    *("steps", "final_answer", "seen_width", "seen_height"),
    *("teacher", "prompt_id", "verdicts", "reason"),
]
_WAY_OUT = "Leave vlir.earlier empty (for retraining: retrain.keep_earlier=false) to ask everything again."
# Row groups in memory: neighbours lie in four files (by split, accepted or not), and in at most two of each.
_NUM_CACHED = 8


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group of a file of the set."""

    path: Path
    number: int


class EarlierSet:
    """The accepted and rejected tries of a finished set, found by their question."""

    def __init__(self, folder: Path, look: Look, *, ask_rejected_again: bool = False) -> None:
        """Raises RecordError when there is no finished set in ``folder``, when its schema version is another
        one, or when its boxes were asked for under other rules than those of ``look``.

        With ``ask_rejected_again`` a question that nobody answered well is as if it had never been asked.
        """
        self.manifest = read_manifest(folder)
        self.digest = sha256((folder / MANIFEST).read_bytes())
        self._check(folder, look)
        self._ask_rejected_again = ask_rejected_again
        self._groups: list[_Group] = []
        self._rows: OrderedDict[int, list[dict[str, Any]]] = OrderedDict()
        parts = [self._index(folder / name) for name in self._files(folder)]
        names, keys, groups, places = (
            np.concatenate([np.array([], dtype), *(part[column] for part in parts)])
            for column, dtype in enumerate((np.uint64, np.uint64, np.int32, np.int32))
        )
        self._names = np.unique(names)
        # Stable: of one question the tries stay in their order, rejected ones before the accepted one.
        order = np.argsort(keys, kind="stable")
        self._keys, self._group_of, self._place_of = keys[order], groups[order], places[order]

    def knows(self, source: str, id: str) -> bool:
        """Whether a question of this name was asked, which may have been another one."""
        name = _name(source, id)
        place = np.searchsorted(self._names, name)
        return bool(place < len(self._names) and self._names[place] == name)

    def tries_of(self, question: Question) -> tuple[Attempt, ...]:
        """What the same question came to, in order; empty when it must be asked.

        The same is: source, id, picture, words, answers and annotated boxes.
        """
        boxes = [list(box.corners()) for box in question.gold_boxes]
        key = _key(
            question.source, question.id, question.image_sha256, question.text, question.answers, boxes
        )
        first, last = (np.searchsorted(self._keys, key, side) for side in ("left", "right"))
        found = tuple(
            Attempt(number, self._row(int(self._group_of[place]), int(self._place_of[place])), {}, 0, 0)
            for number, place in enumerate(range(first, last))
        )
        is_accepted = any(not each.reason for each in found)
        return () if self._ask_rejected_again and not is_accepted else found

    def describe(self, kept: Mapping[str, Counter[str]]) -> dict[str, Any]:
        """For the manifest of the new set; ``kept`` has what was kept of each split."""
        counts = {split: dict(sorted(counted.items())) for split, counted in sorted(kept.items())}
        return {"digest": self.digest, "teacher": self.manifest.get("teacher", ""), "kept": counts}

    def _check(self, folder: Path, look: Look) -> None:
        version = self.manifest.get("schema_version", "none")
        if version != SCHEMA_VERSION:
            raise RecordError(
                f"The earlier set {folder} has schema version {version!r}; this program knows "
                f"{SCHEMA_VERSION!r}, so its records cannot be kept. {_WAY_OUT}"
            )
        before, now = self.manifest["settings"]["look"], look.model_dump(mode="json")
        other = [
            f"look.{name} {before.get(name)} and now {now[name]}"
            for name in _DECISIVE
            if before.get(name) != now[name]
        ]
        if other:
            raise RecordError(
                f"The earlier set {folder} was made with {', '.join(other)}: its boxes mean something else. "
                f"{_WAY_OUT}"
            )

    def _files(self, folder: Path) -> list[str]:
        """The files with tries; rejected ones first, as they came before what was accepted."""
        names = [
            name
            for part in (REJECTED, RECORDS, VALIDATION)
            for name in sorted(self.manifest["files"])
            if name.startswith(f"{part}/") and name.endswith(".parquet")
        ]
        gone = [name for name in names if not (folder / name).is_file()]
        if gone:
            raise RecordError(f"The earlier set {folder} lacks {', '.join(gone[:3])}. Fetch it again.")
        return names

    def _index(self, path: Path) -> tuple[NDArray[Any], ...]:
        """Name, key, group and place of every try of a file that says something about its question."""
        names, keys, groups, places = [], [], [], []
        for group, rows in _read_groups(path):
            self._groups.append(group)
            for place, row in enumerate(rows):
                if row["reason"] not in OUR_FAILURES:
                    names.append(_name(row["source"], row["id"]))
                    keys.append(_key(*(row[name] for name in _IDENTITY)))
                    groups.append(len(self._groups) - 1)
                    places.append(place)
        return (
            np.array(names, np.uint64),
            np.array(keys, np.uint64),
            np.array(groups, np.int32),
            np.array(places, np.int32),
        )

    def _row(self, group: int, place: int) -> dict[str, Any]:
        if group not in self._rows:
            found = self._groups[group]
            table = pq.ParquetFile(found.path).read_row_group(found.number, columns=_RATIONALE)
            self._rows[group] = table.to_pylist()
            if len(self._rows) > _NUM_CACHED:
                self._rows.popitem(last=False)
        self._rows.move_to_end(group)
        return self._rows[group][place]


def open_earlier(config: VLIRConfig, look: Look) -> EarlierSet | None:
    """The earlier set that a build goes on from; None when none is named. Raises as :class:`EarlierSet`."""
    if not config.earlier:
        return None
    return EarlierSet(Path(config.earlier), look, ask_rejected_again=config.ask_rejected_again)


def _read_groups(path: Path) -> Iterator[tuple[_Group, list[dict[str, Any]]]]:
    try:
        file = pq.ParquetFile(path)
        for number in range(file.num_row_groups):
            rows = file.read_row_group(number, columns=[*_IDENTITY, "reason"]).to_pylist()
            yield _Group(path, number), rows
    except (pa.ArrowInvalid, OSError) as error:
        raise RecordError(f"{path} of the earlier set cannot be read: {error}. Fetch it again.") from error


def _key(
    source: str,
    id: str,
    image_sha256: str,
    text: str,
    answers: Sequence[str],
    gold_boxes: Sequence[Sequence[float]],
) -> np.uint64:
    """Sixty-four bits that are the same for the same question only."""
    boxes = [[float(side) for side in box] for box in gold_boxes]
    return _sixty_four(digest_of([source, id, image_sha256, text, list(answers), boxes]))


def _name(source: str, id: str) -> np.uint64:
    return _sixty_four(digest_of([source, id]))


def _sixty_four(digest: str) -> np.uint64:
    return np.uint64(int(digest[:16], 16))
