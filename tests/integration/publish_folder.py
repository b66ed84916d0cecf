"""Publish a folder in parts of 5 MiB: ``python -m tests.integration.publish_folder ROOT FOLDER CACHE``."""

import sys
from pathlib import Path

from models.errors import VLMR3Error
from tasks.s3_store import S3Store

if __name__ == "__main__":
    root, folder, cache = sys.argv[1:]
    try:
        ref = S3Store(root, Path(cache), part_size=5 << 20).publish(Path(folder), stage="sft", kind="model")
    except VLMR3Error as error:
        sys.exit(str(error))
    print(ref.uri)
