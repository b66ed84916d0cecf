"""From the rows of sources to questions: which split, which rows are unusable, what must not be trained on.

The sources are read several times, a row at a time, so that memory does not grow with them: once to look
(:func:`survey`: how many, duplicates, leaks, which questions R-GRPO and evaluation get), once to write those
questions, once to ask the teacher. Pictures are decoded only where a question is used.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from models.config import SourceConfig, VLIRConfig
from models.errors import RecordError, RegionError
from models.pictures import PictureFault, read_picture
from models.records import Question, sha256
from models.rollout import Asked
from models.vlir.entries import Entry, Loading, Ready, digest_of
from models.vlir.leakage import HeldOut
from models.vlir.prompts import BARE_QUESTION, ask
from models.vlir.sources.base import Fault, FaultKind, Sample, Source
from models.vlir_config import PromptChoice

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
_MAX_EXAMPLES = 3
# A set of 64-bit digests instead of names: a million rows take some ten megabytes.
_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Row:
    """A source's row with its split, and a digest of all that makes it. A faulty row counts as training."""

    source: Source
    config: SourceConfig
    found: Sample | Fault
    split: str
    key: str
    picture_sha256: str = ""

    @property
    def size(self) -> int:
        """Bytes of its picture's file."""
        return len(self.found.image_bytes) if isinstance(self.found, Sample) else 0

    @property
    def material(self) -> "SampleRow | Fault":
        """What its question is made from, or why there is none."""
        if isinstance(self.found, Fault):
            return self.found
        licence = self.found.licence or self.source.licence
        return SampleRow(self.found, self.source.label, licence, self.split, self.config.prompt)


@dataclass(slots=True)
class SourceCount:
    """How much there is in a source: ``digest`` is over all rows, in order."""

    num_rows: int = 0
    num_usable: int = 0
    digest: str = ""


@dataclass(slots=True)
class Survey:
    """What all rows together are. ``chosen`` are the keys of the questions for R-GRPO (train) and for
    evaluation (test).
    """

    sources: dict[str, SourceCount] = field(default_factory=dict)
    num_rows: Counter[str] = field(default_factory=Counter)
    chosen: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of all rows, in order."""
        return digest_of({label: count.digest for label, count in self.sources.items()})


Opened = Sequence[tuple[SourceConfig, Source]]


def read_rows(opened: Opened, config: VLIRConfig) -> Iterator[Row]:
    """All rows of all sources, in order; an id that was there before is a fault."""
    ids: set[bytes] = set()
    for source_config, source in opened:
        num_usable = 0
        for found in source.rows():
            if isinstance(found, Sample):
                name = hashlib.sha256(found.id.encode()).digest()[:_DIGEST_BYTES]
                if name in ids:
                    detail = f"id {found.id!r} was used by an earlier row"
                    found = Fault(found.row, found.id, FaultKind.DUPLICATE_ID, detail)
                else:
                    ids.add(name)
                    num_usable += 1
            yield _row(source, source_config, found, config)
            if num_usable == source_config.num_questions:
                break


def survey(
    opened: Opened,
    config: VLIRConfig,
    *,
    held_out: HeldOut,
    num_wanted: dict[str, int],
    seed: int,
    on_row: Callable[[], None],
) -> Survey:
    """Look at every row once. ``num_wanted`` says how many questions of a split are wanted for training or
    evaluation: those whose digest is smallest, so that a row more or less changes few of them.

    Raises RecordError when a training row is in an evaluation set, or a picture in two splits.
    """
    found = Survey(sources={source.label: SourceCount() for _, source in opened})
    digests = {source.label: hashlib.sha256() for _, source in opened}
    pictures: dict[str, set[bytes]] = {split: set() for split in SPLITS}
    heaps: dict[str, list[tuple[int, str]]] = {split: [] for split in num_wanted}
    leaks: list[str] = []
    for row in read_rows(opened, config):
        on_row()
        count = found.sources[row.source.label]
        count.num_rows += 1
        digests[row.source.label].update(row.key.encode())
        found.num_rows[row.split] += 1
        if not isinstance(row.found, Sample):
            continue
        count.num_usable += 1
        pictures[row.split].add(bytes.fromhex(row.picture_sha256)[:_DIGEST_BYTES])
        leak = held_out.find_leak(row.found)
        if leak and len(leaks) < _MAX_EXAMPLES:
            leaks.append(f"{row.source.label} row {row.found.row} ({row.found.id}): {leak}")
        _offer(heaps.get(row.split), num_wanted.get(row.split, 0), row.key, seed)
    if leaks:
        raise leak_error(leaks)
    _check_splits(pictures)
    for label, count in found.sources.items():
        count.digest = digests[label].hexdigest()
    found.chosen = {split: frozenset(key for _, key in heap) for split, heap in heaps.items()}
    return found


def leak_error(leaks: Sequence[str]) -> RecordError:
    """What is said about training rows that an evaluation set holds, too."""
    return RecordError(
        f"Training rows are in a set that is kept for evaluation: {'; '.join(leaks)}. What was trained on "
        "measures nothing: take these rows out of the source, or the set out of vlir.held_out."
    )


def split_of(picture_sha256: str, config: VLIRConfig) -> str:
    """The split of a picture whose row names none: its digest decides, so that no picture is in two."""
    place = int(picture_sha256[:8], 16) / 2**32
    if place < config.test_share:
        return TEST
    return VALIDATION if place < config.test_share + config.validation_share else TRAIN


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A usable row, and what its source says of all its rows."""

    sample: Sample
    source: str
    licence: str
    split: str
    prompt: PromptChoice

    @property
    def identity(self) -> tuple[str, str]:
        """Source and id."""
        return self.source, self.sample.id

    def load(self, loading: Loading) -> Ready | Fault:
        """Decode the row's picture and write the prompt. Raises RecordError for a picture of an evaluation
        set.
        """
        sample, config = self.sample, loading.config
        try:
            picture = read_picture(
                sample.image_bytes, max_pixels=config.max_picture_pixels, max_bytes=config.max_picture_bytes
            )
        except PictureFault as fault:
            return Fault(sample.row, sample.id, FaultKind(fault.kind), f"{sample.picture}: {fault}")
        leak = loading.held_out.find_leak(sample, [picture])
        if leak:
            raise leak_error([f"{self.source} row {sample.row} ({sample.id}): {leak}"])
        question = Question(
            id=sample.id,
            source=self.source,
            split=self.split,
            image_bytes=picture.data,
            image_sha256=sha256(picture.data),
            width=picture.image.width,
            height=picture.image.height,
            text=sample.text,
            answers=sample.answers,
            gold_boxes=sample.boxes,
            licence=self.licence,
            kind=sample.kind,
        )
        try:
            return make_ready(question, picture.image, loading, self.prompt, changes=picture.changes)
        except RegionError as error:
            return Fault(sample.row, sample.id, FaultKind.UNUSABLE_SIZE, f"{sample.picture}: {error}")


def entry_of(row: Row) -> Entry:
    """The row's place in a shard."""
    return Entry(row.key, row.source.label, row.size, row.material)


def make_ready(
    question: Question,
    image: Image.Image,
    loading: Loading,
    choice: PromptChoice,
    *,
    changes: tuple[str, ...] = (),
) -> Ready:
    """The question in the words of its teacher; ``image`` is its decoded picture.

    Raises RegionError for a picture that cannot be used.
    """
    teacher = loading.config.teacher
    if teacher.prompts == "look-again" or teacher.kind == "drawn-world":
        asked = Asked.about(question.id, question.text, [image], loading.look)
        return Ready(question, asked, BARE_QUESTION, changes=changes)
    given = ask(question, image, loading.look, choice)
    return Ready(question, given.asked, given.prompt_id, given.operations, changes)


def _row(source: Source, source_config: SourceConfig, found: Sample | Fault, config: VLIRConfig) -> Row:
    if isinstance(found, Fault):
        identity = [source.label, found.row, found.id, found.kind.value, found.detail]
        return Row(source, source_config, found, TRAIN, digest_of(identity))
    picture = sha256(found.image_bytes)
    split = found.split or split_of(picture, config)
    boxes = [box.corners() for box in found.boxes]
    licence = found.licence or source.licence
    identity = [source.label, licence, source_config.prompt, found.id, found.text, found.answers]
    return Row(
        source,
        source_config,
        replace(found, split=split),
        split,
        digest_of([*identity, boxes, split, found.kind, picture]),
        picture,
    )


def _offer(heap: list[tuple[int, str]] | None, num_wanted: int, key: str, seed: int) -> None:
    """Keep the ``num_wanted`` keys with the smallest digests under this seed."""
    if heap is None or not num_wanted:
        return
    rank = -int(digest_of([seed, key])[:16], 16)
    if len(heap) < num_wanted:
        heapq.heappush(heap, (rank, key))
    elif rank > heap[0][0]:
        heapq.heapreplace(heap, (rank, key))


def _check_splits(pictures: dict[str, set[bytes]]) -> None:
    for first, second in ((TRAIN, VALIDATION), (TRAIN, TEST), (VALIDATION, TEST)):
        shared = pictures[first] & pictures[second]
        if shared:
            raise RecordError(
                f"{len(shared)} pictures are both in {first!r} and in {second!r}. What is measured must not "
                "be trained on: give all rows of a picture the same split, or none."
            )
