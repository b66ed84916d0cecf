"""Download into FOLDER/there in parts of 1 MiB: ``python -m tests.integration.fetch_prefix URI FOLDER``."""

import sys
from pathlib import Path

from models.errors import StoreError
from tasks.s3 import S3
from tasks.s3_download import Wanted, download
from tasks.uris import S3Uri

if __name__ == "__main__":
    prefix, s3 = S3Uri.parse(sys.argv[1]), S3()
    wanted = [Wanted(found, prefix.name_of(found.uri)) for found in s3.objects(prefix)]
    try:
        download(s3, wanted, Path(sys.argv[2]) / "there", on_progress=lambda *_: None, part_size=1 << 20)
    except StoreError as error:
        sys.exit(str(error))
