"""Pictures of strangers: from the bytes of a file to upright RGB, or a named fault. All are decoded here.

A file that already is what a reader would make of it keeps its bytes, so a JPEG stays a JPEG. Any other is
stored as PNG, and every change has a name: a box, a digest or a person can ask what happened to a picture.
"""

import io
import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from PIL import Image, ImageOps, UnidentifiedImageError

from models.errors import RecordError
from models.pixels import as_rgb
from models.records import png_bytes
from models.region import MAX_ASPECT_RATIO, Size

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Kept as they are: every engine, browser and data library reads them alike. MPO is a JPEG that a camera
# appended more pictures to.
_KEPT_FORMATS = ("PNG", "JPEG", "WEBP", "MPO")
_ORIENTATION = 0x0112
# Pillow names a raw mode of 16 bits per channel "RGB;16B"; "BGR;16" has 16 bits per pixel.
_SIXTEEN_BITS = re.compile(r"(?<!BGR);16")
# What Pillow's readers raise on bytes that are not what they claim to be.
_UNREADABLE = (
    *(OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError),
    *(struct.error, AssertionError, NotImplementedError),
)


class PictureFaultKind(StrEnum):
    """Every way a file can be no picture for us."""

    UNREADABLE = "unreadable_image"
    TRUNCATED = "truncated_image"
    TOO_LARGE = "too_large_image"
    UNUSABLE_SIZE = "unusable_size"


class PictureFault(RecordError):
    """A file that is no usable picture."""

    def __init__(self, kind: PictureFaultKind, detail: str) -> None:
        super().__init__(f"{kind.value}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class ReadPicture:
    """An upright RGB picture, the bytes of its file, and the names of what was changed to get it."""

    image: Image.Image
    original: bytes
    changes: tuple[str, ...]

    @cached_property
    def data(self) -> bytes:
        """What is stored: the file itself, or a PNG of ``image`` when anything was changed."""
        return png_bytes(self.image) if self.changes else self.original


def read_picture(data: bytes, *, max_pixels: int, max_bytes: int) -> ReadPicture:
    """The picture in a file: upright, RGB, transparent parts on white, 16 bits per channel brought to 8, of
    an animation the first frame.

    Raises PictureFault; a picture of more than ``max_pixels`` is never decoded.
    """
    if not data:
        raise PictureFault(PictureFaultKind.UNREADABLE, "there are no bytes")
    if len(data) > max_bytes:
        raise PictureFault(
            PictureFaultKind.TOO_LARGE, f"{len(data)} bytes, over the limit of {max_bytes} bytes"
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image, max_pixels)
        return _decoded(image, data)
    except UnidentifiedImageError as error:
        raise PictureFault(
            PictureFaultKind.UNREADABLE, f"it is none of these: {', '.join(FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        limit = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise PictureFault(
            PictureFaultKind.TOO_LARGE, f"a decompression bomb: over the limit of {limit} pixels"
        ) from error
    except _UNREADABLE as error:
        raise _fault(error, data) from error


def upright_size(data: bytes) -> Size | None:
    """Width and height of the upright picture, from the head of its file alone; None when that is no picture.

    Nothing is decoded, so this is no proof that the rest of the file is whole.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        # Pillow gives the upright size of a TIFF. The note of a PNG may stand behind its pixels, which Pillow
        # would decode to look.
        is_noted = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        return Size(height, width) if is_noted and _orientation(image) >= 5 else Size(width, height)
    except (*_UNREADABLE, Image.DecompressionBombError):
        return None


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise PictureFault(
            PictureFaultKind.TOO_LARGE,
            f"{width}x{height} pixels, over the limit of {max_pixels} pixels; it was not decoded",
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise PictureFault(
            PictureFaultKind.UNUSABLE_SIZE,
            f"{width}x{height} pixels: one side is over {MAX_ASPECT_RATIO:.0f} times the other",
        )


def _decoded(image: Image.Image, data: bytes) -> ReadPicture:
    changes: list[str] = []
    if image.format not in _KEPT_FORMATS:
        changes.append(f"{str(image.format).lower()}_to_png")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        changes.append("first_frame")
    # Pillow turns a TIFF itself while it decodes, and forgets the tag.
    orientation = _orientation(image) if image.format == "TIFF" else 1
    if image.mode.startswith("I") or _SIXTEEN_BITS.search(str(getattr(image, "tile", ""))):
        changes.append("16_bit_to_8")
    image.load()
    upright = image
    if image.format != "TIFF":
        orientation = _orientation(image)
        if orientation > 1:
            upright = ImageOps.exif_transpose(image)
    if orientation > 1:
        changes.append("upright")
    return ReadPicture(as_rgb(upright, changes), data, tuple(changes))


def _orientation(image: Image.Image) -> int:
    """1 where the file says nothing readable about it: a damaged note costs no picture."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except _UNREADABLE:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _fault(error: Exception, data: bytes) -> PictureFault:
    shown = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
    if isinstance(error, EOFError) or "truncated" in str(error).lower() or _is_short_webp(data):
        return PictureFault(PictureFaultKind.TRUNCATED, f"the file ends before its picture does ({shown})")
    return PictureFault(PictureFaultKind.UNREADABLE, f"its picture does not decode ({shown})")


def _is_short_webp(data: bytes) -> bool:
    """Whether a WebP's head tells of more bytes than there are: its decoder only says that it failed."""
    return data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
