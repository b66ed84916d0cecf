"""Secrets that a test plants, and a look for them in everything that a run wrote."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# Where credentials are by rule, and where they should not be but are: in addresses.
SECRETS = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEYID0001",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret0002",
    "AWS_SESSION_TOKEN": "planted-aws-session-0003",
    "AWS_ENDPOINT_URL": "http://ada:planted-store-0004@127.0.0.1:9",
    "VLM_R3_API_KEY": "planted-endpoint-key-0005",
    "VLM_R3_JUDGE_API_KEY": "planted-judge-key-0006",
    "VLM_R3_SERVE_API_KEY": "planted-serving-key-0007",
    "OPENAI_API_KEY": "sk-planted-0008",
    "HF_TOKEN": "hf_planted0009",
    "MLFLOW_TRACKING_PASSWORD": "planted-tracker-0010",
    "DATABASE_URL": "postgresql://ada:planted-database-0011@db/mlflow",
}


def words(secrets: Iterable[str] = SECRETS.values()) -> list[bytes]:
    """What to look for: of an address the password alone."""
    return [secret.rpartition("@")[0].rpartition(":")[2].encode() or secret.encode() for secret in secrets]


def holding(folder: Path, wanted: Iterable[bytes]) -> list[str]:
    """The files below a folder that hold one of the words, databases and tables included."""
    return [
        str(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and any(word in data for data in _contents(path) for word in wanted)
    ]


def _contents(path: Path) -> list[bytes]:
    if path.suffix != ".parquet":
        return [path.read_bytes()]
    table = pq.read_table(path)  # its pages are compressed
    texts = [name for name in table.column_names if not _is_picture(table.schema.field(name).type)]
    return [path.read_bytes(), repr(table.select(texts).to_pylist()).encode()]


def _is_picture(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
