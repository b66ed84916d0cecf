"""Pictures of strangers: from bytes to upright RGB, or a 4xx that says what is wrong with them."""

import base64
import binascii
import io
import struct

import numpy as np
from PIL import Image, ImageOps

from models.serving.errors import APIError, bad_request

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# What Pillow's readers raise on bytes that are not what they claim to be.
_UNREADABLE = (
    *(OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, ArithmeticError, EOFError),
    *(struct.error, AssertionError, NotImplementedError),
)


def is_data_uri(source: str) -> bool:
    """Whether a picture is in the request itself."""
    return source[:5].lower() == "data:"


def from_data_uri(uri: str, *, max_bytes: int) -> bytes:
    """The bytes of ``data:image/...;base64,...``. Raises APIError for anything else."""
    header, comma, payload = uri.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise bad_request(
            f"An image's data URI must be data:image/...;base64,..., and this begins {uri[:40]!r}.",
            param="messages",
        )
    if len(payload) * 3 // 4 > max_bytes + 2:
        raise too_large(f"An image of over {max_bytes} bytes", f"{max_bytes} bytes")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"An image's base64 does not decode: {error}.", param="messages") from error


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """The picture, upright, RGB, transparent parts on white, 16 bits per channel brought to 8; of an
    animation the first frame.

    Raises APIError: 400 for bytes that are no whole picture, 413 for more pixels than allowed (which are
    never decoded).
    """
    if not data:
        raise bad_request("An image has no bytes.", param="messages", code="invalid_image")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise too_large(f"An image of {image.width}x{image.height} pixels", f"{max_pixels} pixels")
        return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise too_large("An image of a bomb's size", f"{max_pixels} pixels") from error
    except _UNREADABLE as error:
        raise bad_request(
            f"An image cannot be read ({type(error).__name__}). Send a whole file of one of these formats: "
            f"{', '.join(FORMATS)}.",
            param="messages",
            code="invalid_image",
        ) from error


def too_large(what: str, limit: str) -> APIError:
    """A 413."""
    return APIError(413, f"{what} is over this server's limit of {limit}.", code="image_too_large")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        pixels = np.asarray(image)
        high = pixels >> 8 if int(pixels.max(initial=0)) > 255 else pixels
        return Image.fromarray(high.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")
