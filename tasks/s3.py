"""S3 and whatever speaks its language: the only module that knows boto3.

Endpoint, region and credentials come from where boto3 looks for them (``AWS_ENDPOINT_URL``, the environment,
a profile, the role of the machine); none of them appears in a message. A request is tried again with jitter;
a body that is cut goes on where it was cut; an object is always read as it was when it was found
(``If-Match``).
"""

import base64
import hashlib
import io
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)

from models.errors import ConfigError, ObjectChangedError, StoreError
from tasks.uris import S3Uri

NUM_CONNECTIONS = 8
_MAX_TRIES = 6
_BACKOFF_SECONDS = 0.25
_LONGEST_BACKOFF_SECONDS = 20.0
_BLOCK = 1 << 20
# What a store answers to credentials that it does not accept, beside status 401 and 403.
_REFUSALS = frozenset(
    {"AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"}
)
_MISSING = frozenset({"404", "NoSuchBucket", "NoSuchKey", "NotFound"})
_CUT = (HTTPClientError, IncompleteReadError, ConnectionError, TimeoutError)


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object as it was when it was found; ``size`` in bytes."""

    uri: S3Uri
    size: int
    etag: str
    modified: datetime


class S3:
    """A connection; safe to share between threads."""

    def __init__(self, *, max_tries: int = _MAX_TRIES) -> None:
        self._max_tries = max_tries
        config = Config(
            retries={"mode": "standard", "max_attempts": max_tries},
            max_pool_connections=2 * NUM_CONNECTIONS,
            connect_timeout=10,
            read_timeout=60,
            # Newer checksums are not understood by every store; digests of our own guard what is kept.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            # A session of our own: the default one keeps the credentials that it saw first.
            self.client: Any = Session().client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(
                f"The settings of S3 cannot be used: {error}. See AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE."
            ) from error

    @property
    def endpoint(self) -> str:
        """The address of the store, without a user or password that may stand in it."""
        parts = urlsplit(str(self.client.meta.endpoint_url))
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    def objects(self, prefix: S3Uri) -> Iterator[RemoteObject]:
        """Every object under a prefix, which is a folder, in the order of the keys."""
        pages = self.client.get_paginator("list_objects_v2")
        with explained(prefix):
            for page in pages.paginate(Bucket=prefix.bucket, Prefix=f"{prefix.key}/" if prefix.key else ""):
                for found in page.get("Contents", ()):
                    if not found["Key"].endswith(
                        "/"
                    ):  # some tools leave empty objects that stand for folders
                        uri = S3Uri(prefix.bucket, found["Key"])
                        yield RemoteObject(uri, found["Size"], found["ETag"], found["LastModified"])

    def find(self, uri: S3Uri) -> RemoteObject | None:
        """One object; None when there is none. A list says so also to who may only list under a prefix."""
        with explained(uri):
            page = self.client.list_objects_v2(Bucket=uri.bucket, Prefix=uri.key, MaxKeys=1)
        for found in page.get("Contents", ()):  # the key itself comes before all keys that only begin with it
            if found["Key"] == uri.key:
                return RemoteObject(uri, found["Size"], found["ETag"], found["LastModified"])
        return None

    def metadata(self, found: RemoteObject) -> dict[str, str]:
        """What its writer noted on an object; nothing when it has gone."""
        try:
            with explained(found.uri):
                return dict(self.client.head_object(Bucket=found.uri.bucket, Key=found.uri.key)["Metadata"])
        except FileNotFoundError:
            return {}

    def remove(self, uri: S3Uri) -> None:
        """Remove one object; also if it has gone."""
        with explained(uri):
            self.client.delete_object(Bucket=uri.bucket, Key=uri.key)

    def blocks(self, found: RemoteObject, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from ``start`` up to ``stop``, as they arrive.

        Raises ObjectChangedError when the object is no longer the one that was found, StoreError when the
        store does not go on after several tries.
        """
        place, tries = start, 0
        while place < stop:
            began = place
            try:
                for block in self._body(found, place, stop).iter_chunks(_BLOCK):
                    place += len(block)
                    yield block
            except _CUT as error:
                # A trickle is no progress: a store that cuts after every few bytes would be asked for ever.
                tries = 1 if place - began >= _BLOCK else tries + 1
                if tries >= self._max_tries:
                    raise StoreError(
                        f"{found.uri}: the connection was cut {tries} times at byte {place} of {found.size}. "
                        "Start again when the store is well; what was fetched is kept."
                    ) from error
                time.sleep(backoff(tries))

    def read(self, found: RemoteObject) -> bytes:
        """A whole small object."""
        return b"".join(self.blocks(found, 0, found.size))

    def open(self, found: RemoteObject) -> io.BufferedReader:
        """The object as a file of which only what is read is fetched."""
        return io.BufferedReader(_RemoteFile(self, found), buffer_size=1 << 16)

    def put(
        self, uri: S3Uri, data: bytes, *, metadata: Mapping[str, str] | None = None, if_absent: bool = False
    ) -> bool:
        """Write a whole object; the store checks its MD5. False when ``if_absent`` and there is one."""
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        try:
            with explained(uri):
                self.client.put_object(
                    Bucket=uri.bucket,
                    Key=uri.key,
                    Body=data,
                    ContentMD5=base64.b64encode(md5(data)).decode(),
                    Metadata=dict(metadata or {}),
                    **condition,
                )
        except ObjectChangedError:
            return False
        return True

    def _body(self, found: RemoteObject, start: int, stop: int) -> Any:
        with explained(found.uri):
            answer = self.client.get_object(
                Bucket=found.uri.bucket,
                Key=found.uri.key,
                Range=f"bytes={start}-{stop - 1}",
                IfMatch=found.etag,
            )
        if not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
            raise StoreError(
                f"{found.uri}: the store does not serve ranges, so nothing can be continued on it."
            )
        return answer["Body"]


class _RemoteFile(io.RawIOBase):
    """Reads of an object at any place, each a request."""

    def __init__(self, s3: S3, found: RemoteObject) -> None:
        self._s3, self._found, self._place = s3, found, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._found.size}[whence]
        )
        return self._place

    def readinto(self, buffer: Any) -> int:
        stop = min(self._place + len(buffer), self._found.size)
        data = b"".join(self._s3.blocks(self._found, self._place, stop))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


@contextmanager
def explained(uri: S3Uri) -> Iterator[None]:
    """Turn what boto3 raises in a block into our errors; FileNotFoundError where there is no such object."""
    try:
        yield
    except ClientError as error:
        raise _explained(uri, error) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StoreError(
            f"{uri}: no credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or use a machine that has a role."
        ) from error
    except BotoCoreError as error:  # also a store that does not answer, after all tries
        raise StoreError(f"{uri}: the store cannot be used ({error}).") from error


def backoff(tries: int) -> float:
    """Seconds before the next try: random up to a bound that doubles."""
    return random.uniform(0, min(_LONGEST_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2**tries))


def md5(data: bytes) -> bytes:
    """What a store calls an ETag; no guard against intent."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def _explained(uri: S3Uri, error: ClientError) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _REFUSALS or status in (401, 403):
        return StoreError(
            f"{uri}: the store refused the credentials ({code}). What they must allow is in "
            "docs/operations.md; they come from AWS_ACCESS_KEY_ID, AWS_PROFILE or the machine's role."
        )
    if code == "NoSuchBucket":
        return StoreError(f"{uri}: there is no bucket {uri.bucket!r}. Make it, or name another.")
    if code in _MISSING or status == 404:
        return FileNotFoundError(f"{uri}: there is no such object.")
    if code in ("PreconditionFailed", "ConditionalRequestConflict") or status == 412:
        return ObjectChangedError(
            f"{uri} changed while it was read. Start again: what did not change is not fetched again."
        )
    return StoreError(f"{uri}: the store answered {status} {code}, also when asked again.")
