"""An index of annotated boxes that fits into memory: some 100 bytes per question, whatever its texts."""

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from models.region import Size
from models.vlir.sources.boxes import Annotation


class AnnotationIndex:
    """Annotations by 64-bit keys (:func:`models.vlir.sources.faults.key_of`)."""

    def __init__(self, items: Iterable[tuple[Iterable[int], Annotation]]) -> None:
        keys, places = array("Q"), array("q")
        self._first, self._corners, self._sizes = array("q", [0]), array("d"), array("i")
        self._is_padded = array("b")
        for place, (names, annotation) in enumerate(items):
            for key in names:
                keys.append(key)
                places.append(place)
            for corners in annotation.corners:
                self._corners.extend(corners)
            self._first.append(len(self._corners) // 4)
            size = annotation.size
            self._sizes.extend((0, 0) if size is None else (size.width, size.height))
            self._is_padded.append(annotation.is_padded)
        order = np.argsort(_numbers(keys, "u8"), kind="stable")
        self._keys = _numbers(keys, "u8")[order]
        self._places = _numbers(places, "i8")[order]

    def find(self, key: int) -> Annotation | None:
        """The first annotation with a key."""
        found = np.searchsorted(self._keys, np.uint64(key))
        if found == len(self._keys) or int(self._keys[found]) != key:
            return None
        return self._annotation(int(self._places[found]))

    def find_only(self, key: int) -> Annotation | None:
        """The annotation with a key, if there is just one."""
        first, last = (np.searchsorted(self._keys, np.uint64(key), side) for side in ("left", "right"))
        return self._annotation(int(self._places[first])) if last - first == 1 else None

    def _annotation(self, place: int) -> Annotation:
        first, last = self._first[place], self._first[place + 1]
        width, height = self._sizes[2 * place : 2 * place + 2]
        corners = [self._corners[4 * each : 4 * each + 4] for each in range(first, last)]
        return Annotation(
            tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in corners),
            Size(width, height) if width and height else None,
            bool(self._is_padded[place]),
        )


def _numbers(values: array, kind: str) -> NDArray:
    return np.frombuffer(values, dtype=kind) if values else np.empty(0, dtype=kind)
