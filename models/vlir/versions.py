"""Which version of its sources a set is made from: a digest of each over its rows, and how many there are.

Two sets with the same versions were made from the same questions. Files of sources are read once, no picture
is decoded.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from models.run_config import VLIRRun
from models.vlir.drawn import SOURCE
from models.vlir.entries import digest_of
from models.vlir.leakage import HeldOut
from models.vlir.reading import survey
from models.vlir.sources.open import open_source


class SourceVersion(BaseModel):
    """A source as it is: a digest over all of its rows in order, and how many there are and can be used."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    digest: str
    num_rows: int
    num_usable: int


def versions_of(request: VLIRRun) -> dict[str, SourceVersion]:
    """The sources of a build as they are now, by name.

    Raises RecordError for sources that cannot be read, and for a picture in two splits.
    """
    config = request.vlir
    if config.is_drawn:
        return {SOURCE: drawn_version(request)}
    opened = [
        (each, open_source(each, max_picture_bytes=config.max_picture_bytes)) for each in config.sources
    ]
    found = survey(
        opened,
        config,
        held_out=HeldOut(),
        num_wanted={},
        seed=request.seed,
        on_row=lambda: None,
    )
    return {
        label: SourceVersion(digest=count.digest, num_rows=count.num_rows, num_usable=count.num_usable)
        for label, count in found.sources.items()
    }


def versions_in(manifest: Mapping[str, Any]) -> dict[str, SourceVersion]:
    """The sources that a finished set was made from, as its manifest has them."""
    return {label: SourceVersion.model_validate(found) for label, found in manifest["sources"].items()}


def drawn_version(request: VLIRRun) -> SourceVersion:
    """The drawn world is what determines its questions: seed, mix, and how many there are."""
    config = request.vlir
    numbers = [config.num_questions, config.num_validation_questions]
    digest = digest_of(["drawn", request.seed, config.kinds, numbers])
    return SourceVersion(digest=digest, num_rows=sum(numbers), num_usable=sum(numbers))


def all_digest(versions: Mapping[str, SourceVersion]) -> str:
    """One digest of all sources together."""
    return digest_of({label: found.digest for label, found in versions.items()})
