"""`vlm-r3 serve` as users have it: real vLLM, the embedded model, OpenAI's own client.

The base model was taught to answer "locate the red card" by a box; in the loop that is a crop command.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import openai
import psutil
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion
from PIL import Image

from models.config import EMBEDDED_MODEL
from models.encoding import Encoder
from models.presets import load_preset
from models.records import png_bytes
from models.rollout import Asked, stream
from models.tiny import phrases, world
from models.trajectory import Trajectory
from models.vllm_engine import VLLMEngine
from tests.serving_client import Served, served
from tests.serving_server import data_uri

pytestmark = [pytest.mark.integration]

KEY = "a key"
PRESET = load_preset("tiny")
LOOK = PRESET.look.model_copy(update={"system": phrases.BASE_SYSTEM_PROMPT, "max_turns": 80})


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("embedded", "--allow-private-urls", VLM_R3_SERVE_API_KEY=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def client(server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=300) as client:
        yield client


def scene(seed: int) -> tuple[Image.Image, str]:
    """A picture, and what to ask about it so that the base model looks."""
    drawn = world.sample_scene(np.random.default_rng(seed), "test")
    return world.draw(drawn), phrases.locate_prompt(drawn.cards[0].color)


def messages(text: str, *images: str) -> list:
    parts = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    return [
        {"role": "system", "content": phrases.BASE_SYSTEM_PROMPT},
        {"role": "user", "content": [*parts, {"type": "text", "text": text}]},
    ]


def ask(client: OpenAI, text: str, *images: str, **options):
    return client.chat.completions.create(model="vlm-r3", messages=messages(text, *images), **options)


def gathered(client: OpenAI, text: str, image: str) -> ChatCompletion:
    """A streamed answer, put together as the whole one would be."""
    chunks = list(ask(client, text, image, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    told = [delta.look_again for delta in deltas if hasattr(delta, "look_again")]
    message = {
        "role": "assistant",
        "content": "".join(delta.content or "" for delta in deltas),
        "look_again": {"looks": [look for one in told for look in one.get("looks", [])], **told[-1]},
    }
    choice = {"index": 0, "message": message, "finish_reason": chunks[-2].choices[0].finish_reason}
    head = {"id": chunks[0].id, "created": chunks[0].created, "model": "vlm-r3", "object": "chat.completion"}
    return ChatCompletion.model_validate({**head, "choices": [choice], "usage": chunks[-1].usage})


def metric(server: Served, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def answers_in_process(seeds: range) -> list[Trajectory]:
    """The same questions, by the loop on vLLM in this process."""
    asked = [Asked.about(str(seed), scene(seed)[1], [scene(seed)[0]], LOOK) for seed in seeds]
    engine = VLLMEngine(EMBEDDED_MODEL, PRESET.engine, look=PRESET.look)
    found = stream(engine, questions=asked, look=LOOK, num_samples=1, temperature=0.0, seed=0)
    trajectories = sorted(found, key=lambda trajectory: int(trajectory.question_id))
    engine.close()
    return trajectories


def test_two_hundred_clients_get_what_the_loop_gives_in_process(server, client):
    expected = answers_in_process(range(200))
    assert sum(len(trajectory.crops) for trajectory in expected) >= 200

    def answer(seed: int):
        image, text = scene(seed)
        with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=300) as own:
            return gathered(own, text, data_uri(image)) if seed % 2 else ask(own, text, data_uri(image))

    with ThreadPoolExecutor(200) as threads:
        replies = list(threads.map(answer, range(200)))
    for reply, trajectory in zip(replies, expected, strict=True):
        (choice,) = reply.choices
        assert choice.message.content == trajectory.sampled_text
        assert choice.message.look_again["stop"] == trajectory.stop
        boxes = [tuple(told["box"]) for told in choice.message.look_again["looks"] if told["error"] is None]
        assert boxes == [box.corners() for box in trajectory.accepted_boxes]
        assert reply.usage.completion_tokens == trajectory.num_sampled_tokens
    assert metric(server, "vlm_r3_crops_total") == sum(len(trajectory.crops) for trajectory in expected)
    assert metric(server, 'vlm_r3_requests_total{path="/v1/chat/completions",status="200"}') == 200
    assert metric(server, "vlm_r3_requests_in_flight") == 0


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_stream_says_the_same_as_the_whole(client, temperature):
    image, text = scene(3)
    options = {"temperature": temperature, "seed": 11, "n": 3}
    whole = ask(client, text, data_uri(image), **options)
    chunks = list(
        ask(client, text, data_uri(image), stream=True, stream_options={"include_usage": True}, **options)
    )
    told = [chunk.choices[0] for chunk in chunks if chunk.choices]
    for choice in whole.choices:
        deltas = [each.delta for each in told if each.index == choice.index]
        assert "".join(delta.content or "" for delta in deltas) == choice.message.content
        looks = [one for delta in deltas for one in getattr(delta, "look_again", {}).get("looks", [])]
        assert looks == choice.message.look_again["looks"]
    assert chunks[-1].usage == whole.usage
    assert len(told) > 3 * len(whole.choices), "text comes as it is sampled"


def test_a_picture_by_url_is_the_same_as_in_the_request(client):
    image, text = scene(4)

    class Picture(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png_bytes(image))

        def log_message(self, *arguments) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Picture)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    by_url = ask(client, text, f"http://127.0.0.1:{web.server_port}/picture.png")
    web.shutdown()
    assert by_url.choices[0].message == ask(client, text, data_uri(image)).choices[0].message
    assert by_url.choices[0].message.look_again["looks"]


def test_a_conversation_goes_on_from_what_the_model_saw(client):
    """The second question is asked after just the tokens of the first, crops included."""
    (first, text), (second, _) = scene(3), scene(4)
    asked = messages(text, data_uri(first))
    reply = client.chat.completions.create(model="vlm-r3", messages=asked)
    assert [look["error"] for look in reply.choices[0].message.look_again["looks"]] == [None]
    user = messages("the other", data_uri(second))[1]
    following = client.chat.completions.create(
        model="vlm-r3", messages=[*asked, reply.choices[0].message, user]
    )
    alone = client.chat.completions.create(model="vlm-r3", messages=[asked[0], user])
    # Before the question stand system text, first question, crop and reply; the end of the reply was sampled,
    # a line break follows it. What is left of the second question without its system text:
    encoder = Encoder.load(EMBEDDED_MODEL)
    system = encoder.tokenizer.encode(f"<|im_start|>system\n{asked[0]['content']}<|im_end|>\n")
    assert following.usage.prompt_tokens == (
        reply.usage.total_tokens + len(encoder.tokenize("\n")) + alone.usage.prompt_tokens - len(system)
    )
    assert following.usage.prompt_tokens_details.image_tokens >= 3 * 4


def test_several_pictures_none_and_asked_directly(client):
    (first, text), (second, _) = scene(5), scene(6)
    several = ask(client, text, data_uri(first), data_uri(second))
    assert several.usage.prompt_tokens_details.image_tokens >= 32
    assert ask(client, phrases.arithmetic_prompt(2, 3)).choices[0].message.content == "5"
    direct = ask(client, text, data_uri(first), extra_body={"look_again": False})
    assert direct.choices[0].message.look_again["looks"] == []
    assert '"bbox_2d"' in direct.choices[0].message.content


def test_a_question_beyond_the_context_is_a_400(client):
    for is_stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="context of 512 tokens"):
            ask(client, "~ " * 900, stream=is_stream)


def test_the_key_is_wanted(server):
    with pytest.raises(openai.AuthenticationError):
        OpenAI(base_url=f"{server.url}/v1", api_key="other", max_retries=0).models.list()


def test_an_engine_that_dies_ends_the_server_and_every_answer():
    with served("embedded", code=1) as server:
        (engine,) = [
            child
            for child in psutil.Process(server.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        ]
        os.kill(engine.pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while psutil.pid_exists(server.pid) and psutil.Process(server.pid).status() != "zombie":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "exit code -9" in server.log.read_text()
