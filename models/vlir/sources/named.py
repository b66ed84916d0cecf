"""Which files a source reads: what must be there before it is read, and what changes when it changes."""

import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

from models.benchmarks.sets import LocalFiles
from models.vlir.sources import gqa, published, vsr
from models.vlir.sources.addresses import address_of, scheme_of
from models.vlir.sources.faults import BadRow, Row
from models.vlir.sources.manifest import find_manifest, open_rows
from models.vlir.sources.visual_cot import find_metadata
from models.vlir.sources.visual_cot import picture_names as visual_cot_names
from models.vlir_config import SourceConfig

PARQUET_SETS = {
    "textvqa": published.TEXTVQA,
    "docvqa": published.DOCVQA,
    "infographicvqa": published.INFOGRAPHICVQA,
    "m3cot": published.M3COT,
}


def named_pictures(config: SourceConfig, *, max_picture_bytes: int) -> Iterator[tuple[str, ...]]:
    """For each row of a local manifest, VSR or Visual CoT, where its picture may be, the likeliest first.

    A place is a path relative to the folder of pictures, or an ``s3://`` address. A row that names none, or
    that holds its picture, gives nothing.
    """
    data = Path(config.data).expanduser()
    if config.kind == "manifest":
        for row in _sound(open_rows(find_manifest(data), max_picture_bytes=max_picture_bytes).rows()):
            try:
                address = address_of(row.get("image"))
            except BadRow:
                continue
            if address and scheme_of(address) in ("", "s3"):
                yield (address if scheme_of(address) else posixpath.normpath(address),)
    elif config.kind in ("vsr", "visual_cot"):
        is_vsr = config.kind == "vsr"
        rows = vsr.find_lines(data).rows() if is_vsr else find_metadata(data).rows()
        names_of = vsr.picture_names if is_vsr else visual_cot_names
        for row in _sound(rows):
            try:
                yield names_of(row)
            except BadRow:
                continue


def source_files(config: SourceConfig, *, max_picture_bytes: int) -> Iterator[Path]:
    """Every local file that a source reads, or would read if it were there."""
    data = Path(config.data).expanduser()
    if config.kind in PARQUET_SETS:
        yield from _training_files(data, PARQUET_SETS[config.kind].name, PARQUET_SETS[config.kind].split)
    elif config.kind == "gqa":
        images = Path(config.images).expanduser() if config.images else data
        yield from _training_files(data, "GQA", gqa.INSTRUCTIONS)
        yield from _training_files(images, "GQA", gqa.IMAGES)
    elif config.kind == "vsr":
        yield from vsr.find_lines(data).files
    elif config.kind == "visual_cot":
        yield from find_metadata(data).files
    elif config.kind == "manifest":
        yield find_manifest(data)
    yield from index_files(config)
    if config.kind in ("manifest", "vsr", "visual_cot"):
        yield from _pictures(config, data, max_picture_bytes)


def index_files(config: SourceConfig) -> Iterator[Path]:
    """The files that a source's boxes come from, if they are in files of their own."""
    if config.scene_graphs:
        yield gqa.find_scene_graphs(Path(config.scene_graphs).expanduser())
    if config.boxes:
        yield from find_metadata(Path(config.boxes).expanduser()).files


def _pictures(config: SourceConfig, data: Path, max_picture_bytes: int) -> Iterator[Path]:
    folder = data if data.is_dir() else data.parent
    folder = Path(config.images).expanduser() if config.images else folder
    for places in named_pictures(config, max_picture_bytes=max_picture_bytes):
        for place in places:
            if not place.startswith("s3://"):
                yield folder / place
            elif config.buckets:
                yield Path(config.buckets) / place.removeprefix("s3://")


def _training_files(folder: Path, what: str, split: str) -> list[Path]:
    return [folder / name for name in published.training_names(what, split, LocalFiles(folder))]


def _sound(rows: Iterable[tuple[int, Row | BadRow]]) -> Iterator[Row]:
    return (row for _, row in rows if not isinstance(row, BadRow))
