"""Whatever a client sends: an answer or a clear 4xx, never a 5xx."""

import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving_server import (
    Writer,
    running,
    script,
)


@pytest.fixture(scope="module")
def server() -> Iterator[httpx.Client]:
    with running(Writer(script)) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
URL = st.sampled_from(
    ["", "data:", "data:image/png;base64,", "http://", "file:///x", "data:image/png;base64,AA=="]
)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio"])},
    optional={
        "text": st.text(max_size=30) | JSON,
        "image_url": st.fixed_dictionaries({"url": URL | JSON}) | JSON,
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]) | JSON},
    optional={"content": st.text(max_size=30) | st.lists(PART, max_size=3) | JSON, "name": JSON},
)
FIELDS = (
    "temperature",
    "max_tokens",
    "n",
    "seed",
    "stream",
    "stop",
    "look_again",
    "stream_options",
    "top_p",
    "user",
)
BODY = st.fixed_dictionaries(
    {"model": st.just("vlm-r3"), "messages": st.lists(MESSAGE, max_size=3) | JSON},
    optional={name: st.integers(-1, 3) | st.booleans() | JSON for name in FIELDS},
)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(body=BODY | JSON)
def test_no_body_makes_the_server_fail(server, body):
    reply = server.post("/v1/chat/completions", content=json.dumps(body))
    assert reply.status_code < 500, reply.text
    if reply.status_code != 200:
        assert reply.json()["error"]["message"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(raw=st.binary(max_size=200))
def test_no_bytes_make_the_server_fail(server, raw):
    reply = server.post("/v1/chat/completions", content=raw)
    assert 400 <= reply.status_code < 500


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
    path=st.sampled_from(["/v1/chat/completions", "/v1/models", "/health", "/metrics"])
    | st.text(st.characters(codec="ascii", exclude_characters="\\\r\n"), max_size=20).map("/".__add__),
)
def test_no_path_makes_the_server_fail(server, method, path):
    try:
        reply = server.request(method, path)
    except httpx.InvalidURL:
        return
    assert reply.status_code < 500
