"""Limits, keys, clients that go away, many clients, and the end of a server."""

import asyncio
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.serving_server import (
    ANSWER,
    NOISE,
    Running,
    Writer,
    ask,
    client_of,
    data_uri,
    running,
    script,
)


def test_the_key_is_wanted_where_there_is_one():
    with running(Writer(script), api_key="sésame") as other:
        for key in ("wrong", "s", "none"):
            with pytest.raises(openai.AuthenticationError):
                ask(client_of(other, api_key=key), ANSWER)
        headers = {"authorization": "Bearer sésame".encode()}
        assert httpx.get(f"{other.url}/v1/models", headers=headers).status_code == 200
        assert httpx.get(f"{other.url}/v1/models").status_code == 401
        assert httpx.get(f"{other.url}/health").status_code == 200


def slow(**limits):
    engine = Writer(lambda request: "<think>" + "words " * 60, pace=2)
    engine.seconds_per_step = 0.02
    return running(engine, **limits)


def test_too_many_requests_are_refused_and_told_to_come_back():
    with slow(max_concurrent_requests=3) as other, ThreadPoolExecutor(6) as threads:

        def status() -> int:
            body = {"model": "vlm-r3", "messages": [{"role": "user", "content": "?"}]}
            reply = httpx.post(f"{other.url}/v1/chat/completions", json=body, timeout=30)
            if reply.status_code == 429:
                assert reply.headers["retry-after"]
            return reply.status_code

        statuses = sorted(future.result() for future in [threads.submit(status) for _ in range(6)])
    assert statuses == [200, 200, 200, 429, 429, 429]


def test_who_has_read_an_answer_may_ask_again_at_once():
    """As many clients as there are places, each with one request at a time, are never too many."""

    async def client(url: str) -> set[int]:
        parts = urlsplit(url)
        body = json.dumps({"model": "vlm-r3", "messages": [{"role": "user", "content": ANSWER}]})
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: it\r\ncontent-length: {len(body.encode())}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        statuses = set()
        for _ in range(20):
            writer.write(f"{head}{body}".encode())
            answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(re.search(r"content-length: (\d+)", answered)[1]))
            statuses.add(int(answered.split()[1]))
        writer.close()
        return statuses

    async def clients(url: str) -> list[set[int]]:
        return await asyncio.gather(*(client(url) for _ in range(40)))

    with running(Writer(script), max_concurrent_requests=40) as other:
        assert asyncio.run(clients(other.url)) == [{200}] * 40


def test_time_is_limited():
    with slow(max_seconds=0.3) as other:
        direct = client_of(other)
        with pytest.raises(openai.InternalServerError, match=r"0\.3 s") as late:
            ask(direct, "?")
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"0\.3 s"):
            list(ask(direct, "?", stream=True))
        other.wait_until(lambda: not other.engine.live)


def test_a_request_is_limited_in_size():
    with running(Writer(script), max_request_bytes=2000) as other:
        direct = client_of(other)
        with pytest.raises(openai.APIStatusError) as declared:
            ask(direct, ANSWER, data_uri(NOISE))
        assert declared.value.status_code == 413
        chunked = httpx.post(f"{other.url}/v1/chat/completions", content=iter([b"x" * 1500] * 3))
        assert chunked.status_code == 413


def test_a_body_that_does_not_arrive_is_a_408():
    with running(Writer(script), max_upload_seconds=0.2) as other:
        host, port = other.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            half.settimeout(10)
            assert b" 408 " in half.recv(1000)


def start(server: Running, **fields) -> socket.socket:
    """A request on its way; who holds the socket is the client."""
    body = json.dumps({"model": "vlm-r3", "messages": [{"role": "user", "content": "?"}], **fields})
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    client.sendall((head + body).encode())
    return client


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_work(stream):
    with slow() as other:
        client = start(other, stream=stream, n=3)
        other.wait_until(lambda: len(other.engine.live) == 3)
        client.close()
        other.wait_until(lambda: not other.engine.live)
        other.wait_until(lambda: other.metric("vlm_r3_requests_in_flight") == 0)
        assert other.metric("vlm_r3_aborted_total") == 3
        assert other.metric('vlm_r3_requests_total{path="/v1/chat/completions"') == 1


def test_clients_that_leave_while_waiting_never_reach_the_engine():
    with slow() as other:
        clients = [start(other, n=8) for _ in range(4)]
        other.wait_until(lambda: other.metric("vlm_r3_requests_in_flight") == 4)
        other.wait_until(lambda: len(other.engine.live) == 10)
        for client in clients:
            client.close()
        other.wait_until(lambda: other.metric("vlm_r3_aborted_total") == 32)
        assert not other.engine.live


def test_what_is_in_flight_may_end_when_the_server_is_asked_to():
    threads = ThreadPoolExecutor(1)
    with slow() as other:
        direct = client_of(other)
        going = threads.submit(ask, direct, "?")
        other.wait_until(lambda: bool(other.engine.live))
    assert going.result().choices[0].finish_reason == "length" or going.result().choices[0].message.content


def test_what_does_not_end_in_time_is_told():
    threads = ThreadPoolExecutor(1)
    engine = Writer(lambda request: "words " * 600, pace=1)  # two minutes
    engine.seconds_per_step = 0.2
    with running(engine, max_shutdown_seconds=1) as other:
        direct = client_of(other)
        going = threads.submit(ask, direct, "?")
        other.wait_until(lambda: bool(engine.live))
        began = time.monotonic()
    assert time.monotonic() - began < 60
    assert isinstance(going.exception(), openai.APIError)


def test_the_engine_never_gets_much_more_than_it_has_room_for():
    most = 0

    class Counting(Writer):
        def step(self):
            nonlocal most
            most = max(most, len(self.live))
            return super().step()

    with running(Counting(script, pace=3)) as other, ThreadPoolExecutor(20) as threads:
        direct = client_of(other)
        list(threads.map(lambda _: ask(direct, ANSWER), range(40)))
    assert 8 <= most <= 10, "a quarter more than the 8 that it computes at once"
