import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest
from PIL import Image

from models.config import EngineConfig, Look
from models.errors import EngineError
from models.http_engine import CONTINUE_TEXT, CROP_TEXT, HTTPEngine, chat_body
from models.protocol import STOPS
from models.records import Question
from models.region import Box, Picture
from models.rollout import rollout
from models.trajectory import (
    AS_MANY_AS_FIT,
    CropSpan,
    Exchange,
    GenerationRequest,
    Prompt,
    SampledSpan,
    StopReason,
    TextSpan,
)
from models.usage import Usage
from tests.chat_endpoint import FakeEndpoint, completion, serving

LOOK_AT = '{"bbox_2d": [0, 0, 56, 56]}'


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with serving() as fake:
        yield fake


def picture(width=56, height=28):
    return Picture.of(Image.new("RGB", (width, height), (200, 10, 10)))


def request(*spans, id="r", temperature=0.5, seed=7):
    prompt = Prompt("what is red?", (picture(),), "Look twice.")
    return GenerationRequest(id, prompt, spans, STOPS, 40, temperature, seed)


def finish(config, *requests):
    engine = HTTPEngine(config)
    for one in requests:
        engine.submit(one)
    pieces = {}
    while len(pieces) < len(requests):
        pieces.update({piece.request_id: piece for piece in engine.step()})
    engine.close()
    return [pieces[one.request_id] for one in requests]


def test_a_reply_becomes_a_piece(endpoint):
    endpoint.answer = lambda body, number: (
        200,
        completion("It is red.") | {"usage": {"completion_tokens": 4}},
    )
    (piece,) = finish(endpoint.config(), request())
    assert (piece.finish, piece.span.text, piece.span.num_tokens) == ("end", "It is red.", 4)
    assert piece.span.token_ids is None
    assert endpoint.headers[0]["path"] == "/v1/chat/completions"


def test_the_question_is_sent_with_its_picture(endpoint):
    finish(endpoint.config(), request())
    body = endpoint.bodies[0]
    assert body["model"] == "m"
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (40, 0.5, 7)
    assert body["stop"] == ["}", "</answer>"]
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Look twice."}
    image, text = user["content"]
    assert text == {"type": "text", "text": "what is red?"}
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Picture.of(Image.open(io.BytesIO(data))) == picture()


def test_a_file_that_shows_what_is_seen_is_sent_as_it_is(endpoint):
    buffer = io.BytesIO()
    Image.effect_noise((56, 28), 50).convert("RGB").save(buffer, format="JPEG")
    seen = Picture.of(Image.open(buffer), file=buffer.getvalue())
    prompt = Prompt("what is red?", (seen, picture()))
    finish(endpoint.config(), GenerationRequest("r", prompt, (), STOPS, 40, 0.5))
    own, other, _ = endpoint.bodies[0]["messages"][0]["content"]
    own, other = own["image_url"]["url"], other["image_url"]["url"]
    assert base64.b64decode(own.removeprefix("data:image/jpeg;base64,")) == buffer.getvalue()
    assert other.startswith("data:image/png;base64,")


def test_earlier_turns_come_before_the_question(endpoint):
    crop = CropSpan(picture(), Box(0, 0, 9, 9, "seen"))
    exchange = Exchange(Prompt("code?", (picture(),)), (SampledSpan("I look."), crop, SampledSpan("K7")))
    prompt = Prompt("sure?", (), "Look twice.", (), (exchange,))
    finish(endpoint.config(), GenerationRequest("r", prompt, (), STOPS, 40, 0.5))
    messages = endpoint.bodies[0]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in messages[2]["content"]] == ["text", "image_url", "text"]
    assert messages[3]["content"] == [{"type": "text", "text": "sure?"}]


def test_text_that_json_must_escape_arrives(endpoint):
    text = 'a "quoted"\n\\ \u00e9 \U0001f600 \x00 {}'
    finish(endpoint.config(), GenerationRequest("r", Prompt(text, (picture(),)), (), STOPS, 40, 0.5))
    assert endpoint.bodies[0]["messages"][0]["content"][1]["text"] == text


def test_a_limit_beyond_the_context_is_left_to_the_endpoint():
    request = GenerationRequest("r", Prompt("?"), (), (), AS_MANY_AS_FIT, 0.0)
    assert "max_tokens" not in chat_body(request, EngineConfig(max_model_len=8192))


@pytest.mark.parametrize("api_key", ["", "secret", "secret\n"])
def test_the_key_is_sent_when_there_is_one(endpoint, api_key):
    engine = HTTPEngine(endpoint.config(), api_key=api_key)
    engine.submit(request())
    while not engine.step():
        pass
    engine.close()
    assert endpoint.headers[0].get("Authorization") == ("Bearer secret" if api_key else None)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(endpoint, status):
    endpoint.answer = lambda body, number: (status, "busy") if number < 3 else (200, completion("at last"))
    (piece,) = finish(endpoint.config(), request())
    assert (piece.finish, piece.span.text) == ("end", "at last")
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize("header", ["0.4", "date"])
def test_an_endpoint_that_says_when_to_come_back_is_not_asked_before(endpoint, header):
    times = []

    def answer(body, number):
        times.append(time.time())
        if number > 1:
            return 200, completion("at last")
        # A date has whole seconds, so two of them are at least one.
        value = formatdate(time.time() + 2, usegmt=True) if header == "date" else header
        return 429, "slow down", {"Retry-After": value}

    endpoint.answer = answer
    (piece,) = finish(endpoint.config(), request())
    assert piece.span.text == "at last"
    assert 0.4 <= times[1] - times[0] < 20


def test_an_endpoint_that_wants_to_be_left_alone_for_an_hour_is_an_error(endpoint):
    endpoint.answer = lambda body, number: (429, "come back later", {"Retry-After": "3600"})
    (piece,) = finish(endpoint.config(), request())
    assert piece.finish == "error"
    assert len(endpoint.bodies) == 1


def test_what_was_asked_and_tried_again_is_counted(endpoint):
    reply = completion("hello") | {"usage": {"prompt_tokens": 70, "completion_tokens": 3}}
    replies = [(429, "slow"), (500, "down"), (408, "late"), (200, reply), (200, reply), (400, "bad")]
    endpoint.answer = lambda body, number: replies[number - 1]
    engine = HTTPEngine(endpoint.config(max_tries=4))
    pieces = []
    for number in range(3):
        engine.submit(request(id=str(number)))
        while not (found := engine.step()):
            pass
        pieces += found
    assert [piece.context_tokens for piece in pieces] == [70, 70, 0]
    assert engine.usage == Usage(3, 1, 140, 6, {"rate_limit": 1, "server": 1, "timeout": 1, "connection": 0})
    engine.close()


def test_a_cut_connection_is_tried_again(endpoint):
    endpoint.answer = lambda body, number: (200, completion("hello"), {"Content-Length": "9999"})
    engine = HTTPEngine(endpoint.config(max_tries=2))
    engine.submit(request())
    while not (pieces := engine.step()):
        pass
    assert pieces[0].finish == "error"
    assert engine.usage.retries["connection"] == 1
    engine.close()


def test_an_endpoint_that_stays_busy_is_an_error_not_an_answer(endpoint):
    endpoint.answer = lambda body, number: (429, "slow down")
    (piece,) = finish(endpoint.config(), request())
    assert (piece.finish, piece.span.text) == ("error", "")
    assert "3 tries" in piece.error
    assert "429: slow down" in piece.error
    assert len(endpoint.bodies) == 3


def test_a_refused_request_is_not_tried_again(endpoint):
    endpoint.answer = lambda body, number: (401, "who are you?")
    (piece,) = finish(endpoint.config(), request())
    assert piece.finish == "error"
    assert "401: who are you?" in piece.error
    assert len(endpoint.bodies) == 1


def test_a_redirect_is_refused_and_the_key_is_not_sent_there(endpoint):
    endpoint.answer = lambda body, number: (307, "elsewhere", {"Location": f"{endpoint.url}/other"})
    (piece,) = finish(endpoint.config(), request())
    assert piece.finish == "error"
    assert "307: elsewhere" in piece.error
    assert len(endpoint.bodies) == 1


def test_a_reply_that_takes_too_long_is_an_error(endpoint):
    endpoint.answer = lambda body, number: time.sleep(0.4) or (200, completion("too late"))
    (piece,) = finish(endpoint.config(timeout_seconds=0.05, max_tries=2), request())
    assert piece.finish == "error"
    assert "ReadTimeout" in piece.error


def test_nobody_at_the_endpoint_is_an_error(endpoint):
    config = endpoint.config().model_copy(update={"endpoint": "http://127.0.0.1:9/v1"})
    (piece,) = finish(config, request())
    assert piece.finish == "error"
    assert "ConnectError" in piece.error


@pytest.mark.parametrize(
    "junk",
    [
        "<html>gateway</html>",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": {}}]}',
        '{"choices": [{"message": {"content": null}}]}',
        '{"choices": "no"}',
        '{"choices": [3]}',
        '{"choices": [{"message": {"content": ["text"]}}]}',
        '{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": "\\ud800"}}]}',
        '{"error": {"message": "overloaded"}}',
        "[" * 100_000,
    ],
    ids=range(13),
)
def test_junk_is_an_error_not_an_answer(endpoint, junk):
    endpoint.answer = lambda body, number: (200, junk)
    (piece,) = finish(endpoint.config(), request())
    assert (piece.finish, piece.span.text) == ("error", "")
    assert junk[:300] in piece.error.replace("\\\\", "\\")


@pytest.mark.parametrize("usage", [None, 7, [], {"completion_tokens": "many", "prompt_tokens": True}])
def test_a_reply_without_a_count_of_tokens_is_a_reply(endpoint, usage):
    endpoint.answer = lambda body, number: (200, completion("hello") | {"usage": usage})
    (piece,) = finish(endpoint.config(), request())
    assert (piece.span.text, piece.span.num_tokens, piece.context_tokens) == ("hello", None, 0)


def test_a_model_that_ends_its_turn_at_once_is_no_junk(endpoint):
    endpoint.answer = lambda body, number: (200, completion("") | {"usage": {"completion_tokens": 1}})
    (piece,) = finish(endpoint.config(), request())
    assert (piece.finish, piece.span.text) == ("end", "")


def test_one_failure_leaves_the_others_alone(endpoint):
    def answer(body, number):
        return (400, "bad") if body["seed"] == 2 else (200, completion(f"seed {body['seed']}"))

    endpoint.answer = answer
    pieces = finish(endpoint.config(), *(request(id=str(seed), seed=seed) for seed in range(4)))
    assert [piece.finish for piece in pieces] == ["end", "end", "error", "end"]
    assert [piece.span.text for piece in pieces] == ["seed 0", "seed 1", "", "seed 3"]


def test_requests_are_sent_together(endpoint):
    # Each reply waits until all four requests are there: one after the other they would wait forever.
    together = threading.Barrier(4, timeout=60)

    def answer(body, number):
        together.wait()
        return 200, completion("hello")

    endpoint.answer = answer
    requests = [request(id=str(i)) for i in range(4)]
    assert [piece.finish for piece in finish(endpoint.config(), *requests)] == ["end"] * 4


# What the endpoint replies, and the text and finish that follow from it.
FINISHES = {
    "vLLM keeps the string and names it": (
        completion(LOOK_AT, stop_reason="}"),
        (LOOK_AT, "stop"),
    ),
    "vLLM at the end token": (completion("No.", stop_reason=None), ("No.", "end")),
    "vLLM at the end token after a brace of its own": (
        completion("a } b", stop_reason=None),
        ("a } b", "end"),
    ),
    "OpenAI leaves the brace out": (completion(LOOK_AT[:-1]), (LOOK_AT, "stop")),
    "OpenAI leaves the answer's tag out": (
        completion("</think><answer>K7"),
        ("</think><answer>K7</answer>", "stop"),
    ),
    "OpenAI at the end token": (completion("I do not know."), ("I do not know.", "end")),
    "cut off inside a box": (completion('{"bbox_2d": [1', "length"), ('{"bbox_2d": [1', "length")),
}


@pytest.mark.parametrize("name", FINISHES)
def test_the_string_that_stopped_generation_is_recognised(endpoint, name):
    reply, (text, finished) = FINISHES[name]
    endpoint.answer = lambda body, number: (200, reply)
    (piece,) = finish(endpoint.config(), request())
    assert (piece.span.text, piece.finish) == (text, finished)


def test_fewer_tokens_than_asked_for_means_a_full_context(endpoint):
    replies = [completion("abc", "length") | {"usage": {"completion_tokens": count}} for count in (39, 40)]
    endpoint.answer = lambda body, number: (200, replies[body["seed"]])
    pieces = finish(endpoint.config(), request(id="a", seed=0), request(id="b", seed=1))
    assert [piece.finish for piece in pieces] == ["context", "length"]


def test_a_request_longer_than_the_context_is_no_failure_of_ours(endpoint):
    message = "This model's maximum context length is 512 tokens."
    endpoint.answer = lambda body, number: (400, {"error": {"message": message}})
    (piece,) = finish(endpoint.config(), request())
    assert (piece.finish, piece.span.text) == ("context", "")


O1 = {
    "token_limit_field": "max_completion_tokens",
    "omit": {"temperature", "stop", "seed"},
    "continuation": "user_turn",
}


def test_fields_that_an_endpoint_refuses_are_not_sent(endpoint):
    finish(endpoint.config(**O1), request())
    assert set(endpoint.bodies[0]) == {"model", "messages", "max_completion_tokens"}
    assert endpoint.bodies[0]["max_completion_tokens"] == 40


# What an endpoint that takes no stop strings writes in one go, and where we end its turn.
WRITTEN_ON = {
    "after its box": (f"Look. {LOOK_AT} It is K9.</think>", (f"Look. {LOOK_AT}", "stop")),
    "after its answer": ("<answer>K7</answer> Bye. }", ("<answer>K7</answer>", "stop")),
    "after a broken box": ('a {"bbox_2d": [1]} b', ('a {"bbox_2d": [1]}', "stop")),
    "never: the braces close no box": (r"\frac{1}{2} {} .", (r"\frac{1}{2} {} .", "end")),
    "never: the answer is left open": ("<answer>K7", ("<answer>K7", "end")),
}


@pytest.mark.parametrize("name", WRITTEN_ON)
def test_a_reply_without_stops_is_cut_by_us(endpoint, name):
    written, (text, finished) = WRITTEN_ON[name]
    reply = completion(written) | {"usage": {"completion_tokens": 9}}
    endpoint.answer = lambda body, number: (200, reply)
    (piece,) = finish(endpoint.config(**O1), request())
    assert (piece.span.text, piece.finish) == (text, finished)
    assert piece.span.num_tokens == 9  # what it wrote beyond counts too


CROP = CropSpan(picture(28, 28), Box(0, 0, 9, 9, "seen"))


def body_of(*spans, continuation="assistant"):
    config = EngineConfig(kind="http", endpoint="http://h/v1", served_model="m", continuation=continuation)
    return chat_body(request(*spans), config)


def test_a_first_turn_asks_for_a_new_reply():
    body = body_of()
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "continue_final_message" not in body


def test_a_crop_goes_inside_the_reply_that_is_continued():
    body = body_of(SampledSpan("<think>"), SampledSpan(LOOK_AT), CROP)
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    reply = body["messages"][-1]
    assert reply["role"] == "assistant"
    kinds = [part["type"] for part in reply["content"]]
    # The last part is text, if only an empty one: generation goes on at its end.
    assert kinds == ["text", "image_url", "text"]
    assert reply["content"][0]["text"] == "<think>" + LOOK_AT
    assert reply["content"][2]["text"] == ""


def test_text_after_a_crop_follows_it_in_the_reply():
    body = body_of(SampledSpan(LOOK_AT), CROP, SampledSpan(" {}"), TextSpan(" [refused]"))
    content = body["messages"][-1]["content"]
    assert [part.get("text") for part in content] == [LOOK_AT, None, " {} [refused]"]


def test_a_crop_goes_into_a_user_turn_for_any_other_endpoint():
    body = body_of(SampledSpan(LOOK_AT), CROP, SampledSpan("no {}"), continuation="user_turn")
    assert "continue_final_message" not in body
    assert "include_stop_str_in_output" not in body
    turns = [(message["role"], message["content"]) for message in body["messages"][2:]]
    assert turns[0] == ("assistant", LOOK_AT)
    assert turns[1][0] == "user"
    assert [part["type"] for part in turns[1][1]] == ["image_url", "text"]
    assert turns[1][1][1]["text"] == CROP_TEXT
    # A pause that asked for nothing needs a user's word too: roles alternate.
    assert turns[2:] == [("assistant", "no {}"), ("user", CONTINUE_TEXT)]


def test_a_refusal_is_told_in_a_user_turn():
    body = body_of(SampledSpan(LOOK_AT), TextSpan(" [crop refused]"), continuation="user_turn")
    assert body["messages"][-1] == {"role": "user", "content": "[crop refused]"}


@pytest.mark.parametrize("settings", [{}, {"continuation": "user_turn"}, O1], ids=["vllm", "any", "o1"])
def test_a_whole_look_again_through_the_endpoint(endpoint, settings):
    def answer(body, number):
        num_images = json.dumps(body["messages"]).count("data:image/png")
        if num_images == 1:
            # Without stops it goes on and imagines what the crop shows.
            return 200, completion(
                "<think>I look closer. " + (LOOK_AT[:-1] if "stop" in body else f"{LOOK_AT} A9")
            )
        return 200, completion(" It is K7.</think><answer>K7" + ("" if "stop" in body else "</answer>"))

    endpoint.answer = answer
    question = Question.of_image(Image.new("RGB", (448, 448), (9, 9, 9)), "what code?", answers=["K7"])
    engine = HTTPEngine(endpoint.config(**settings))
    look = Look(min_pixels=3136, max_pixels=12544)
    trajectories = rollout(engine, [question], look=look, num_samples=3)
    engine.close()
    assert [trajectory.stop for trajectory in trajectories] == [StopReason.ANSWERED] * 3
    assert {len(trajectory.crops) for trajectory in trajectories} == {1}
    assert trajectories[0].text == f"<think>I look closer. {LOOK_AT} It is K7.</think><answer>K7</answer>"


def test_an_endpoint_failure_ends_the_trajectory_as_our_failure(endpoint):
    endpoint.answer = lambda body, number: (500, "down")
    question = Question.of_image(Image.new("RGB", (56, 56)), "?", answers=["0"])
    engine = HTTPEngine(endpoint.config())
    (trajectory,) = rollout(engine, [question], look=Look())
    engine.close()
    assert trajectory.stop is StopReason.ENGINE_ERROR
    assert trajectory.stop.is_our_failure
    assert "500: down" in trajectory.detail


def test_an_aborted_request_is_forgotten(endpoint):
    release = threading.Event()

    def answer(body, number):
        release.wait(timeout=60)
        return 200, completion("late")

    endpoint.answer = answer
    engine = HTTPEngine(endpoint.config())
    engine.submit(request())
    with pytest.raises(EngineError, match="already in flight"):
        engine.submit(request())
    engine.abort("r")
    engine.abort("never seen")
    release.set()
    assert engine.step() == []
    engine.close()


def test_closing_ends_the_wait_before_the_next_try(endpoint):
    endpoint.answer = lambda body, number: (503, "busy")
    engine = HTTPEngine(endpoint.config(backoff_seconds=60))
    engine.submit(request())
    while not endpoint.bodies:
        time.sleep(0.001)
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < 30  # and not a minute
    assert len(endpoint.bodies) == 1
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.submit(request())
