"""Every kind of file that strangers send: brought to upright RGB with its changes named, or a named fault."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from models.pictures import PictureFault, PictureFaultKind, ReadPicture, read_picture, upright_size
from models.region import Size

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))
RED = Image.new("RGB", (40, 30), "red")


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


def read(data: bytes, *, max_pixels: int = 10_000, max_bytes: int = 1_000_000) -> ReadPicture:
    return read_picture(data, max_pixels=max_pixels, max_bytes=max_bytes)


def turned(format: str, orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(NOISE, format, exif=exif)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    "data",
    [
        encoded(NOISE),
        encoded(NOISE, "JPEG"),
        encoded(NOISE, "WEBP"),
        encoded(NOISE.convert("L"), "JPEG"),
        encoded(NOISE.convert("P")),
        encoded(NOISE.convert("RGBA")),
        # A JPEG to which a camera appended a second picture.
        encoded(NOISE, "MPO", save_all=True, append_images=[RED]),
    ],
    ids=["png", "jpeg", "webp", "grey jpeg", "palette", "opaque alpha", "mpo"],
)
def test_a_sound_file_keeps_its_bytes(data):
    picture = read(data)
    assert picture.changes == ()
    assert picture.data is data


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (turned("PNG"), ("upright",)),
        (turned("JPEG"), ("upright",)),
        (turned("WEBP"), ("upright",)),
        (turned("TIFF"), ("tiff_to_png", "upright")),
        (turned("JPEG", 1), ()),
        (turned("JPEG", 99), ()),
        (encoded(NOISE, "GIF"), ("gif_to_png",)),
        (encoded(NOISE, "BMP"), ("bmp_to_png",)),
        (encoded(NOISE, "TIFF"), ("tiff_to_png",)),
        (encoded(NOISE.convert("CMYK"), "JPEG"), ("cmyk_to_rgb",)),
        (encoded(NOISE.convert("CMYK"), "TIFF"), ("tiff_to_png", "cmyk_to_rgb")),
        (encoded(Image.fromarray(np.full((5, 5), 0x4000, np.uint16))), ("16_bit_to_8",)),
        (png(1, 1, depth=16, colour=2, rows=b"\0\x80\0\x12\x34\xff\xff"), ("16_bit_to_8",)),
        (animated("GIF"), ("gif_to_png", "first_frame")),
        (animated("PNG"), ("first_frame",)),
        (animated("WEBP"), ("first_frame",)),
        (encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), ("alpha_on_white",)),
        (encoded(Image.new("F", (9, 9), 7.0), "TIFF"), ("tiff_to_png", "float_to_8_bit")),
    ],
)
def test_every_change_has_a_name_and_what_is_stored_shows_the_same(data, changes):
    picture = read(data)
    assert picture.changes == changes
    assert picture.image.mode == "RGB"
    assert picture.data == data if not changes else picture.data.startswith(b"\x89PNG")
    stored = Image.open(io.BytesIO(picture.data)).convert("RGB")
    assert (stored.size, stored.tobytes()) == (picture.image.size, picture.image.tobytes())
    assert read(picture.data).changes == ()


def test_pixels_are_what_a_person_sees():
    assert read(turned("JPEG")).image.size == (30, 40)
    ink = read(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).image.getpixel((4, 4))
    assert ink == (255, 0, 0)
    # 0x8000, 0x1234 and 0xffff of 16 bits.
    deep = png(1, 1, depth=16, colour=2, rows=b"\0\x80\0\x12\x34\xff\xff")
    assert read(deep).image.getpixel((0, 0)) == (0x80, 0x12, 0xFF)
    assert read(animated("GIF")).image.getpixel((3, 3)) == (255, 0, 0)
    # 100 of 255 of black ink on white: 255 - 100.
    assert read(encoded(Image.new("LA", (4, 4), (0, 100)))).image.getpixel((1, 1)) == (155, 155, 155)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_half_a_file_is_called_truncated(format):
    whole = encoded(NOISE, format)
    with pytest.raises(PictureFault) as found:
        read(whole[: len(whole) // 2])
    assert found.value.kind == PictureFaultKind.TRUNCATED


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", PictureFaultKind.UNREADABLE),
        (b"no picture, but text that is long enough to look at", PictureFaultKind.UNREADABLE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", PictureFaultKind.UNREADABLE),
        (b"%PDF-1.7", PictureFaultKind.UNREADABLE),
        (png(200, 200, depth=8, colour=2, rows=b"\0" * 100), PictureFaultKind.TOO_LARGE),
        (png(30_000, 30_000, depth=8, colour=2, rows=b"\0" * 100), PictureFaultKind.TOO_LARGE),
        (encoded(Image.new("L", (1000, 4))), PictureFaultKind.UNUSABLE_SIZE),
        (encoded(Image.new("L", (4, 1000))), PictureFaultKind.UNUSABLE_SIZE),
    ],
)
def test_what_is_no_usable_picture_has_a_name(data, kind):
    with pytest.raises(PictureFault) as found:
        read(data)
    assert found.value.kind == kind
    assert " at 0x" not in found.value.detail  # the same words in every process


def test_a_file_of_too_many_bytes_is_not_opened():
    with pytest.raises(PictureFault, match="over the limit of 100 bytes"):
        read(encoded(NOISE), max_bytes=100)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_upright_size_needs_no_decoding(format, orientation):
    data = turned(format, orientation)
    expected = read(data).image.size
    assert upright_size(data) == Size(*expected)
    if format in ("PNG", "JPEG"):
        assert upright_size(data[:-10]) == Size(*expected)


@pytest.mark.parametrize("data", [b"", b"text", png(60_000, 60_000, depth=8, colour=2, rows=b"")])
def test_what_is_no_picture_has_no_size(data):
    assert upright_size(data) is None
