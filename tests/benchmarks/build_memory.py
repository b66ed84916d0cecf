"""What a build takes of memory and time as its manifest grows: peak RSS of its processes, against rows.

    python -m tests.benchmarks.build_memory [--rows N ...] [--asked SHARE]

Every row of a generated manifest is a question of its own about one of 500 small pictures. The build is the
real child process with a teacher over HTTP (:mod:`tests.simulated_teacher`, without delay) and no judges, so
every row is read three times, asked, cropped, filtered, journalled and written. To ask a teacher a million
questions takes hours: with ``--asked 0.02`` the other rows are read and kept for the test split.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.rundir import write_atomically
from tests.benchmarks.builds import build, make_run
from tests.simulated_teacher import teaching

NAME = "build_memory"
MAX_GROWTH_GIB = 1.5


def interpreter_gib() -> float:
    """What Python takes with everything imported that a build imports."""
    program = (
        "import models.vlir.build, models.http_engine, psutil; print(psutil.Process().memory_info().rss)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(output.stdout) / 2**30


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; 1 when the limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--asked", type=float, default=1.0, help="share of rows that the teacher is asked")
    parser.add_argument("--out", type=Path, default=Path(".vlm-r3/bench"), help="folder of the JSON file")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    base = interpreter_gib()
    print(f"{'rows':>9} {'records':>9} {'peak GiB':>9} {'beyond the interpreter':>23} {'seconds':>9}")
    found = []
    with teaching(0.0) as teacher:
        for num_rows in options.rows:
            with tempfile.TemporaryDirectory() as folder:
                run = make_run(Path(folder), num_rows, teacher.url, asked=options.asked)
                figures = {"rows": num_rows, **build(run)}
            figures["beyond the interpreter, GiB"] = figures["peak GiB"] - base
            found.append(figures)
            print(
                f"{num_rows:9d} {figures['records']:9.0f} {figures['peak GiB']:9.3f} "
                f"{figures['beyond the interpreter, GiB']:23.3f} {figures['seconds']:9.0f}",
                flush=True,
            )
    write_atomically(
        options.out / f"{NAME}.json", json.dumps({"interpreter GiB": base, "builds": found}, indent=2) + "\n"
    )
    return 0 if max(figures["beyond the interpreter, GiB"] for figures in found) <= MAX_GROWTH_GIB else 1


if __name__ == "__main__":
    sys.exit(main())
