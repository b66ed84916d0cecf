"""Which version of its sources a set is made from. Files are read once; no picture is decoded."""

from models.source_versions import SourceVersion
from models.vlir.drawn import SOURCE
from models.vlir.entries import digest_of
from models.vlir.leakage import HeldOut
from models.vlir.reading import survey
from models.vlir.sources.open import open_source
from models.vlir_config import VLIRConfig


def versions_of(config: VLIRConfig, *, seed: int) -> dict[str, SourceVersion]:
    """The sources of a build as they are now, by name; their places must be local.

    Raises RecordError for sources that cannot be read, and for a picture in two splits.
    """
    if config.is_drawn:
        return {SOURCE: drawn_version(config, seed=seed)}
    max_bytes = config.max_picture_bytes
    opened = [(each, open_source(each, max_picture_bytes=max_bytes)) for each in config.sources]
    found = survey(opened, config, held_out=HeldOut(), num_wanted={}, seed=seed, on_row=lambda: None)
    return {
        label: SourceVersion(digest=count.digest, num_rows=count.num_rows, num_usable=count.num_usable)
        for label, count in found.sources.items()
    }


def drawn_version(config: VLIRConfig, *, seed: int) -> SourceVersion:
    """The drawn world is what determines its questions: seed, mix, and how many there are."""
    numbers = [config.num_questions, config.num_validation_questions]
    digest = digest_of(["drawn", seed, config.kinds, numbers])
    return SourceVersion(digest=digest, num_rows=sum(numbers), num_usable=sum(numbers))
