"""The features of our Parquet files in the words of Hugging Face ``datasets``, stored in the files' metadata.

``datasets`` reads the key ``huggingface`` of an Arrow schema; with it a column of encoded pictures loads as
an Image feature, which decodes. Lists are written as JSON lists, which every version of ``datasets`` reads.
"""

import io
import json
from typing import Any

import pyarrow as pa
from PIL import Image, UnidentifiedImageError

# The struct that an Image feature is stored as.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif"}


def with_features(schema: pa.Schema) -> pa.Schema:
    """The same schema with its features in the metadata; columns of type :data:`IMAGE` hold pictures."""
    features = {field.name: _feature(field.type) for field in schema}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    return schema.with_metadata({**(schema.metadata or {}), **metadata})


def file_extension(data: bytes) -> str:
    """The usual extension of a picture's real format, without dot; ``bin`` for bytes that are no picture."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            name = image.format or ""
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "bin"
    return _EXTENSIONS.get(name, name.lower())


def _feature(kind: pa.DataType) -> Any:
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return [_feature(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    name = "float64" if pa.types.is_float64(kind) else str(kind)
    return {"dtype": name, "_type": "Value"}
