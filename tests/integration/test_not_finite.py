"""What is no number in R-GRPO stops before the optimiser, whoever's fault it is; nothing is lost by it.

Two ranks: ``tests/integration/test_checkpoints.py``. Fine-tuning: there and in ``test_training.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from models import checkpoints, distributed
from models.config import GuardsConfig
from models.errors import TrainingError
from models.records import write_questions
from models.rgrpo import train as rgrpo
from models.rgrpo.actors import Actors, opened
from models.rgrpo.rollouts import read_rollouts, rollouts_path
from models.run_config import RGRPORun
from models.rundir import RunDir
from tests.bad_samples import BAD, FAULTS, refused
from tests.tiny_models import save_random_model
from tests.training_data import questions, rgrpo_config, rgrpo_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    distributed.start(num_threads=1)
    return save_random_model(tmp_path_factory.mktemp("model"), tied=False)


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_update_is_refused_with_the_sample_and_changes_nothing(
    model_path: Path, fault: str, zero_stage: int
) -> None:
    said, is_unchanged = refused(model_path, zero_stage, fault)
    assert is_unchanged
    if fault == "weights":
        assert "gradient of the weights is not finite" in said
        assert "question-0#0, question-0#1, question-1#0, question-1#1." in said
    elif fault == "engine":
        assert "Engine and trainer disagree: KL nan" in said
    else:
        assert f"not finite for 1 samples: {BAD}." in said


def test_without_a_fault_the_same_update_is_made(model_path: Path) -> None:
    assert refused(model_path, 2, "gradient", is_planted=False) == ("", False)


@pytest.fixture
def config(model_path: Path, tmp_path: Path) -> RGRPORun:
    write_questions(tmp_path / "questions.parquet", questions(4))
    training = rgrpo_config(
        num_steps=3, checkpoint_every=1, keep_checkpoints=3, guards=GuardsConfig(enabled=False)
    )
    return rgrpo_run(model_path, tmp_path / "questions.parquet", training)


def test_a_run_that_was_stopped_goes_on_from_its_last_checkpoint(config: RGRPORun, tmp_path: Path) -> None:
    unbroken, run = (RunDir.create(tmp_path / name, config) for name in ("unbroken", "run"))
    rgrpo.train(unbroken, config)
    with opened(config) as actors, no_number_in_the_third_step(actors) as planted:
        training = rgrpo.Training(run, config, actors)
        with pytest.raises(TrainingError, match="not finite for 1 samples: question-") as caught:
            training.run_to_the_end(checkpoints.resume(run, actors.engine))
        assert planted == [True]
    assert rollouts_path(run.path, 2).is_file()  # with the sample that is named
    trained = [one.transcript for one in read_rollouts(rollouts_path(unbroken.path, 2)) if one.is_trained]
    names = [f"{one.question_id}#{one.sample_index}" for one in trained]
    assert sum(f"samples: {name}." in str(caught.value) for name in names) == 1
    assert [folder.name for folder in run.checkpoints()] == ["step-1", "step-2"]
    rgrpo.train(run, config)
    assert (run.path / "model" / "model.safetensors").read_bytes() == (
        unbroken.path / "model" / "model.safetensors"
    ).read_bytes()


@contextmanager
def no_number_in_the_third_step(actors: Actors) -> Iterator[list[bool]]:
    """The first log-prob of the third update is no number; the list tells that it happened."""
    planted: list[bool] = []

    def plant(module: torch.nn.Module, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled() or actors.engine.global_steps != 2 or planted:
            return logits
        planted.append(True)
        spoiled = logits.clone()
        spoiled[0] = torch.nan
        return spoiled

    handle = actors.engine.module.model.lm_head.register_forward_hook(plant)
    yield planted
    handle.remove()
