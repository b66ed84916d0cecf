"""How near data generation comes to what a slow teacher allows: requests per second of a whole build.

    python -m tests.benchmarks.teacher_throughput [--rows N] [--rounds N]

The teacher is :mod:`tests.simulated_teacher`, a server in a process of its own on the same machine: it
replies after 200 ms, asks for one crop and answers. There are 256 connections, so that at most 256 / 0.2 s =
1280 requests a second are possible. The build is the real child process, as ``vlm-r3 build-vlir --manifest``
starts it: rows are read, pictures decoded, crops cut and encoded, rationales filtered, journalled and written
to shards. The teacher's clock runs from the first request to the last reply, so that start and end, when
fewer requests are on their way, are included; what a build does before (it looks through all rows once) and
after it (plots) is not. The CPU time of both sides is shown, too: it must fit into the machine.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.rundir import write_atomically
from tests.benchmarks.builds import NUM_CONNECTIONS, build, make_run
from tests.simulated_teacher import teaching

NAME = "teacher_throughput"
LATENCY_SECONDS = 0.2
IDEAL = NUM_CONNECTIONS / LATENCY_SECONDS  # requests per second
MIN_SHARE = 0.9


def one_round(num_rows: int) -> dict[str, float]:
    """Build a set of so many rows."""
    with teaching(LATENCY_SECONDS) as teacher, tempfile.TemporaryDirectory() as folder:
        figures = build(make_run(Path(folder), num_rows, teacher.url))
        load, server_seconds = teacher.load(), teacher.cpu_seconds()
    num_requests = load["requests"]
    assert load["most at once"] <= NUM_CONNECTIONS
    return {
        "seconds of the build": figures["seconds"],
        "seconds of the teacher": load["seconds"],
        "requests": num_requests,
        "requests per second": num_requests / load["seconds"],
        "share of the ideal": num_requests / load["seconds"] / IDEAL,
        "most at once": load["most at once"],
        "build, CPU ms per request": figures["CPU seconds"] / num_requests * 1000,
        "teacher, CPU ms per request": server_seconds / num_requests * 1000,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; 1 when the limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(".vlm-r3/bench"), help="folder of the JSON file")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rounds = [one_round(options.rows) for _ in range(options.rounds)]
    median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    for name, value in median.items():
        print(f"{name:28} {value:.3f}")
    figures = {
        "ideal requests per second": IDEAL,
        "cores": len(os.sched_getaffinity(0)),
        "median": median,
        "rounds": rounds,
    }
    write_atomically(options.out / f"{NAME}.json", json.dumps(figures, indent=2) + "\n")
    return 0 if median["share of the ideal"] >= MIN_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
