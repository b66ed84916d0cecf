"""Checkpoints that another number of ranks takes over, and gradients that are no numbers; under torchrun:

torchrun --nproc-per-node N tests/state_of_ranks.py MODEL_PATH THEIRS OURS

First it goes on from every checkpoint under THEIRS, then it makes its own under OURS; the loss of the next
step is kept for both.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import checkpoints, distributed
from models.checkpoints import Progress
from models.config import Precision, SFTConfig
from models.distributed import DeepSpeedEngine
from models.errors import TrainingError
from models.policy import Policy, load_policy
from models.rundir import RunDir
from models.sft.step import sft_step
from tests import bad_samples
from tests.bad_gradients import nan_in_gradient_of, nan_in_gradient_of_row
from tests.training_data import LOOK, records

# Of every kind: the stage that saves, and another one that loads.
CASES: tuple[tuple[Precision, int, int], ...] = (
    ("float32", 0, 3),
    ("float32", 1, 2),
    ("float32", 2, 0),
    ("float32", 3, 1),
    ("bfloat16", 2, 3),
    ("bfloat16", 0, 2),
)


def engine_of(model_path: Path, precision: Precision, zero_stage: int) -> DeepSpeedEngine:
    """The model as it begins, under DeepSpeed."""
    config = SFTConfig(precision=precision, zero_stage=zero_stage)
    return distributed.initialise(load_policy(model_path), config)


def take_step(engine: DeepSpeedEngine) -> float:
    """The loss of one step on four records, dealt out to the ranks."""
    policy: Policy = engine.module
    mine = range(distributed.rank(), 4, distributed.num_ranks())
    all_records = records(4)
    encoded = [policy.encoder.encode_record(all_records[index], LOOK) for index in mine]
    ids = [f"record-{index}" for index in mine]
    return sft_step(engine, encoded, ids, learning_rate=0.01, max_tokens=256)["sft/loss"]


def make(model_path: Path, folder: Path) -> dict[str, float]:
    """A checkpoint of each case after two steps; returns the loss of each case's third."""
    losses = {}
    for precision, saves, _ in CASES:
        engine = engine_of(model_path, precision, saves)
        for _ in range(2):
            take_step(engine)
        run = RunDir(folder / f"{precision}-{saves}")
        run.path.mkdir(exist_ok=True)
        checkpoints.save(run, engine, Progress(2, num_samples=8))
        losses[run.path.name] = take_step(engine)
    return losses


def go_on(model_path: Path, folder: Path) -> dict[str, float]:
    """The loss of the third step of each case, from another's checkpoint at another stage of ZeRO."""
    losses = {}
    for precision, saved, loads in CASES:
        engine = engine_of(model_path, precision, loads)
        progress = checkpoints.resume(RunDir(folder / f"{precision}-{saved}"), engine)
        assert progress == Progress(2, num_samples=8)
        losses[f"{precision}-{saved}"] = take_step(engine)
    return losses


def refusals(model_path: Path) -> dict[str, str]:
    """What is said of something that is no number on the last rank alone, in fine-tuning and R-GRPO."""
    said = {}
    is_last = distributed.rank() == distributed.num_ranks() - 1
    for zero_stage in range(4):
        for name, plant in (("row", nan_in_gradient_of_row), ("weights", nan_in_gradient_of)):
            engine = engine_of(model_path, "float32", zero_stage)
            if is_last:
                plant(engine.module)
            try:
                take_step(engine)
            except TrainingError as error:
                said[f"{zero_stage}-{name}"] = str(error)
    for zero_stage in (2, 3):
        for fault in ("logprob", "gradient"):
            told, is_unchanged = bad_samples.refused(model_path, zero_stage, fault)
            said[f"rgrpo-{zero_stage}-{fault}"] = told if is_unchanged else "the weights have changed"
    return said


def main(model_path: Path, theirs: Path, ours: Path) -> None:
    """Everything, on every rank; the first one writes what was found, each what it was told."""
    distributed.start(num_threads=1)
    found = {"theirs": go_on(model_path, theirs), "ours": make(model_path, ours)}
    if distributed.is_main():
        (ours / "losses.json").write_text(json.dumps(found))
    (ours / f"refusals-{distributed.rank()}.json").write_text(json.dumps(refusals(model_path)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
