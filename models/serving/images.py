"""Pictures of strangers: from bytes to upright RGB, or a 4xx that says what is wrong with them."""

import base64
import binascii

from PIL import Image

from models.pictures import PictureFault, PictureFaultKind, read_picture
from models.serving.errors import APIError, bad_request


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
    try:
        return read_picture(data, max_pixels=max_pixels, max_bytes=max(1, len(data))).image
    except PictureFault as fault:
        if fault.kind == PictureFaultKind.TOO_LARGE:
            raise APIError(413, f"An image is too large: {fault.detail}.", code="image_too_large") from fault
        raise bad_request(
            f"An image cannot be read: {fault.detail}.", param="messages", code="invalid_image"
        ) from fault


def too_large(what: str, limit: str) -> APIError:
    """A 413."""
    return APIError(413, f"{what} is over this server's limit of {limit}.", code="image_too_large")
