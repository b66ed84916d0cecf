"""The statistics of a rationale set that the paper shows in Figure 3: crops, sources, crop sizes.

The paper counts one "image" per sample: its crops per image (11,105 with one, 607 with two, then 68, 16, 8, 3
and 3) are 11,810 images, its samples, and 12,666 crops, while its size classes hold 11,810 crops. Here every
crop is in both histograms, and an image is a distinct picture, however many questions ask about it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from models.records import VLIRRecord

# Upper bounds of a crop's share of the picture's area (paper 4.2); "large" has none.
SIZE_CLASSES: tuple[tuple[str, float], ...] = (("very_small", 0.05), ("small", 0.25), ("medium", 0.5))
LARGEST_CLASS = "large"
_COLUMNS = ["image_sha256", "source", "kind", "seen_width", "seen_height", "steps"]


@dataclass(slots=True)
class Statistics:
    """Counts over the records added so far. Crop sizes are counted per crop.

    ``crops_per_picture`` maps the start of a picture's sha256 (64 bits) to its crops; a million pictures take
    less than 200 MiB.
    """

    crops_per_record: Counter[int] = field(default_factory=Counter)
    crops_per_picture: Counter[str] = field(default_factory=Counter)
    records_per_source: Counter[str] = field(default_factory=Counter)
    records_per_kind: Counter[str] = field(default_factory=Counter)
    crops_per_size: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of_file(cls, path: Path) -> "Statistics":
        """The statistics of one Parquet file of records, without reading its pictures."""
        statistics = cls()
        for batch in pq.ParquetFile(path).iter_batches(columns=_COLUMNS):
            for row in batch.to_pylist():
                statistics.count(
                    row["image_sha256"],
                    source=row["source"],
                    kind=row["kind"],
                    area_shares=area_shares(row),
                )
        return statistics

    def add(self, record: VLIRRecord) -> None:
        """Count one record."""
        width, height = record.seen_size
        self.count(
            record.question.image_sha256,
            source=record.question.source,
            kind=record.question.kind,
            area_shares=[box.area / (width * height) for box in record.boxes],
        )

    def count(self, image_sha256: str, *, source: str, kind: str, area_shares: Iterable[float]) -> None:
        """Count one record by its parts; ``area_shares`` has its crops' shares of the picture's area."""
        sizes = [size_class(share) for share in area_shares]
        self.crops_per_record[len(sizes)] += 1
        self.crops_per_picture[image_sha256[:16]] += len(sizes)
        self.records_per_source[source] += 1
        self.records_per_kind[kind] += 1
        self.crops_per_size.update(sizes)

    def merge(self, other: "Statistics") -> None:
        """Add what another part of the set counted."""
        self.crops_per_record.update(other.crops_per_record)
        self.crops_per_picture.update(other.crops_per_picture)
        self.records_per_source.update(other.records_per_source)
        self.records_per_kind.update(other.records_per_kind)
        self.crops_per_size.update(other.crops_per_size)

    @property
    def crops_per_image(self) -> Counter[int]:
        """How many distinct pictures have how many crops, over all records about them."""
        return Counter(self.crops_per_picture.values())

    @property
    def num_records(self) -> int:
        """Records counted."""
        return self.crops_per_record.total()

    @property
    def num_crops(self) -> int:
        """Crops counted."""
        return self.crops_per_size.total()

    @property
    def source_mix(self) -> dict[str, float]:
        """Share of each source among the records, 0 to 1."""
        return {source: count / self.num_records for source, count in sorted(self.records_per_source.items())}

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Plain mappings in a stable order, every size class present."""
        sizes = [name for name, _ in SIZE_CLASSES] + [LARGEST_CLASS]
        return {
            "crops_per_image": _by_number(self.crops_per_image),
            "crops_per_record": _by_number(self.crops_per_record),
            "records_per_source": dict(sorted(self.records_per_source.items())),
            "records_per_kind": dict(sorted(self.records_per_kind.items())),
            "crops_per_size": {name: self.crops_per_size[name] for name in sizes},
        }


def area_shares(row: Mapping[str, Any]) -> list[float]:
    """What the crops of a stored record take of the picture's area, each 0 to 1."""
    seen = row["seen_width"] * row["seen_height"]
    boxes = (step["box"] for step in row["steps"] if step["box"] is not None)
    return [(x2 - x1) * (y2 - y1) / seen for x1, y1, x2, y2 in boxes]


def size_class(area_share: float) -> str:
    """The paper's name for a crop that takes this share (0 to 1) of the picture's area."""
    return next((name for name, bound in SIZE_CLASSES if area_share < bound), LARGEST_CLASS)


def _by_number(counts: Counter[int]) -> dict[str, int]:
    return {str(number): counts[number] for number in sorted(counts)}
