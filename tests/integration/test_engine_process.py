"""The engine in a process of its own gives what it gives inside, and says why when it is gone."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from models.config import EngineConfig, Look
from models.engine import DraftingEngine
from models.errors import EngineError
from models.policy import load_policy
from models.region import Box
from models.serving.engine_process import EngineProcess
from models.trajectory import CropSpan, GenerationRequest, Prompt
from models.transformers_engine import TransformersEngine
from tests.tiny_models import finish, picture, save_random_model

pytestmark = pytest.mark.integration

LOOK = Look(min_pixels=3136, max_pixels=12544)
CONFIG = EngineConfig(kind="transformers", dtype="float32", max_model_len=256, num_threads=1)


def request(id: str, *, num_crops: int = 0, max_new_tokens: int = 6) -> GenerationRequest:
    prompt = Prompt("what is it?", (picture(112, 112, seed=num_crops),), None)
    spans = (CropSpan(picture(56, 56), Box(0, 0, 9, 9, "seen")),) * num_crops
    return GenerationRequest(id, prompt, spans, (), max_new_tokens, 0.0, 1)


@pytest.fixture(scope="module")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def engine(untied_model: Path):
    engine = EngineProcess(untied_model, CONFIG, look=LOOK)
    yield engine
    engine.close()


def test_it_answers_like_the_engine_inside(engine, untied_model):
    assert isinstance(engine, DraftingEngine)
    requests = [request(str(number), num_crops=number) for number in range(3)]
    inside = TransformersEngine(load_policy(untied_model), CONFIG)
    assert finish(engine, requests) == finish(inside, requests)


def test_an_aborted_request_gives_nothing(engine):
    engine.submit(request("gone", max_new_tokens=100))
    engine.submit(request("kept"))
    engine.abort("gone")
    engine.abort("unknown")
    found = []
    while not found:
        found += engine.step()
    assert [piece.request_id for piece in found] == ["kept"]


def test_a_request_that_cannot_be_encoded_fails_alone(engine):
    odd = replace(request("odd"), prompt=Prompt("what <|image_pad|> is it?", (), None))
    pieces = finish(engine, [odd, request("good")])
    assert (pieces["odd"].finish, pieces["good"].finish) == ("error", "length")


def test_when_it_dies_everybody_is_told(engine):
    engine.submit(request("lost", max_new_tokens=100))
    os.kill(engine._process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="exit code -9"):
        finish(engine, [request("later")])
