"""The comparison with TRL at its smallest: TRL trains on our completions, crops included."""

from pathlib import Path

import pytest
import torch

from models.config import resolve_model_path
from models.encoding import Encoder
from models.records import read_questions, read_records
from models.rgrpo.rollouts import read_rollouts, rollouts_path, steps_kept
from models.rundir import RunDir
from models.sft.train import LOOK_AHEAD
from tests.benchmarks import training_speed
from tests.dictated_training import dictated_training
from tests.length_mixes import MIXES, mixed
from tests.small_set import build_small_set
from tests.trl_trainers import LookAgainTrainer, reinforce

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("mix", MIXES)
def test_no_mix_repeats_a_question_or_a_crop(tmp_path: Path, mix: str) -> None:
    # Our stage looks at a picture once however often it is there, and computes a common prompt once.
    records = read_records(build_small_set(tmp_path / "set", num_questions=12) / "records")
    chosen = mixed(records, mix)
    assert len(chosen) > 4
    assert len({record.question.id for record in chosen}) == len(chosen)
    encoder, look = Encoder.load(resolve_model_path("embedded")), training_speed._preset("tiny").look
    pictures = [one.digest for record in chosen for one in encoder.encode_record(record, look).pictures]
    assert len(set(pictures)) == len(pictures)
    num_looks = [len(record.boxes) for record in chosen]
    assert {"short": max(num_looks) == 0, "long": min(num_looks) >= 3}.get(mix, True)


def test_no_counted_picture_is_looked_at_before_the_clock_starts() -> None:
    assert training_speed.WARM_UP_STEPS % LOOK_AHEAD == 0


def test_trl_trains_on_the_completions_of_our_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = build_small_set(tmp_path / "set", num_questions=4) / "questions" / "train.parquet"
    options = training_speed._parser().parse_args(["--threads", "1"])
    config = training_speed._rgrpo_run(options, "tiny", questions, num_ranks=1)
    few = {"questions_per_step": 2, "group_size": 4, "num_steps": 2}
    config = config.model_copy(update={"rgrpo": config.rgrpo.model_copy(update=few)})
    run = RunDir.create(tmp_path / "run", config)
    dictated_training(run, config)
    steps = [read_rollouts(rollouts_path(run.path, step)) for step in steps_kept(run.path)]
    assert [len(step) for step in steps] == [8, 8]
    num_crops = sum(len(one.transcript.crops) for step in steps for one in step)
    assert num_crops > 4

    seen = []
    loss = LookAgainTrainer._compute_loss

    def watched(trainer: LookAgainTrainer, model: torch.nn.Module, inputs: dict) -> torch.Tensor:
        seen.append(
            (len(inputs["image_grid_thw"]), int(inputs["tool_mask"].mul(inputs["completion_mask"]).sum()))
        )
        return loss(trainer, model, inputs)

    monkeypatch.setattr(LookAgainTrainer, "_compute_loss", watched)
    preset = training_speed._preset("tiny")
    ends = reinforce(
        resolve_model_path("embedded"),
        steps,
        {question.id: question for question in read_questions(questions)},
        preset.model_copy(update={"rgrpo": config.rgrpo}),
        batch_size=4,
        num_processes=1,
    )
    assert len(ends) == 2
    # Both sides trained on the same pictures and the same sampled tokens.
    num_tokens = sum(one.transcript.num_sampled_tokens for step in steps for one in step)
    assert (sum(pictures for pictures, _ in seen), sum(tokens for _, tokens in seen)) == (
        16 + num_crops,
        num_tokens,
    )
