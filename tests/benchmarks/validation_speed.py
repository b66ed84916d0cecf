"""How long the gate takes over a whole set, and what memory it needs: as a child process, as a flow runs it.

    python -m tests.benchmarks.validation_speed [--records 12000] [--limit 60]

The records are those of a drawn set, repeated under ids of their own; every record has its picture decoded.
Rounds: a quarter of the records (so that the memory of the rest shows), all of them, and all of them with a
fault each, because examples of what fails are looked for, too. The limit holds for every round.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from models.config import ValidationConfig
from models.records import RECORD_SCHEMA, write_rows
from models.run_config import ValidationRun
from models.rundir import RunDir, write_atomically
from models.vlir.layout import RECORDS
from models.vlir.verdict import VERDICT, ValidationVerdict
from tests.small_set import build_small_set

_DISTINCT = 600
_ROWS_PER_SHARD = 512
_MIB = 2**20


def repeat(rows: Sequence[dict[str, Any]], number: int, *, is_broken: bool) -> Iterator[dict[str, Any]]:
    """So many rows, each with an id of its own; broken ones have another gold answer."""
    for index, row in enumerate(islice(cycle(rows), number)):
        yield row | {"id": f"{row['id']}-{index}"} | ({"answers": ["none of these"]} if is_broken else {})


def enlarge(folder: Path, rows: Sequence[dict[str, Any]], number: int, *, is_broken: bool) -> None:
    """Put that many rows in the place of the set's records."""
    shutil.rmtree(folder / RECORDS)
    made = repeat(rows, number, is_broken=is_broken)
    shard = 0
    while batch := list(islice(made, _ROWS_PER_SHARD)):
        write_rows(folder / RECORDS / f"shard-{shard:05d}.parquet", RECORD_SCHEMA, batch)
        shard += 1


def validate(run: RunDir) -> tuple[float, float, float]:
    """Of a child process: seconds from its start to its end, what it computed in seconds, peak MiB."""
    began, spent = time.monotonic(), children_cpu_seconds()
    child = subprocess.Popen([sys.executable, "-m", "models.vlir.validate", str(run.path)])
    process, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    assert child.wait() == 0
    return time.monotonic() - began, children_cpu_seconds() - spent, peak / _MIB


def children_cpu_seconds() -> float:
    """What the ended children of this process have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(work: Path, number: int) -> dict[str, float]:
    """The figures of all rounds."""
    folder = work / "vlir"
    build_small_set(folder, num_questions=_DISTINCT)
    rows = pq.read_table(folder / RECORDS).to_pylist()
    config = ValidationRun(records_path=str(folder), validation=ValidationConfig())
    figures: dict[str, float] = {"records": number}
    for name, count, is_broken in (
        ("a quarter", number // 4, False),
        ("all", number, False),
        ("all, each broken", number, True),
    ):
        enlarge(folder, rows, count, is_broken=is_broken)
        run = RunDir.create(work / name, config)
        seconds, computed, peak = validate(run)
        figures |= {f"{name}, s": seconds, f"{name}, CPU s": computed, f"{name}, peak MiB": peak}
        verdict = ValidationVerdict.from_json((run.path / "verdict" / VERDICT).read_text())
        assert verdict.num_records == count
        assert {failure.name: failure.unexpected_count for failure in verdict.failures} == (
            {"answer_matches_gold": count} if is_broken else {}
        )
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; 1 when the limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--records", type=int, default=12_000)
    parser.add_argument("--limit", type=float, default=60.0, help="most seconds of a round")
    parser.add_argument("--out", type=Path, default=Path(".vlm-r3/bench"), help="folder of the JSON file")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        figures = measure(Path(work), options.records)
    for name, value in figures.items():
        print(f"{name:28} {value:g}")
    write_atomically(options.out / "validation_speed.json", json.dumps(figures, indent=2) + "\n")
    slowest = max(value for name, value in figures.items() if name.endswith(", s"))
    return 0 if slowest < options.limit else 1


if __name__ == "__main__":
    sys.exit(main())
