"""Whatever a client sends: an answer or a clear 4xx, never a 5xx."""

import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving_server import ANSWER, NOISE, Running, Writer, data_uri, running, script


@pytest.fixture(scope="module")
def running_server() -> Iterator[Running]:
    """The server; in the end it has failed nobody, and nothing is left in flight."""
    with running(Writer(script)) as server:
        yield server
        assert server.metric("vlm_r3_requests_total") > 0
        assert server.metric("vlm_r3_requests_in_flight") == 0
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        assert not [line for line in lines if 'status="5' in line]
        assert not server.engine.live
        assert server.failures == []


@pytest.fixture(scope="module")
def server(running_server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running_server.url, timeout=30) as client:
        yield client


def fuzzed(max_examples: int) -> settings:
    return settings(max_examples=max_examples, deadline=None, derandomize=True)


NUMBER = st.integers() | st.floats() | st.sampled_from([10**400, -(2**63), 2**64, 1e308, -0.0])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
# What the model is asked is what it writes here, so questions try the loop, too.
COMMAND = st.builds(
    lambda box, rest: '{"bbox_2d": ' + json.dumps(box) + rest + "}",
    st.lists(st.integers(-5, 120) | NUMBER, min_size=3, max_size=5) | JSON,
    st.sampled_from(["", ', "image": 2', ', "image": 0', ', "image": 1.5', ', "x": {}', "}", ",", "{"]),
)
WORDS = st.text(max_size=30) | st.sampled_from([ANSWER, "<answer>", "}", "|", "<|im_end|>", "\x00"])
TEXT = st.lists(COMMAND | WORDS, max_size=4).map("|".join)
URL = st.sampled_from(["", "data:", "data:image/png;base64,", "http://", "file:///x", data_uri(NOISE)])
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio"])},
    optional={
        "text": TEXT | JSON,
        "image_url": st.fixed_dictionaries({"url": URL | JSON}) | JSON,
    },
)
SOUND_PART = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, TEXT),
    st.just({"type": "image_url", "image_url": {"url": data_uri(NOISE)}}),
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | JSON},
    optional={
        "content": TEXT | st.lists(PART, max_size=3) | JSON,
        "name": JSON,
        "look_again": JSON,
        "tool_calls": JSON,
        "refusal": JSON,
    },
)
CONVERSATION = st.lists(st.tuples(st.lists(SOUND_PART, min_size=1, max_size=3), TEXT), max_size=2).flatmap(
    lambda exchanges: st.lists(SOUND_PART, min_size=1, max_size=3).map(
        lambda last: [
            *(
                message
                for asked, reply in exchanges
                for message in (
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": reply},
                )
            ),
            {"role": "user", "content": last},
        ]
    )
)
FIELDS = (
    *("temperature", "max_tokens", "n", "seed", "stream", "stop", "look_again", "stream_options", "top_p"),
    *("user", "max_completion_tokens", "logit_bias", "response_format"),
)
LOOK_AGAIN = st.fixed_dictionaries(
    {}, optional={"max_crops": st.integers(-1, 5), "return_crops": st.booleans(), "x": JSON}
)
BODY = st.fixed_dictionaries(
    {"model": st.just("vlm-r3"), "messages": CONVERSATION | st.lists(MESSAGE, max_size=4) | JSON},
    optional={name: st.integers(-1, 3) | st.booleans() | LOOK_AGAIN | JSON for name in FIELDS},
)


def checked(reply: httpx.Response) -> None:
    assert reply.status_code < 500, reply.text
    if reply.status_code == 200:
        assert b"server_error" not in reply.content, "nor one within a stream"
    else:
        assert reply.json()["error"]["message"]


@fuzzed(300)
@given(body=BODY | JSON)
def test_no_body_makes_the_server_fail(server, body):
    checked(server.post("/v1/chat/completions", content=json.dumps(body)))


@fuzzed(150)
@given(messages=CONVERSATION, stream=st.booleans(), look_again=LOOK_AGAIN | st.booleans())
def test_no_conversation_makes_the_server_fail(server, messages, stream, look_again):
    body = {"model": "vlm-r3", "messages": messages, "stream": stream, "look_again": look_again}
    checked(server.post("/v1/chat/completions", content=json.dumps(body)))


@fuzzed(200)
@given(raw=st.binary(max_size=200))
def test_no_bytes_make_the_server_fail(server, raw):
    reply = server.post("/v1/chat/completions", content=raw)
    assert 400 <= reply.status_code < 500
    checked(reply)


SOUND = json.dumps({"model": "vlm-r3", "messages": [{"role": "user", "content": ANSWER}], "n": 1}).encode()


@fuzzed(150)
@given(
    end=st.integers(0, len(SOUND)),
    place=st.integers(0, len(SOUND) - 1),
    value=st.integers(0, 255),
)
def test_no_damaged_body_makes_the_server_fail(server, end, place, value):
    for body in (SOUND[:end], SOUND[:place] + bytes([value]) + SOUND[place + 1 :]):
        checked(server.post("/v1/chat/completions", content=body))


@pytest.mark.parametrize("brackets", ["[]", ('{"a":', "}")])
@pytest.mark.parametrize("depth", [50, 200, 1000, 100_000])
@pytest.mark.parametrize("field", ["messages", "metadata", "look_again", "stop", "unknown"])
def test_no_depth_makes_the_server_fail(server, brackets, depth, field):
    opening, closing = brackets
    deep = opening * depth + "1" + closing * depth
    body = SOUND[:-1] + f', "{field}": {deep}}}'.encode()
    checked(server.post("/v1/chat/completions", content=body))


@fuzzed(100)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "ODD"]),
    path=st.sampled_from(["/v1/chat/completions", "/v1/models", "/health", "/metrics", "/v1/models/a/b"])
    | st.text(st.characters(codec="ascii", exclude_characters="\\\r\n"), max_size=20).map("/".__add__),
)
def test_no_path_makes_the_server_fail(server, method, path):
    try:
        reply = server.request(method, path)
    except httpx.InvalidURL:
        return
    assert reply.status_code < 500


@fuzzed(150)
@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                *("content-type", "authorization", "accept", "accept-encoding", "content-encoding"),
                *("expect", "range", "origin", "upgrade", "cookie", "x-forwarded-for", "forwarded", "te"),
            ]
        ),
        st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip)
        | st.sampled_from(["gzip", "multipart/form-data; boundary=x", "text/plain", "websocket", "*/*"]),
        max_size=4,
    )
)
def test_no_headers_make_the_server_fail(server, headers):
    checked(server.post("/v1/chat/completions", content=SOUND, headers=headers))


HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: it\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /%00%ff%2e%2e/ HTTP/1.1\r\nhost: it\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: it\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        f"{HEAD}content-length: -1\r\n\r\n".encode(),
        f"{HEAD}content-length: {10**30}\r\n\r\n".encode(),
        f"{HEAD}content-length: 9\r\ncontent-length: 3\r\n\r\n123456789".encode(),
        f"{HEAD}content-length: ²\r\n\r\n".encode(),
        f"{HEAD}transfer-encoding: chunked\r\n\r\nzz\r\n".encode(),
        f"{HEAD}transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n".encode(),
        f"{HEAD}transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n".encode(),
        f"{HEAD}authorization: Bearer \xff\r\ncontent-length: 2\r\n\r\n{{}}".encode("latin-1"),
    ],
)
def test_nothing_that_is_hardly_http_makes_the_server_fail(running_server, server, sent):
    host, port = running_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=1) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        try:
            answered = client.recv(10_000)
        except (TimeoutError, ConnectionResetError):
            answered = b""  # it was left hanging, or hung up on: no answer is no failure
    assert not answered.startswith(b"HTTP/1.1 5"), answered
    assert server.get("/health").status_code == 200
