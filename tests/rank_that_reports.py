"""A stage of nothing: every rank leaves a file that names the node it ran on; the first waits for all."""

import os
import sys
import time
from pathlib import Path

from models.rundir import Result, RunDir


def main(folder: Path) -> int:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    node = os.environ.get("JOB_COMPLETION_INDEX", "")
    (folder / f"rank-{rank}").write_text(f"node {node}, group {os.environ['GROUP_RANK']}")
    print(f"rank {rank} of {size} on node {node}", flush=True)
    while rank == 0 and len(list(folder.glob("rank-*"))) < size:
        time.sleep(0.1)
    if rank == 0:
        RunDir(folder).finish(Result(status="done"))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
