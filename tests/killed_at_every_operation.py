"""Kill a stage before its Nth operation on the files of its run, for every N, and let it go on.

    python -m tests.killed_at_every_operation sft|sft-best|rgrpo|rgrpo-ahead FOLDER

What it then comes to must be what it comes to undisturbed: weights, metrics, rollouts, result, and the files
that there are. ``sft-best`` may stop early, ``rgrpo-ahead`` samples the next step in a process of its own
while it trains. Every trial is a fork of this process, which has read all libraries; it has one thread.
Prints the number of operations, and a line for every one after which something differs.
"""

import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from models import child
from models.config import GuardsConfig, ObjectiveConfig, SFTConfig
from models.records import write_questions, write_records
from models.rgrpo import train as rgrpo
from models.run_config import RGRPORun, SFTRun
from models.rundir import RunDir
from models.sft import train as sft
from tests.killed import files_of, metrics_of, rollouts_of
from tests.tiny_models import save_random_model
from tests.training_data import questions, records, rgrpo_config, rgrpo_run, sft_run

_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
# Rollouts of the next step, with the corrections that they need.
_AHEAD = {
    "placement": "dedicated",
    "overlap": True,
    "objective": ObjectiveConfig(aggregation="token-mean", clip_high=0.28, engine_weight_cap=2.0),
}
_NAMES, _KILLED = "names of files", "killed before"


def main(kind: str, folder: Path) -> int:
    """Try all; 1 when one differs."""
    config = _config(kind, folder)
    expected = _come_to(RunDir.create(folder / "undisturbed", config), config)
    differ = number = 0
    before = ""
    while True:
        run = RunDir.create(folder / "killed", config)
        killed = _stage(run, config, kill_at=number + 1)
        if killed == 0:
            break
        assert os.WIFSIGNALED(killed), _log_of(run)[-4000:]
        number += 1
        found = _come_to(run, config)
        before = next(line for line in _log_of(run).splitlines() if line.startswith(_KILLED))
        wrong = [name for name, value in found.items() if value != expected[name]]
        if wrong:
            differ += 1
            more = set(found[_NAMES]) ^ set(expected[_NAMES])
            print(f"{before}: other {', '.join(wrong)} {sorted(more)}", flush=True)
        shutil.rmtree(run.path)
        (folder / "killed.txt").unlink()
    print(f"{number} operations, {differ} after which something differs", flush=True)
    assert "result.json" in before, "it was never killed when it wrote its result, which is the last"
    return int(differ > 0)


def _config(kind: str, folder: Path) -> SFTRun | RGRPORun:
    model = save_random_model(folder / "base", tied=True)
    if kind.startswith("rgrpo"):
        write_questions(folder / "questions.parquet", questions(6))
        reinforcement = rgrpo_config(
            num_steps=3,
            checkpoint_every=1,
            keep_checkpoints=1,
            num_threads=1,
            guards=GuardsConfig(probe_every=2, probe_questions=2),
            **(_AHEAD if kind == "rgrpo-ahead" else {}),
        )
        return rgrpo_run(model, folder / "questions.parquet", reinforcement, is_probed=True)
    path = folder / "records.parquet"
    write_records(path, records(6))
    training = SFTConfig(
        num_epochs=2,
        batch_size=4,
        tokens_per_micro_batch=256,
        learning_rate=1e-3,
        precision="float32",
        checkpoint_every=1,
        keep_checkpoints=1,
        num_threads=1,
        early_stop_patience=5 if kind == "sft-best" else 0,
    )
    return sft_run(model, path, training, validation_path=path)


def _come_to(run: RunDir, config: SFTRun | RGRPORun) -> dict[str, Any]:
    """What a run is in the end, but for the time that it took."""
    assert _stage(run, config) == 0, _log_of(run)[-4000:]
    result = run.result()
    measured = {name: value for name, value in result.metrics.items() if not name.startswith("time/")}
    return {
        "weights": files_of(run.path / "model"),
        "metrics": metrics_of(run),
        "rollouts": rollouts_of(run),
        "result": (result.status, result.reason, result.artifacts, measured),
        _NAMES: sorted(files_of(run.path)),
    }


def _stage(run: RunDir, config: SFTRun | RGRPORun, *, kill_at: int = 0) -> int:
    """The status of a process that runs the stage; it is killed before that operation on files of the run."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    log = os.open(_log(run), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in _CHANGES) and str(run.path) in str(arguments[0]):
            count += 1
            if count == kill_at:
                os.write(2, f"\n{_KILLED} {event} {arguments[0]}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        if isinstance(config, SFTRun):
            code = child.run_stage(sft.train, SFTRun, [str(run.path)])
        else:
            code = child.run_stage(rgrpo.train, RGRPORun, [str(run.path)])
    except BaseException:  # whatever it is, this process must not go on as the one that it was forked from
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def _log(run: RunDir) -> Path:
    return run.path.with_suffix(".txt")


def _log_of(run: RunDir) -> str:
    return _log(run).read_text()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
