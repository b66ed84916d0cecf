"""Which device an engine gets, what its process is told of the world, and settings that cannot be meant."""

import os

import pytest
import torch
from pydantic import ValidationError

from models.config import RGRPOConfig
from models.errors import ConfigError
from models.rgrpo.dedicated import engine_device
from models.rgrpo.engine_process import environment_of_engine

CPU = torch.device("cpu")


def cuda(index: int) -> torch.device:
    return torch.device("cuda", index)


def test_every_rank_of_a_host_has_its_own_gpu_for_its_engine():
    found = [engine_device((6, 4, 5), trainer=cuda(rank), num_trainers=3, num_devices=8) for rank in range(3)]
    assert found == [6, 4, 5]
    assert engine_device((), trainer=CPU, num_trainers=2, num_devices=0) is None


@pytest.mark.parametrize(
    ("devices", "num_trainers", "num_devices", "said"),
    [
        ((), 2, 4, "those are 2 to 3"),  # none named
        ((2,), 2, 4, "for each of the 2 engines"),  # one too few
        ((2, 2), 2, 4, "another GPU for each of the 2 engines"),
        ((2, 3, 3), 2, 4, "another GPU for each of the 2 engines"),
        ((1, 2), 2, 4, "none on which a rank trains"),
        ((2, 4), 2, 4, "those are 2 to 3"),  # there is no fifth GPU
        ((1,), 1, 1, "those are none"),
    ],
)
def test_gpus_that_cannot_be_meant_are_refused(devices, num_trainers, num_devices, said):
    with pytest.raises(ConfigError, match=said):
        engine_device(devices, trainer=cuda(0), num_trainers=num_trainers, num_devices=num_devices)


def test_gpus_are_not_ignored_where_there_are_none():
    with pytest.raises(ConfigError, match="this machine has none"):
        engine_device((0,), trainer=CPU, num_trainers=1, num_devices=0)


def test_the_process_of_an_engine_sees_its_gpu_and_no_launcher(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    before = dict(os.environ)
    with environment_of_engine(2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
        assert "RANK" not in os.environ
        assert "TORCHELASTIC_USE_AGENT_STORE" not in os.environ
        assert os.environ["PATH"] == before["PATH"]
    assert dict(os.environ) == before
    with environment_of_engine(None):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5,7"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with environment_of_engine(2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_devices_without_engines_of_their_own_are_refused():
    with pytest.raises(ValidationError, match=r"engine_devices .* are for placement 'dedicated'"):
        RGRPOConfig(engine_devices=(1,))


def test_overlap_is_refused_where_it_would_mean_nothing_or_something_else():
    with pytest.raises(ValidationError, match="overlap needs placement 'dedicated'"):
        RGRPOConfig(profile="standard", overlap=True)
    with pytest.raises(ValidationError, match=r"Eq\. 2 is strictly on-policy"):
        RGRPOConfig(profile="paper", placement="dedicated", overlap=True)
    config = RGRPOConfig(profile="standard", placement="dedicated", overlap=True)
    assert [config.sampled_by(step) for step in range(4)] == [0, 0, 1, 2]
    assert RGRPOConfig().sampled_by(3) == 3
