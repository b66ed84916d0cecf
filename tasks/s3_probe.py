"""Whether a bucket can be used: listed, written, written on a condition, read, and cleaned."""

import secrets

from models.errors import StoreError
from tasks.s3 import S3
from tasks.uris import S3Uri


def probe(root: str) -> str:
    """What was found. Writes one small object under the root and removes it.

    Raises StoreError or ConfigError for what does not work.
    """
    s3, prefix = S3(), S3Uri.parse(root)
    next(s3.objects(prefix), None)
    probed = prefix.child(f"probe-{secrets.token_hex(8)}")
    content = b"vlm-r3 doctor"
    s3.put(probed, content, metadata={})
    try:
        if s3.put(probed, content, metadata={}, if_absent=True):
            raise StoreError(
                f"{root}: the store writes over objects although it was told not to (If-None-Match), so two "
                "writers could mix. Use a store that knows conditional writes."
            )
        found = s3.find(probed)
        if found is None or s3.read(found) != content:
            raise StoreError(f"{root}: what was written does not come back. Use another store.")
    finally:
        s3.remove(probed)
    return f"{root} at {s3.endpoint} can be listed, written, read and cleaned"
