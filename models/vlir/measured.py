"""What validation measures of a whole set: its statistics, and a few ids of every source and size of crop."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from models.vlir.statistics import Statistics, area_shares, size_class

NUM_EXAMPLES = 3


class Measured:
    """Counts of the ``num_rows`` seen so far.

    A row that is too damaged to count fails elsewhere, and is left out.
    """

    def __init__(self) -> None:
        self.statistics = Statistics()
        self.num_rows = 0
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count stored rows of records."""
        for row in rows:
            self.num_rows += 1
            if not _is_countable(row):
                continue
            shares = area_shares(row)
            self.statistics.count(
                row["image_sha256"], source=row["source"], kind=row["kind"] or "", area_shares=shares
            )
            for name in {row["source"], *map(size_class, shares)}:
                if len(self.examples[name]) < NUM_EXAMPLES:
                    self.examples[name].append(row["id"] or "")


def _is_countable(row: Mapping[str, Any]) -> bool:
    boxes = [step["box"] for step in row["steps"] or [] if step["box"] is not None]
    named = (row["image_sha256"], row["source"], row["steps"], row["seen_width"], row["seen_height"])
    return all(named) and all(len(box) == 4 and None not in box for box in boxes)
