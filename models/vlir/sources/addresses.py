"""Where a manifest's row says its picture is: a path, a file: or s3: address, or the picture itself."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from models.vlir.sources.base import FaultKind
from models.vlir.sources.faults import BadRow, checked_text, content_id, shown
from models.vlir.sources.files import PictureFolder


class Addresses:
    """Reads what rows name. ``folder`` is where paths start and what they must not leave; ``buckets`` holds
    local copies of what lies in S3, in one folder per bucket, None when nothing was fetched.
    """

    def __init__(self, folder: Path, buckets: Path | None, *, max_bytes: int) -> None:
        self._folder = PictureFolder(folder, max_bytes=max_bytes)
        self._buckets = None if buckets is None else PictureFolder(buckets, max_bytes=max_bytes)
        self._max_bytes = max_bytes

    def read(self, image: object) -> bytes:
        """The file of a picture. Raises BadRow."""
        data = _inside(image)
        if data:
            return data
        address = address_of(image)
        if not address:
            raise BadRow(FaultKind.MISSING_IMAGE, "the row names no picture")
        scheme = scheme_of(address)
        if scheme == "data":
            return self._from_data_uri(address)
        if scheme == "file":
            return self._folder.read(_path_of(address))
        if scheme == "s3":
            return self._from_bucket(address)
        if scheme:
            raise BadRow(
                FaultKind.BAD_ADDRESS,
                f"{shown(address)}: {scheme} is not read. Give a path inside the manifest's folder, or a "
                "file:, data: or s3: address",
            )
        return self._folder.read(address)

    def _from_bucket(self, address: str) -> bytes:
        if self._buckets is None:
            raise BadRow(
                FaultKind.BAD_ADDRESS, f"{shown(address)} lies in S3, and its bucket was not fetched"
            )
        return self._buckets.read(address.partition("://")[2])

    def _from_data_uri(self, address: str) -> bytes:
        header, comma, body = address.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise BadRow(
                FaultKind.BAD_ADDRESS, f"{shown(address)} is not of the form data:image/...;base64,..."
            )
        if len(body) * 3 // 4 > self._max_bytes + 2:
            raise BadRow(
                FaultKind.TOO_LARGE_IMAGE, f"a data: picture of over {self._max_bytes} bytes, the limit"
            )
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRow(FaultKind.BAD_ADDRESS, f"a data: picture is no base64 ({error})") from error


def address_of(image: object) -> str:
    """The address in a manifest's field: a text, or the path of a Hugging Face Image; empty when there is
    none.
    """
    if isinstance(image, Mapping):
        image = image.get("path")
    return checked_text(image, "image")


def scheme_of(address: str) -> str:
    """``data``, ``file``, ``s3``, ``https``, ...; empty for a path, which may hold a colon."""
    scheme, colon, _ = address.partition(":")
    if colon and scheme.lower() in ("data", "file"):
        return scheme.lower()
    return scheme.lower() if "://" in address else ""


def picture_name(image: object) -> str:
    """What messages and ids call a picture; one that is in the row itself is named by its content."""
    data = _inside(image)
    if data:
        return f"picture {hashlib.sha256(data).hexdigest()[:16]}"
    address = address_of(image)
    return f"picture {content_id(address)}" if scheme_of(address) == "data" else address


def _inside(image: object) -> bytes | None:
    """The bytes that stand in the field itself."""
    data = image.get("bytes") if isinstance(image, Mapping) else image
    return data if isinstance(data, bytes) else None


def _path_of(address: str) -> str:
    parts = urlsplit(address)
    if parts.netloc not in ("", "localhost"):
        raise BadRow(FaultKind.BAD_ADDRESS, f"{shown(address)} is on another machine ({parts.netloc})")
    return unquote(parts.path)
