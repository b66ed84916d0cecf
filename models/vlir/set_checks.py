"""What is looked at in a set as a whole: columns, splits, sources, and drift against the previous version."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import RecordError
from models.records import RECORD_SCHEMA, SCHEMA_VERSION
from models.vlir.checks import HELD_OUT_SPLITS, record_files
from models.vlir.layout import QUESTIONS, VALIDATION
from models.vlir.measured import Measured

_MISSING = "missing"
# A drawn world has a split of its own and names its records itself.
_DRAWN = "tiny"
# Which counts of the statistics must not drift, by the bound of the configuration that they have.
DRIFTS = {"size_drift": "crops_per_size", "source_drift": "records_per_source"}


@dataclass(frozen=True, slots=True)
class PairFinding:
    """Something of a file as it was found, beside what was expected."""

    id: str
    found: str
    expected: str


@dataclass(frozen=True, slots=True)
class SourceFinding:
    """How many accepted records a source gave."""

    id: str
    num_records: int


@dataclass(frozen=True, slots=True)
class DriftFinding:
    """How far the shares of some counts moved: the total-variation distance, 0 to 1, and what moved most."""

    distance: float
    most_moved: str
    words: str


def check_columns(folder: Path) -> list[PairFinding]:
    """Schema version and columns of every shard, beside what they should be, in Arrow's words."""
    findings = []
    for path in record_files(folder):
        schema = pq.read_schema(path)
        version = (schema.metadata or {}).get(b"schema_version", _MISSING.encode()).decode()
        findings.append(PairFinding(f"{path.name}:schema_version", version, SCHEMA_VERSION))
        for name in dict.fromkeys([*RECORD_SCHEMA.names, *schema.names]):
            found, expected = _type_of(name, schema), _type_of(name, RECORD_SCHEMA)
            # Arrow and Parquet name the element of a list differently; that is no difference in type.
            same = found is not None and found == expected
            findings.append(
                PairFinding(
                    f"{path.name}:{name}",
                    str(expected if same else found or _MISSING),
                    str(expected or _MISSING),
                )
            )
    return findings


def check_splits(folder: Path) -> list[PairFinding]:
    """The splits in every file whose name promises one; the records of training are judged one by one."""
    named = [(folder / QUESTIONS / f"{split}.parquet", split) for split in ("train", *HELD_OUT_SPLITS)]
    named += [(path, "validation") for path in sorted((folder / VALIDATION).glob("*.parquet"))]
    findings = []
    for path, split in named:
        if path.is_file():
            found = sorted(
                {str(name) for name in pq.read_table(path, columns=["split"])["split"].to_pylist()}
            )
            name = path.relative_to(folder).as_posix()
            findings.append(PairFinding(name, ", ".join(found) or split, split))
    return findings


def check_sources(manifest: Mapping[str, Any], measured: Measured) -> list[SourceFinding]:
    """Accepted records of every source that was asked for, or that records name."""
    configured = manifest["settings"]["vlir"].get("sources", [])
    named = {found["name"] or found["kind"] for found in configured if found["kind"] != _DRAWN}
    counts = measured.statistics.records_per_source
    return [SourceFinding(name, counts[name]) for name in sorted({*named, *manifest["source_mix"], *counts})]


def read_statistics(path: Path) -> dict[str, dict[str, int]]:
    """The statistics that validating a version left. Raises RecordError when the file is none."""
    try:
        found: dict[str, dict[str, int]] = json.loads(path.read_text())
        if not all(isinstance(found[name], dict) for name in DRIFTS.values()):
            raise TypeError(f"{sorted(found)} are not counts")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path} holds no statistics of a previous version ({error}). Name the statistics.json of a "
            "verdict, or leave previous_path empty."
        ) from error
    return found


def drift(now: Mapping[str, int], before: Mapping[str, int]) -> DriftFinding:
    """The total-variation distance between the shares of two counts; of nothing to something it is 1."""
    shares, earlier = _shares(now), _shares(before)
    moves = {name: shares.get(name, 0.0) - earlier.get(name, 0.0) for name in sorted({*shares, *earlier})}
    if bool(shares) != bool(earlier):
        return DriftFinding(1.0, "", "one of the versions has none")
    most = max(moves, key=lambda name: abs(moves[name]), default="")
    words = f"{most} from {earlier.get(most, 0.0):.1%} to {shares.get(most, 0.0):.1%}" if most else ""
    return DriftFinding(sum(map(abs, moves.values())) / 2, most, words)


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()} if total else {}


def _type_of(name: str, schema: pa.Schema) -> pa.DataType | None:
    return schema.field(name).type if name in schema.names else None
