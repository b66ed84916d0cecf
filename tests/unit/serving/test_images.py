"""Pictures of strangers: each kind is either brought to upright RGB or refused by a clear 4xx."""

import base64
import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from models.serving.errors import APIError
from models.serving.images import decode, from_data_uri

MAX_PIXELS = 10_000


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refusal(data: bytes) -> APIError:
    with pytest.raises(APIError) as refused:
        decode(data, max_pixels=MAX_PIXELS)
    return refused.value


RED = Image.new("RGB", (40, 30), (255, 0, 0))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_usual_formats_are_read(format):
    image = decode(encoded(RED, format), max_pixels=MAX_PIXELS)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    red, green, blue = image.getpixel((20, 15))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"not a picture, but text that is long enough to look at",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7 ...",
        encoded(RED)[:60],
        encoded(Image.effect_noise((80, 80), 90).convert("RGB"), "JPEG")[:900],
        encoded(RED, "GIF")[:30],
        b"\x89PNG\r\n\x1a\n" + b"\x00" * 50,
    ],
    ids=["nothing", "zero", "text", "svg", "pdf", "short png", "short jpeg", "short gif", "empty png"],
)
def test_what_is_no_whole_picture_is_a_400(data):
    refused = refusal(data)
    assert refused.status == 400
    assert refused.code == "invalid_image"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [200, 30_000, 2**31 - 1])
def test_a_bomb_is_a_413_and_never_decoded(side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\x00" * 1000)) + chunk(b"IEND", b"")
    assert refusal(bomb).status == 413


def test_a_bomb_in_a_text_chunk_is_refused():
    whole = encoded(RED)
    text = chunk(b"zTXt", b"comment\x00\x00" + zlib.compress(b"a" * 100_000_000))
    assert refusal(whole[:33] + text + whole[33:]).status in (400, 413)


def test_one_pixel_is_a_picture():
    assert decode(encoded(Image.new("L", (1, 1), 7)), max_pixels=MAX_PIXELS).getpixel((0, 0)) == (7, 7, 7)


def test_ink_becomes_light():
    image = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), max_pixels=MAX_PIXELS)
    red, green, _ = image.getpixel((4, 4))
    assert red > 200
    assert green < 60


def test_sixteen_bits_become_eight_without_clipping():
    ramp = Image.fromarray(np.array([[0, 0x4000, 0x8000, 0xFFFF]], dtype=np.uint16))
    image = decode(encoded(ramp), max_pixels=MAX_PIXELS)
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 64, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode):
    seen = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    data = encoded(seen.convert(mode), **({"transparency": 0} if mode == "P" else {}))
    assert decode(data, max_pixels=MAX_PIXELS).getpixel((1, 1)) == (255, 255, 255)


def test_of_an_animation_the_first_frame():
    frames = [Image.new("RGB", (6, 6), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, max_pixels=MAX_PIXELS).getpixel((3, 3)) == (255, 0, 0)


def test_the_camera_said_which_way_is_up():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees
    assert decode(encoded(RED, "JPEG", exif=exif), max_pixels=MAX_PIXELS).size == (30, 40)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_is_never_our_failure():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = encoded(noise, format)
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 4):
                damaged[place] = rng.integers(0, 256)
            with suppress(APIError):
                decode(bytes(damaged), max_pixels=MAX_PIXELS)


def test_a_data_uri_gives_its_bytes():
    uri = "data:image/png;base64," + base64.b64encode(b"abc").decode()
    assert from_data_uri(uri, max_bytes=3) == b"abc"


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        ("data:image/png,abc", 400),
        ("data:", 400),
        ("data:image/png;base64", 400),
        ("data:image/png;base64,a$b=", 400),
        ("data:image/png;base64,abc", 400),
        ("data:image/png;base64,ä", 400),
        ("data:image/png;base64," + "A" * 4000, 413),
    ],
)
def test_another_data_uri_is_refused(uri, status):
    with pytest.raises(APIError) as refused:
        from_data_uri(uri, max_bytes=1000)
    assert refused.value.status == status
