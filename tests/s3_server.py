"""A real S3 server (SeaweedFS) on this machine, for the tests."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config

from tasks.ports import free_ports

BUCKET = "data"
START_SECONDS = 60.0
# Names of a user and the actions that it may take.
USERS = {
    "owner": ["Admin", "Read", "Write", "List"],
    "writer": [f"Read:{BUCKET}", f"List:{BUCKET}", f"Write:{BUCKET}"],
    "reader": [f"Read:{BUCKET}", f"List:{BUCKET}"],
}


@dataclass(frozen=True)
class S3Server:
    """Where it listens. A user's key is its name, its secret the name twice."""

    endpoint: str

    def environment(self, user: str = "owner", endpoint: str = "") -> dict[str, str]:
        """What boto3 reads."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": user,
            "AWS_SECRET_ACCESS_KEY": user * 2,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A plain client of the owner, past any proxy: what the test does behind our back."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="owner",
            aws_secret_access_key="ownerowner",
            region_name="us-east-1",
            config=Config(signature_version="s3v4"),
        )

    def put_folder(self, folder: Path, prefix: str) -> None:
        """All files of a folder under a prefix of the bucket."""
        client = self.client()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server with one bucket and the users above, for the time of a block."""
    folder.mkdir(parents=True, exist_ok=True)
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": name * 2}], "actions": actions}
        for name, actions in USERS.items()
    ]
    (folder / "users.json").write_text(json.dumps({"identities": identities}))
    ports = free_ports(10)
    names = ["s3", "s3.port.grpc", "master", "master.port.grpc", "volume", "volume.port.grpc"]
    names += ["filer", "filer.port.grpc", "admin", "admin.port.grpc"]
    flags = [f"-{name if '.' in name else name + '.port'}={port}" for name, port in zip(names, ports)]
    command = [
        str(Path(sys.executable).parent / "weed"),
        *("mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}", *flags),
        *("-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0"),
        *("-s3.port.lance=0", f"-s3.config={folder / 'users.json'}"),
    ]
    environment = {**os.environ, "GOMEMLIMIT": "512MiB", "GOMAXPROCS": "2"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
    server = S3Server(f"http://127.0.0.1:{ports[0]}")
    try:
        _wait(server, process, folder / "log")
        yield server
    finally:
        # Nothing of it is kept: no need for its own slow way of stopping.
        process.kill()
        process.wait()


def _wait(server: S3Server, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"The S3 server ended:\n{log.read_text()[-2000:]}"
        try:
            if httpx.get(f"{server.endpoint}/healthz").status_code == 200 and _has_bucket(server):
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)
    raise AssertionError(f"The S3 server did not start:\n{log.read_text()[-2000:]}")


def _has_bucket(server: S3Server) -> bool:
    client = server.client()
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        return False
    client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")  # a volume can be written
    client.delete_object(Bucket=BUCKET, Key="ready")
    return True
