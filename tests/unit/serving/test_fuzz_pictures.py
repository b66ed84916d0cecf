"""Whatever a picture is, and wherever it is said to be: an answer or a clear 4xx, never a 5xx."""

import base64
import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.serving_server import ANSWER, COMMAND, Running, Writer, question, running, script

CLIENT = httpx.Client(timeout=30)
RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 255, (60, 90, 3), dtype=np.uint8))
DEEP = Image.fromarray(RNG.integers(0, 2**16, (60, 90), dtype=np.uint16))


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(NOISE, "JPEG", exif=exif)


FRAMES = [NOISE.rotate(angle) for angle in (90, 180)]
FILES = {
    **{format: encoded(NOISE, format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")},
    **{
        f"animated {format}": encoded(NOISE, format, save_all=True, append_images=FRAMES)
        for format in ("PNG", "WEBP", "GIF", "TIFF")
    },
    **{f"deep {format}": encoded(DEEP, format) for format in ("PNG", "TIFF")},
    **{f"CMYK {format}": encoded(NOISE.convert("CMYK"), format) for format in ("JPEG", "TIFF")},
    "palette": encoded(NOISE.convert("P"), "PNG", transparency=3),
    "transparent": encoded(NOISE.convert("RGBA"), "PNG"),
    "one bit": encoded(NOISE.convert("1"), "PNG"),
    "float": encoded(NOISE.convert("F"), "TIFF"),
    "progressive": encoded(NOISE, "JPEG", progressive=True),
    **{f"rotated {number}": rotated(number) for number in range(10)},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(
        Writer(script),
        allow_private_urls=True,
        max_image_bytes=100_000,
        max_image_pixels=100_000,
    ) as server:
        yield server
        assert server.metric("vlm_r3_requests_in_flight") == 0
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        assert not [line for line in lines if 'status="5' in line]


def answer(server: Running, url: str, **fields) -> httpx.Response:
    """What comes of a question about a picture; the model looks once."""
    body = {"model": "vlm-r3", "messages": question(f"{COMMAND}|{ANSWER}", url), **fields}
    reply = CLIENT.post(f"{server.url}/v1/chat/completions", json=body)
    assert reply.status_code < 500, reply.text
    if reply.status_code != 200:
        assert reply.json()["error"]["message"]
    return reply


def as_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("name", FILES)
def test_every_usual_picture_is_looked_at(server, name):
    reply = answer(server, as_uri(FILES[name]))
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["choices"][0]["message"]["look_again"]["looks"]) == 1


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(FILES)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    in_head=st.booleans(),
    kept=st.floats(0, 1),
)
def test_no_damaged_picture_makes_the_server_fail(server, name, changes, in_head, kept):
    data = bytearray(FILES[name])
    for place, value in changes:
        data[int(place * (min(64, len(data)) if in_head else len(data)))] = value
    answer(server, as_uri(bytes(data[: int(kept * len(data)) if kept < 0.5 else None])))


def claiming(side: int) -> bytes:
    """A small file whose header speaks of so many pixels in a square; what follows it is never read."""
    small = FILES["PNG"]
    header = small[12:16] + struct.pack(">II", side, side) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


PNG = base64.b64encode(FILES["PNG"]).decode()


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        (f"data:image/png;base64,{PNG}", 200),
        (f"DATA:IMAGE/PNG;BASE64,{PNG}", 200),
        (f"data:;base64,{PNG}", 200),
        (f"data:image/jpeg;base64,{PNG}", 200),  # the file says what it is
        (f"data:image/png;name=a.png;base64,{PNG}", 200),
        (f"data:image/png,{quote(FILES['PNG'])}", 400),
        (f"data:image/png;base64{PNG}", 400),
        (f"data:image/png;base64,{PNG}*", 400),
        (f"data:image/png;base64,{PNG[:-3]}", 400),
        (f"data:image/png;base64,{PNG[:7]}é{PNG[7:]}", 400),
        ("data:image/png;base64,", 400),
        ("data:text/html;base64,PGI+", 400),
        ("data:,", 400),
        ("data:", 400),
        ("data", 400),
        ("", 400),
        (" ", 400),
        ("\x00", 400),
        (as_uri(b"\x89PNG" + b"0" * 200_000), 413),
        (as_uri(encoded(Image.new("1", (1000, 1000)), "PNG")), 413),
        (as_uri(claiming(60_000)), 413),
        (as_uri(encoded(Image.new("RGB", (300, 1)), "PNG")), 400),
    ],
)
def test_every_kind_of_data_uri(server, uri, status):
    assert answer(server, uri).status_code == status
    assert answer(server, uri, stream=True).status_code == status


class Odd(BaseHTTPRequestHandler):
    """A web server with habits."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name == "loop":
            self._reply(302, location="/loop")
        elif name == "nowhere":
            self._reply(302)
        elif name.startswith("to/"):
            self._reply(301, location=name.removeprefix("to/"))
        elif name.isdecimal():
            self._reply(int(name))
        elif name == "short":
            self._reply(200, FILES["PNG"][:50], length=5000)
        elif name == "slow":
            self._reply(200, length=5000)
            time.sleep(1)
        elif name == "large":
            self._reply(200, b"x" * 200_000)
        elif name == "gzip":
            self._reply(200, b"\x1f\x8b" + b"0" * 90, **{"content-encoding": "gzip"})
        elif name == "garbage":
            self.wfile.write(b"\xff\xfe no HTTP at all\r\n\r\n")
        elif name == "silent":
            pass
        else:
            self._reply(200, FILES.get(name.replace("%20", " "), b"text"))
        self.close_connection = True

    def _reply(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("PNG", 200), ("CMYK JPEG", 200), ("to//PNG", 200), ("none", 400), ("large", 413)),
        *((path, 400) for path in ("loop", "nowhere", "204", "304", "401", "404", "418", "500", "503")),
        *((path, 400) for path in ("short", "gzip", "garbage", "silent", "to/file:///etc/passwd")),
        *((path, 400) for path in ("to/ftp://a/b", "to/http://[", "to/http://a b/", "to/javascript:1")),
    ],
)
def test_every_kind_of_web_server(server, web, path, status):
    assert answer(server, f"{web}/{path}").status_code == status


def test_a_web_server_that_is_too_slow_is_a_400(web):
    with running(Writer(script), allow_private_urls=True, max_download_seconds=0.5) as hasty:
        assert answer(hasty, f"{web}/slow").status_code == 400


def test_a_closed_port_is_a_400(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        assert answer(server, f"http://127.0.0.1:{taken.getsockname()[1]}/a.png").status_code == 400


URL = st.builds(
    lambda scheme, user, host, port, path: f"{scheme}://{user}{host}{port}/{path}",
    st.sampled_from(["http", "HTTP", "https", "ftp", "file", "gopher", "", "h ttp"]),
    st.sampled_from(["", "", "a@", "a:b@", "@", ":@"]),
    # Nothing here is reached: reserved names, addresses of this machine, and what is none.
    st.sampled_from(
        [
            *(
                "127.0.0.1",
                "[::1]",
                "localhost",
                "0.0.0.0",
                "0x7f.1",
                "2130706433",
                "127.1",
                "[::]",
                "[::1%25lo]",
            ),
            *("a.invalid", "", ".", "a..b", "ⓛocalhost", "xn--", "a" * 300, "[", "256.1.1.1", "-"),
        ]
    )
    | st.text(max_size=4),
    st.sampled_from(["", ":1", ":0", ":65535", ":65536", ":-1", ":x", ":" + "9" * 30]),
    st.text(max_size=5),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(url=URL)
def test_no_url_makes_the_server_fail(server, url):
    assert 400 <= answer(server, url).status_code < 500


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *(
            "[::1]",
            "[fe80::1]",
            "[fd00::1]",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "2130706433",
            "127.1",
        ),
    ],
)
def test_what_only_this_machine_reaches_is_not_fetched(host):
    with running(Writer(script)) as server:
        reply = answer(server, f"http://{host}/a.png")
    assert reply.status_code == 400
    assert "not public" in reply.json()["error"]["message"]
