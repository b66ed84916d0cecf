"""Addresses: ``s3://bucket/key``, and names of files that must stay inside their folder."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from models.endpoints import without_user
from models.errors import ArtifactError, ConfigError

S3_SCHEME = "s3://"


@dataclass(frozen=True, slots=True)
class S3Uri:
    """An object or a prefix in a bucket; the key has no slash at its ends."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> "S3Uri":
        """Raises ConfigError for text that names no bucket, or that holds more than bucket and key."""
        parts = urlsplit(text)
        if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigError(f"{without_user(text)!r} is no address in S3. Write s3://bucket/prefix.")
        key = parts.path.strip("/")
        if key:
            safe_name(key)
        return cls(parts.netloc, key)

    def child(self, name: str) -> "S3Uri":
        """What lies under this prefix. Raises ArtifactError for a name that would leave it."""
        name = safe_name(name)
        return S3Uri(self.bucket, f"{self.key}/{name}" if self.key else name)

    def name_of(self, other: "S3Uri") -> str:
        """The name of what lies under this prefix, relative to it."""
        return safe_name(other.key.removeprefix(f"{self.key}/" if self.key else ""))

    def __str__(self) -> str:
        return f"{S3_SCHEME}{self.bucket}/{self.key}"


def safe_name(name: str) -> str:
    """A relative path with forward slashes that stays where it starts. Raises ArtifactError for any other."""
    parts = name.split("/")
    if (
        PurePosixPath(name).is_absolute()
        or any(part in ("", ".", "..") for part in parts)
        or any(character in name for character in ("\\", "\0", "\n"))
    ):
        raise ArtifactError(
            f"The name {name!r} could leave its folder. Names are relative, with forward slashes, without "
            "'..'."
        )
    return name
