"""The HTTP interface by OpenAI's own client: looks, streams, failures."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from models.region import Box, look
from models.serving.replies import STREAM_END
from models.trajectory import CropSpan, GenerationRequest, SampledSpan
from tests.serving_server import (
    ANSWER,
    COMMAND,
    ENGINE,
    LOOK,
    NOISE,
    Running,
    Writer,
    ask,
    client_of,
    data_uri,
    question,
    running,
    script,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Writer(script, pace=5)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server) -> Iterator[OpenAI]:
    with client_of(server) as client:
        yield client


def test_a_look_is_told_in_a_field_of_its_own(client):
    reply = ask(client, f"<think>I look. {COMMAND}|{ANSWER}", data_uri(NOISE))
    (choice,) = reply.choices
    assert choice.message.content == f"<think>I look. {COMMAND}{ANSWER}"
    assert choice.finish_reason == "stop"
    told = choice.message.look_again
    assert (told["stop"], told["answer"]) == ("answered", "K7")
    assert told["looks"] == [
        {
            "position": len(f"<think>I look. {COMMAND}"),
            "image": 1,
            "box": [28, 28, 56, 56],
            "seen_size": [112, 112],
            "original_box": [112, 112, 224, 224],
            "original_size": [448, 448],
            "crop_size": [112, 112],
            "error": None,
        }
    ]
    # One token per character; 112 x 112 pixels are 16 tokens, for the picture and for its crop.
    assert reply.usage.completion_tokens == len(choice.message.content)
    assert reply.usage.prompt_tokens_details.image_tokens == 32
    assert reply.usage.prompt_tokens_details.crop_tokens == 16


def test_the_crop_comes_along_when_asked_for(client):
    reply = ask(
        client, f"{COMMAND}|{ANSWER}", data_uri(NOISE), extra_body={"look_again": {"return_crops": True}}
    )
    (told,) = reply.choices[0].message.look_again["looks"]
    expected = look(NOISE, Box(112, 112, 224, 224, "original"), LOOK.budget)
    assert told["crop"] == data_uri(expected.image)


def test_a_stream_says_the_same_as_the_whole(client):
    text = f"<think>Look: {COMMAND}| not here {{1}}|{COMMAND}|{ANSWER}"
    whole = ask(client, text, data_uri(NOISE))
    chunks = list(ask(client, text, data_uri(NOISE), stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    told = [delta.look_again for delta in deltas if hasattr(delta, "look_again")]
    looks = [one for each in told for one in each.get("looks", [])]
    assert looks == whole.choices[0].message.look_again["looks"]
    assert [one["error"] for one in looks] == [None, "repeated_box"]
    assert told[-1] == {"stop": "answered", "answer": "K7"}
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage
    assert max(len(delta.content or "") for delta in deltas) <= 5, "text comes as it is written"


def test_a_look_is_told_before_the_text_after_it(client):
    chunks = ask(client, f"{COMMAND}| after.|{ANSWER}", data_uri(NOISE), stream=True)
    position = 0
    for chunk in chunks:
        delta = chunk.choices[0].delta
        for told in getattr(delta, "look_again", {}).get("looks", []):
            assert told["position"] == position == len(COMMAND)
        position += len(delta.content or "")


def test_several_pictures_are_named_by_number(client):
    command = '{"bbox_2d": [0, 0, 28, 28], "image": 2}'
    small = Image.new("RGB", (56, 56), "red")
    reply = ask(client, f"{command}|{ANSWER}", data_uri(NOISE), data_uri(small))
    (told,) = reply.choices[0].message.look_again["looks"]
    assert (told["image"], told["original_box"], told["error"]) == (2, [0, 0, 28, 28], None)
    reply = ask(client, f"{COMMAND}|{ANSWER}")
    assert reply.choices[0].message.look_again["looks"][0]["error"] == "no_such_image"


def test_refused_commands_are_told_by_name(client):
    commands = ['{"bbox_2d": [1, 2]}', '{"bbox_2d": [50, 9, 20, 30]}', '{"bbox_2d": [0, 0, 900, 900]}']
    reply = ask(client, "|".join([*commands, ANSWER]), data_uri(NOISE))
    looks = reply.choices[0].message.look_again["looks"]
    assert [one["error"] for one in looks] == ["bad_json", "inverted_box", "outside_image"]
    assert [one["original_box"] for one in looks] == [None] * 3
    assert reply.choices[0].message.content == "".join([*commands, ANSWER]), "only what the model wrote"


def test_asked_directly_it_is_not_stopped_at_braces(client):
    seen: list[GenerationRequest] = []

    def listening(request: GenerationRequest) -> str:
        seen.append(request)
        return f"A set {{1}} and {COMMAND}."

    with running(Writer(listening)) as other:
        direct = client_of(other)
        reply = ask(direct, "what?", data_uri(NOISE), extra_body={"look_again": False})
    assert reply.choices[0].message.content == f"A set {{1}} and {COMMAND}."
    assert reply.choices[0].message.look_again["looks"] == []
    assert (seen[0].prompt.system, seen[0].stops) == (None, ())


def test_a_system_message_reaches_the_model_as_it_is():
    seen: list[GenerationRequest] = []

    def listening(request: GenerationRequest) -> str:
        seen.append(request)
        return ANSWER

    with running(Writer(listening)) as other:
        direct = client_of(other)
        messages = [{"role": "system", "content": "Look at Image 2."}, *question("?", *[data_uri(NOISE)] * 2)]
        direct.chat.completions.create(model="vlm-r3", messages=messages)
    assert seen[0].prompt.system == "Look at Image 2."


def test_a_conversation_goes_on_where_it_was():
    """The client sends back what it got, as its own objects; the model finds its turn as it left it."""
    seen: list[GenerationRequest] = []

    def listening(request: GenerationRequest) -> str:
        seen.append(request)
        return script(request)

    red = Image.new("RGB", (56, 56), "red")
    second = '{"bbox_2d": [0, 0, 28, 28], "image": 2}'
    with running(Writer(listening), engine_config=ENGINE.model_copy(update={"max_images": 8})) as other:
        client = client_of(other)
        messages = question(f"<think>Look: {COMMAND}|{ANSWER}", data_uri(NOISE))
        first = client.chat.completions.create(model="vlm-r3", messages=messages)
        messages += [first.choices[0].message, *question(f"{second}|{COMMAND}|{ANSWER}", data_uri(red))]
        options = {"model": "vlm-r3", "messages": messages}
        reply = client.chat.completions.create(**options)
        streamed = list(client.chat.completions.create(stream=True, **options))
        direct = client.chat.completions.create(extra_body={"look_again": False}, **options)
    looks = reply.choices[0].message.look_again["looks"]
    # A box is redundant by what was cut for this answer, not for an earlier one.
    assert [(one["image"], one["error"]) for one in looks] == [(2, None), (1, None)]
    assert looks[0]["seen_size"] == [56, 56]
    (before,) = next(request for request in seen if request.prompt.earlier).prompt.earlier
    assert before.question.pictures == seen[0].prompt.pictures
    (crop,) = before.crops
    assert crop in [span.picture for span in seen[1].spans if isinstance(span, CropSpan)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == (
        reply.choices[0].message.content
    )
    assert direct.choices[0].message.look_again["looks"] == []
    assert seen[-1].prompt.earlier[0].reply == (SampledSpan(first.choices[0].message.content),)


def test_choices_and_seeds():
    seeds: list[int | None] = []

    def listening(request: GenerationRequest) -> str:
        seeds.append(request.seed)
        return ANSWER

    with running(Writer(listening)) as other:
        direct = client_of(other)
        reply = ask(direct, "?", n=2, seed=5, temperature=1)
        ask(direct, "?", n=2, seed=5, temperature=1)
        ask(direct, "?", n=2, temperature=1)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert seeds[:2] == seeds[2:4], "the same seed asks the same"
    assert len(set(seeds)) == 4, "choices differ, and so do requests without a seed"


@pytest.mark.parametrize(
    ("text", "options", "stop"),
    [
        ("<think>" + "words " * 80, {}, "token_limit"),
        ("<think>words", {"max_tokens": 5}, "token_limit"),
        (f"{COMMAND}|{ANSWER}", {"extra_body": {"look_again": {"max_crops": 0}}}, "crop_limit"),
        ("no answer", {}, "end_without_answer"),
    ],
)
def test_how_it_ended(client, text, options, stop):
    reply = ask(client, text, data_uri(NOISE), **options)
    assert reply.choices[0].message.look_again["stop"] == stop
    assert reply.choices[0].finish_reason == ("stop" if stop == "end_without_answer" else "length")


def test_models_and_their_limits(client, server):
    (model,) = client.models.list().data
    assert model.id == "vlm-r3"
    assert model.limits["max_crops"] == 3
    assert client.models.retrieve("vlm-r3").id == "vlm-r3"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", messages=question("?"))


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/completions", "/docs", "/v1/chat/completions/", "/%ff"])
def test_no_such_path_is_a_404_in_openais_form(server, path):
    reply = httpx.get(server.url + path)
    assert reply.status_code in (404, 405)
    assert reply.json()["error"]["message"]


def test_bad_pictures_are_told(client):
    for uri in ("data:image/png;base64,", "data:image/png;base64,AAAA", "file:///etc/passwd"):
        with pytest.raises(openai.BadRequestError, match="image"):
            ask(client, ANSWER, uri)
    long = Image.new("RGB", (4000, 2))
    with pytest.raises(openai.BadRequestError, match="200 times"):
        ask(client, ANSWER, data_uri(long))
    assert ask(client, ANSWER, data_uri(Image.new("RGB", (1, 1)))).choices[0].finish_reason == "stop"


def test_our_failure_is_an_error_and_never_an_answer(client, server):
    with pytest.raises(openai.InternalServerError, match="too hot"):
        ask(client, "break")
    with pytest.raises(openai.InternalServerError, match="too hot"):
        ask(client, "break", stream=True)
    stream = ask(client, f"written {{}}|{'break'}", stream=True)
    with pytest.raises(openai.APIError, match="too hot"):
        list(stream)
    assert ask(client, ANSWER).choices[0].finish_reason == "stop", "the next one is answered"


def test_an_engine_that_fails_is_told_everywhere():
    with running(Writer(script)) as other:
        direct = client_of(other)
        with pytest.raises(openai.InternalServerError, match="out of memory") as failed:
            ask(direct, "crash")
        assert failed.value.status_code == 503
        health = httpx.get(f"{other.url}/health")
        assert (health.status_code, health.json()["reason"]) == (503, "out of memory")
        with pytest.raises(openai.InternalServerError):
            ask(direct, ANSWER)
        assert other.failures == ["failed"]


def test_a_stream_ends_as_openais_does(server):
    body = {"model": "vlm-r3", "messages": [{"role": "user", "content": ANSWER}], "stream": True}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.content.endswith(STREAM_END)
    assert all(line.startswith("data: ") for line in reply.text.strip().split("\n\n"))


def test_prometheus_reads_the_metrics_that_are_documented(server, client):
    ask(client, f"{COMMAND}|{COMMAND}|{ANSWER}", data_uri(NOISE), stream=True).close()
    ask(client, f"{COMMAND}|{COMMAND}|{ANSWER}", data_uri(NOISE))
    families = list(text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text))
    families = [one for one in families if not one.name.endswith("_created")]
    found = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
    table = (Path(__file__).parents[3] / "docs/serving.md").read_text()
    assert found == set(re.findall(r"`(vlm_r3_\w+)", table))
    samples = [sample for one in families for sample in one.samples if sample.value]
    assert {"stop": "answered"} in [sample.labels for sample in samples]
    assert {"error": "repeated_box"} in [sample.labels for sample in samples]
    assert all(one.documentation for one in families)


def test_crops_reach_the_engine_where_the_model_asked():
    spans: list = []

    def listening(request: GenerationRequest) -> str:
        spans.append([type(span) for span in request.spans])
        return COMMAND if not request.spans else ANSWER

    with running(Writer(listening)) as other:
        ask(client_of(other), "?", data_uri(NOISE))
    assert spans[0] == []
    assert spans[1][-1] is CropSpan
