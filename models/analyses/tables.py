"""The data of an analysis as CSV."""

import csv
import io
from collections.abc import Iterable, Mapping


def to_csv(rows: Iterable[Mapping[str, object]]) -> str:
    """One line per row under the keys of the first one; numbers to six digits, empty for None."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for index, row in enumerate(rows):
        if index == 0:
            writer.writerow(row)
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row.values()])
    return buffer.getvalue()
