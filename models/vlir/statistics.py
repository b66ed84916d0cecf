"""The statistics of a rationale set that the paper shows in Figure 3: crops, sources, crop sizes."""

from collections import Counter
from dataclasses import dataclass, field

from models.records import VLIRRecord
from models.region import Size, View

# Upper bounds of a crop's share of the picture's area (paper 4.2); "large" has none.
SIZE_CLASSES: tuple[tuple[str, float], ...] = (("very_small", 0.05), ("small", 0.25), ("medium", 0.5))
LARGEST_CLASS = "large"


@dataclass(slots=True)
class Statistics:
    """Counts over the records added so far. Crop sizes are counted per crop."""

    crops_per_record: Counter[int] = field(default_factory=Counter)
    records_per_source: Counter[str] = field(default_factory=Counter)
    records_per_kind: Counter[str] = field(default_factory=Counter)
    crops_per_size: Counter[str] = field(default_factory=Counter)

    def add(self, record: VLIRRecord) -> None:
        """Count one record."""
        self.crops_per_record[len(record.boxes)] += 1
        self.records_per_source[record.question.source] += 1
        self.records_per_kind[record.question.kind] += 1
        view = View(Size(record.question.width, record.question.height), Size(*record.seen_size))
        for box in record.boxes:
            self.crops_per_size[size_class(box.area / view.seen.area)] += 1

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
            "crops_per_record": {
                str(key): self.crops_per_record[key] for key in sorted(self.crops_per_record)
            },
            "records_per_source": dict(sorted(self.records_per_source.items())),
            "records_per_kind": dict(sorted(self.records_per_kind.items())),
            "crops_per_size": {name: self.crops_per_size[name] for name in sizes},
        }


def size_class(area_share: float) -> str:
    """The paper's name for a crop that takes this share (0 to 1) of the picture's area."""
    return next((name for name, bound in SIZE_CLASSES if area_share < bound), LARGEST_CLASS)
