"""Addresses and names: nothing leaves its root."""

import pytest

from models.errors import ArtifactError, ConfigError
from tasks.uris import S3Uri, safe_name


def test_an_address_is_a_bucket_and_a_key() -> None:
    uri = S3Uri.parse("s3://bucket/a/b c/")
    assert (uri.bucket, uri.key) == ("bucket", "a/b c")
    assert str(uri.child("d/e.txt")) == "s3://bucket/a/b c/d/e.txt"
    assert uri.name_of(uri.child("d/e.txt")) == "d/e.txt"
    whole = S3Uri.parse("s3://bucket")
    assert (whole.key, whole.child("x").key, whole.name_of(S3Uri("bucket", "x"))) == ("", "x", "x")


@pytest.mark.parametrize(
    "text",
    ["s3://", "s3:///key", "http://bucket/key", "bucket/key", "s3://key:secret@bucket/x", "s3://b/k?v=1"],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="Write s3://bucket/prefix"):
        S3Uri.parse(text)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/./b", "a\\..\\b", "a\0b", "a/"]
)
def test_names_cannot_leave_their_folder(name: str) -> None:
    with pytest.raises(ArtifactError, match="could leave its folder"):
        safe_name(name)
    with pytest.raises(ArtifactError):
        S3Uri("bucket", "prefix").name_of(S3Uri("bucket", f"prefix/{name}"))
