"""The files of a published benchmark on this machine, and the pins of what was measured before."""

import datetime
import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from models.benchmarks.published import PublishedSet
from models.benchmarks.sets import LocalFiles, LocalSet, find_set, read_set
from models.errors import ConfigError, RecordError, RowCountError
from models.rundir import write_atomically
from tasks.progress import FETCH, board, show_megabytes
from tasks.settings import Settings
from tasks.uris import S3_SCHEME

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Pin(BaseModel):
    """What a set was when it was first measured. ``source`` is the folder or prefix, ``date`` is in UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    num_rows: int
    source: str
    date: str


_PINS = TypeAdapter(dict[str, Pin])


@dataclass(frozen=True, slots=True)
class Pinning:
    """How the digest of a set is judged: ``lock`` is the file of pins, ``demanded`` a digest that it must
    have, ``accepted`` one that replaces the pin.
    """

    lock: Path
    demanded: str = ""
    accepted: str = ""

    def __post_init__(self) -> None:
        for option, digest in (("--data-digest", self.demanded), ("--accept-data-digest", self.accepted)):
            if digest and not _DIGEST.fullmatch(digest):
                raise ConfigError(f"{option} {digest!r} is no sha256: it has 64 digits, 0-9 and a-f.")


def check_set(published: PublishedSet, data: str, split: str, *, allow_partial: bool) -> None:
    """Look at columns and row counts alone; of a set in S3 only the ends of its files are fetched.

    Raises ConfigError when it is not the published set.
    """
    with _explained():
        if data.startswith(S3_SCHEME):
            from tasks.s3_mirror import RemoteFolder

            find_set(published, RemoteFolder(data), split, allow_partial=allow_partial)
        else:
            find_set(published, LocalFiles(local_folder(data)), split, allow_partial=allow_partial)


def fetch_set(
    published: PublishedSet, data: str, split: str, *, allow_partial: bool, settings: Settings
) -> LocalSet:
    """The set in local files; from S3 it is fetched after it was checked. Raises as :func:`check_set`."""
    folder = local_folder(data)
    with _explained():
        if data.startswith(S3_SCHEME):
            from tasks.s3_mirror import RemoteFolder

            remote = RemoteFolder(data)
            names, _ = find_set(published, remote, split, allow_partial=allow_partial)
            with board().stage(FETCH):
                folder = remote.mirror(names, settings, show_megabytes)
        return read_set(published, folder, split, allow_partial=allow_partial)


def check_digest(local: LocalSet, source: str, pinning: Pinning) -> None:
    """Compare a set with its pin; the first whole set of a benchmark and split becomes the pin.

    A digest that ships with the project wins over the file of pins. A partial set is compared only with what
    was demanded: its numbers are not the benchmark's anyway. Raises ConfigError when digests differ.
    """
    name = f"{local.published.name} {local.split}"
    shipped = local.published.digests.get(local.split, "")
    if pinning.demanded not in ("", local.digest):
        raise _differs(
            local, source, pinning.demanded, "--data-digest demands", "Give the set that was meant."
        )
    if local.is_partial:
        return
    if shipped:
        if local.digest != shipped:
            raise _differs(local, source, shipped, "the published set has", "Fetch it again from its source.")
        return
    with _pins(pinning.lock) as pins:
        pin = pins.get(name)
        if pin is not None and local.digest not in (pin.digest, pinning.accepted):
            raise _differs(
                local,
                source,
                pin.digest,
                f"{pinning.lock} pins (from {pin.source}, {pin.date})",
                f"If the change is meant: --accept-data-digest {local.digest}, or remove {name!r} from that "
                f"file.",
            )
        if pinning.accepted not in ("", local.digest):
            raise _differs(
                local,
                source,
                pinning.accepted,
                "--accept-data-digest accepts",
                "Give the digest that was found.",
            )
        if pin is None or pin.digest != local.digest:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            pins[name] = Pin(digest=local.digest, num_rows=local.num_rows, source=source, date=today)


def local_folder(data: str) -> Path:
    """The folder that the command line names."""
    return Path(data).expanduser().absolute()


@contextmanager
def _explained() -> Iterator[None]:
    """A set that is not the published one is a wrong argument of the run."""
    try:
        yield
    except RecordError as error:
        way_out = " (--allow-partial)" if isinstance(error, RowCountError) else ""
        raise ConfigError(f"{error}{way_out}") from error


@contextmanager
def _pins(path: Path) -> Iterator[dict[str, Pin]]:
    """The pins of a file, for one process at a time; written back when a block changed them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.guard").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        pins = _read_pins(path)
        before = dict(pins)
        yield pins
        if pins != before:
            write_atomically(path, _text(pins))


def _read_pins(path: Path) -> dict[str, Pin]:
    try:
        return _PINS.validate_json(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is no file of pinned digests: {error}. Repair it, take it from version control, or name "
            "another by --lock."
        ) from error


def _text(pins: Mapping[str, Pin]) -> str:
    return json.dumps({name: pin.model_dump() for name, pin in pins.items()}, indent=2, sort_keys=True) + "\n"


def _differs(local: LocalSet, source: str, expected: str, who: str, way_out: str) -> ConfigError:
    return ConfigError(
        f"{local.published.name}, split {local.split!r}, in {source} has digest {local.digest}; {who} "
        f"{expected}. Numbers on other data cannot be compared. {way_out}"
    )
