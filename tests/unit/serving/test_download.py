"""Pictures by URL: what strangers must not reach through this server, and every way a fetch can fail."""

import asyncio
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from models.config import EngineConfig, Look
from models.serving.config import Limits, ServingConfig
from models.serving.download import Downloader, is_public
from models.serving.errors import APIError

LIMITS = Limits(max_image_bytes=1000)
HASTY = Limits(max_download_seconds=1.0)


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(2)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/") or "/to/")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        self.wfile.write(b"x" * (2000 if self.path == "/large" else 10))

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def fetched(*urls: str, allow_private_urls: bool = True, limits: Limits = LIMITS) -> bytes:
    """What the last URL holds; one downloader fetches them one after the other."""
    config = ServingConfig(
        look=Look(), engine=EngineConfig(), limits=limits, allow_private_urls=allow_private_urls
    )

    async def fetch() -> bytes:
        downloader = Downloader(config)
        try:
            return [await downloader.fetch(url) for url in urls][-1]
        finally:
            await downloader.close()

    return asyncio.run(fetch())


def refusal(url: str, **options) -> APIError:
    with pytest.raises(APIError) as refused:
        fetched(url, **options)
    return refused.value


def test_a_picture_is_fetched_also_after_a_redirect(web):
    assert fetched(f"{web}/picture") == b"x" * 10
    assert fetched(f"{web}/to//picture") == b"x" * 10


class Curt(Pictures):
    """Answers once per connection, and does not say that it will not answer again."""

    protocol_version = "HTTP/1.1"
    has_answered = False

    def do_GET(self) -> None:
        if self.has_answered:
            self.close_connection = True
            return
        self.has_answered = True
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"x" * 10)


def test_a_web_server_may_close_a_connection_after_its_answer():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Curt)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/picture"
    try:
        assert fetched(url, url, url) == b"x" * 10
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/none", 400, "status 404"),
        ("/large", 413, "1000 bytes"),
        ("/to/", 400, "more than 3 times"),
        ("/to/file:///etc/passwd", 400, "scheme 'file'"),
    ],
)
def test_what_fails_says_why(web, path, status, says):
    refused = refusal(web + path)
    assert refused.status == status
    assert says in str(refused)


def test_what_takes_too_long_is_a_400(web):
    refused = refusal(f"{web}/slow", limits=HASTY)
    assert refused.status == 400
    assert "within 1 s" in str(refused)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://x",
        "/etc/passwd",
        "picture.png",
        "http://",
        "http://[",
        "http://x:99999999/",
        "http://a b/",
        "http://\x00/",
        "http://" + "a" * 3000,
        "http://127.0.0.1:1/",
        "http://no-such-host.invalid/",
        "",
    ],
)
def test_what_is_no_address_of_a_picture_is_a_400(url):
    assert refusal(url).status == 400


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_out_of_reach_unless_allowed(web, host):
    port = web.rpartition(":")[2]
    refused = refusal(f"http://{host}:{port}/picture", allow_private_urls=False)
    assert "not public" in str(refused) or "could not be fetched" in str(refused)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.3.4",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are(address):
    assert is_public(address)
