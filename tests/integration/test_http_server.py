"""The HTTP engine against vLLM's real server: the same greedy text as in process, crops included."""

from collections.abc import Iterator

import numpy as np
import pytest

from models.config import EMBEDDED_MODEL, EngineConfig, JudgeConfig
from models.evaluation.judge import Judge
from models.http_engine import HTTPEngine
from models.presets import load_preset
from models.records import Question
from models.region import Box
from models.rollout import rollout
from models.tiny import world
from models.trajectory import CropSpan, GenerationRequest, Prompt, Span, StopReason
from models.vllm_engine import VLLMEngine
from tests.benchmark_examples import ROWS
from tests.model_server import model_server
from tests.tiny_models import finish, picture, sampled

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PRESET = load_preset("tiny")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a server with the embedded model; it ends with the test."""
    with model_server(tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def local() -> Iterator[VLLMEngine]:
    engine = VLLMEngine(EMBEDDED_MODEL, PRESET.engine, look=PRESET.look)
    yield engine
    engine.close()


def at(endpoint: str, **changes) -> HTTPEngine:
    return HTTPEngine(EngineConfig(kind="http", endpoint=endpoint, served_model="tiny", **changes))


def half_written(encoder, num_crops: int) -> GenerationRequest:
    """A turn that has looked ``num_crops`` times and goes on."""
    spans: list[Span] = []
    for crop in range(num_crops):
        corners = (10 * crop, 20, 10 * crop + 40, 60)
        spans.append(sampled(encoder, f'<think>I look closer.{{"bbox_2d": {list(corners)}}}'))
        shown = picture(28 * (crop + 2), 56, seed=crop)
        spans.append(CropSpan(shown, Box(*map(float, corners), space="seen")))
    prompt = Prompt("what code is on the red card?", (picture(112, 112, seed=9),), PRESET.look.system)
    return GenerationRequest(str(num_crops), prompt, tuple(spans), ("}", "</answer>"), 20, 0.0)


def drawn_questions(number: int) -> list[Question]:
    questions = []
    for seed in range(number):
        rng = np.random.default_rng(seed)
        scene = world.sample_scene(rng, "train")
        asked = world.ask(scene, "read", rng)
        questions.append(Question.of_image(world.draw(scene), asked.text, id=str(seed)))
    return questions


def test_a_reply_goes_on_after_its_crops_as_in_process(endpoint, local):
    requests = [half_written(local.encoder, num_crops) for num_crops in range(4)]
    remote = at(endpoint)
    pieces = finish(remote, requests).values()
    remote.close()
    expected = finish(local, requests).values()
    assert [piece.finish for piece in pieces] == [piece.finish for piece in expected]
    assert [piece.span.text for piece in pieces] == [piece.span.text for piece in expected]
    assert [piece.span.num_tokens for piece in pieces] == [piece.span.num_tokens for piece in expected]


def test_several_pictures_and_none_are_asked_as_in_process(endpoint, local):
    several = (picture(112, 112, seed=1), picture(56, 84, seed=2))
    prompts = [
        Prompt("which card is red?", several, PRESET.look.system, (0, 6)),
        Prompt("which card is red?", several[:1], None, (18,)),
        Prompt("which card is red?", (), PRESET.look.system),
    ]
    requests = [GenerationRequest(str(i), prompt, (), (), 20, 0.0) for i, prompt in enumerate(prompts)]
    remote = at(endpoint)
    pieces = finish(remote, requests).values()
    remote.close()
    expected = finish(local, requests).values()
    assert [piece.error for piece in pieces] == [""] * 3
    assert [piece.span.text for piece in pieces] == [piece.span.text for piece in expected]


def test_rollouts_are_those_of_the_engine_in_process(endpoint, local):
    questions = drawn_questions(8)
    remote = at(endpoint)
    trajectories = rollout(remote, questions, look=PRESET.look)
    remote.close()
    expected = rollout(local, questions, look=PRESET.look)
    assert [trajectory.text for trajectory in trajectories] == [trajectory.text for trajectory in expected]
    assert [trajectory.stop for trajectory in trajectories] == [trajectory.stop for trajectory in expected]


def test_the_server_takes_crops_as_user_turns(endpoint, local):
    remote = at(endpoint, continuation="user_turn")
    pieces = finish(remote, [half_written(local.encoder, num_crops) for num_crops in range(4)])
    remote.close()
    assert [piece.error for piece in pieces.values()] == [""] * 4


def test_a_question_that_is_too_long_ends_at_the_context_limit(endpoint):
    question = drawn_questions(1)[0]
    long = Question.of_image(question.image(), "what is " + "K7 " * PRESET.engine.max_model_len)
    remote = at(endpoint)
    (trajectory,) = rollout(remote, [long], look=PRESET.look)
    remote.close()
    assert trajectory.stop is StopReason.CONTEXT_LIMIT


def test_the_server_takes_a_judges_conversation_and_nothing_is_made_of_its_babble(endpoint, tmp_path):
    """The embedded model knows no verdicts, so both of its replies are none, and nothing is kept."""
    config = JudgeConfig(endpoint=endpoint, served_model="tiny", max_reply_tokens=8)
    judge = Judge("hallusionbench", config, tmp_path)
    (judgement,) = judge.judge([(ROWS["hallusionbench"][1][0], "It falls.")])
    assert judgement.verdict is None
    assert "which is no verdict, 2 times asked" in judgement.reason
    assert list(tmp_path.iterdir()) == []
