"""Put many files into S3: in parallel parts, and what an interrupted upload left is not sent again."""

import base64
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.errors import StoreError
from tasks.s3 import NUM_CONNECTIONS, S3, explained, md5
from tasks.s3_download import PART_SIZE
from tasks.uris import S3Uri

SHA256 = "sha256"  # the name under which an object carries its digest
# More parts than this no store takes.
_MAX_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A file that does not change any more, and where it goes. ``size`` in bytes."""

    path: Path
    uri: S3Uri
    sha256: str
    size: int


@dataclass
class _Upload:
    """An upload in parts; ``parts`` maps a number, from 1, to the ETag of a part that the store has."""

    file: Outgoing
    id: str
    part_size: int
    parts: dict[int, str] = field(default_factory=dict)

    def missing(self) -> list[int]:
        """Numbers of the parts that the store does not have, or has with other content."""
        count = -(-self.file.size // self.part_size)
        return [number for number in range(1, count + 1) if not self._is_there(number)]

    def _is_there(self, number: int) -> bool:
        return number in self.parts and self.parts[number] == _etag(self.read(number))

    def read(self, number: int) -> bytes:
        """The bytes of a part."""
        with self.file.path.open("rb") as file:
            file.seek((number - 1) * self.part_size)
            return file.read(self.part_size)


def upload(s3: S3, files: list[Outgoing], *, part_size: int = PART_SIZE) -> None:
    """Every file that the store does not have yet.

    Raises StoreError when the store does not take it; what it took is found again by the next start.
    """
    with ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="s3-upload") as pool:
        is_there = pool.map(lambda file: has(s3, file), files)
        wanted = [file for file, there in zip(files, is_there, strict=True) if not there]
        large = [file for file in wanted if file.size > part_size]
        in_parts = list(pool.map(lambda file: _begin(s3, file, part_size), large))
        jobs = [pool.submit(_put, s3, file) for file in wanted if file.size <= part_size]
        jobs += [pool.submit(_put_part, s3, each, number) for each in in_parts for number in each.missing()]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for each in in_parts:
        _complete(s3, each)


def has(s3: S3, file: Outgoing) -> bool:
    """Whether the store has this very file."""
    found = s3.find(file.uri)
    return found is not None and found.size == file.size and s3.metadata(found).get(SHA256) == file.sha256


def _put(s3: S3, file: Outgoing) -> None:
    s3.put(file.uri, file.path.read_bytes(), metadata={SHA256: file.sha256})


def _begin(s3: S3, file: Outgoing, part_size: int) -> _Upload:
    """The upload that an earlier start left, or a new one.

    A key holds the digest of its artifact, so whoever began an upload for it was sending the same bytes.
    """
    size = max(part_size, -(-file.size // _MAX_PARTS))
    place = {"Bucket": file.uri.bucket, "Key": file.uri.key}
    with explained(file.uri):
        listed = s3.client.list_multipart_uploads(Bucket=file.uri.bucket, Prefix=file.uri.key)
        left = [each for each in listed.get("Uploads", ()) if each["Key"] == file.uri.key]
        if not left:
            made = s3.client.create_multipart_upload(**place, Metadata={SHA256: file.sha256})
            return _Upload(file, made["UploadId"], size)
    newest = max(left, key=lambda each: (each["Initiated"], each["UploadId"]))["UploadId"]
    try:
        with explained(file.uri):
            pages = s3.client.get_paginator("list_parts").paginate(**place, UploadId=newest)
            parts = {part["PartNumber"]: part["ETag"] for page in pages for part in page.get("Parts", ())}
    except FileNotFoundError:
        parts = {}  # another writer has just completed it: the first part that is sent tells
    return _Upload(file, newest, size, parts)


def _put_part(s3: S3, each: _Upload, number: int) -> None:
    data = each.read(number)
    made = _in_upload(
        s3,
        each,
        "upload_part",
        PartNumber=number,
        Body=data,
        ContentMD5=base64.b64encode(md5(data)).decode(),
    )
    each.parts[number] = made["ETag"] if made else _etag(data)


def _complete(s3: S3, each: _Upload) -> None:
    count = -(-each.file.size // each.part_size)
    parts = [{"PartNumber": number, "ETag": each.parts[number]} for number in range(1, count + 1)]
    _in_upload(s3, each, "complete_multipart_upload", MultipartUpload={"Parts": parts})


def _in_upload(s3: S3, each: _Upload, method: str, **arguments: Any) -> Mapping[str, Any] | None:
    """A call that belongs to an upload; None when another writer completed the same upload meanwhile."""
    file = each.file
    try:
        with explained(file.uri):
            call = getattr(s3.client, method)
            answer: Mapping[str, Any] = call(
                Bucket=file.uri.bucket, Key=file.uri.key, UploadId=each.id, **arguments
            )
            return answer
    except FileNotFoundError as error:
        if has(s3, file):
            return None
        raise StoreError(f"{file.uri}: the upload in parts was aborted by someone. Start again.") from error


def _etag(data: bytes) -> str:
    return f'"{md5(data).hex()}"'
