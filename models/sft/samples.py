"""Rationale records ready for training, in one order for all ranks; over-long ones dropped and counted.

The order is of all samples, and a rank takes its share of each batch: so a run goes on with another number of
ranks where it stopped. An epoch sees every sample once, and no batch reaches into the next one.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from models import distributed
from models.config import Look, SFTConfig
from models.distributed import World
from models.encoding import Encoded, Encoder
from models.errors import EncodingError, RegionError, TrainingError
from models.protocol import SPECIAL_TOKEN
from models.records import VLIRRecord, read_records
from models.shuffling import endless_shuffle

log = logging.getLogger(__name__)

# Encoded samples hold their pictures; what does not fit here is encoded again shortly before it is needed.
_KEPT_BYTES = 4 << 30


class Samples:
    """The samples of all ranks, of which this one encodes what it needs.

    ``num_dropped`` counts the over-long ones, which are not among them.
    """

    def __init__(self, records: Sequence[VLIRRecord], *, encoder: Encoder, look: Look, world: World) -> None:
        self._records, self._encoder, self._look, self._world = records, encoder, look, world
        self._kept: dict[int, Encoded] = {}
        self._kept_bytes = 0
        self._wanted: frozenset[int] = frozenset()
        self._ready: dict[int, Encoded] = {}  # of the wanted ones those that are not kept for good
        self._usable: list[int] = []

    @property
    def num_total(self) -> int:
        """Samples of all ranks."""
        return len(self._usable)

    @property
    def num_dropped(self) -> int:
        """Records that are too long."""
        return len(self._records) - len(self._usable)

    def drop_long(self, max_tokens: int, *, setting: str) -> None:
        """Leave out what has more tokens than the setting; all ranks call it, and each looks at its share of
        the records."""
        mine = range(self._world.rank, len(self._records), self._world.size)
        usable = [index for index in mine if len(self.encoded(index)) <= max_tokens]
        for index in sorted(set(mine) - set(usable)):
            log.warning(
                "%s is left out: %d tokens, %s is %d",
                self.id(index),
                len(self.encoded(index)),
                setting,
                max_tokens,
            )
        self._usable = sorted(index for share in distributed.from_all_ranks(usable) for index in share)

    def num_in_batch(self, start: int, *, size: int) -> int:
        """Samples of all ranks in the batch that starts at a position of the order: ``size``, or what is left
        of the epoch."""
        return min(size, len(self._usable) - start % len(self._usable))

    def batch(self, start: int, *, size: int, seed: int) -> list[int]:
        """This rank's share of that batch, which may be none of it. Every epoch has an order of its own."""
        count = self.num_in_batch(start, size=size)
        chosen = endless_shuffle(len(self._usable), start=start, count=count, seed=seed)
        return [self._usable[place] for place in chosen[self._world.rank :: self._world.size]]

    def share(self) -> list[int]:
        """This rank's share of all samples."""
        return self._usable[self._world.rank :: self._world.size]

    def id(self, index: int) -> str:
        """The name of a sample."""
        return self._records[index].question.id

    def encoded(self, index: int) -> Encoded:
        """A sample as the trainer takes it. Raises TrainingError that names the record when it cannot be."""
        found = self._kept.get(index, self._ready.get(index))
        if found is None:
            found = self._encode(index)
            num_bytes = 3 * sum(picture.size.area for picture in found.pictures)
            if self._kept_bytes + num_bytes <= _KEPT_BYTES:
                self._kept[index] = found
                self._kept_bytes += num_bytes
            elif index in self._wanted:
                self._ready[index] = found
        return found

    def want(self, indices: Collection[int]) -> None:
        """Keep these once they are encoded, until others are wanted."""
        self._wanted = frozenset(indices)
        self._ready = {index: one for index, one in self._ready.items() if index in self._wanted}

    @contextmanager
    def getting_ready(self) -> Iterator[None]:
        """Encode what is wanted in another thread while the body runs, which must not use the tokenizer.

        Decoding a page and cutting a crop of it takes 0.1 s, for which an accelerator would stand still.
        """
        missing = [i for i in self._wanted if i not in self._kept and i not in self._ready]
        if not missing:
            yield
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="samples") as pool:
            encoding = pool.submit(lambda: [self.encoded(index) for index in missing])
            yield
        encoding.result()

    def _encode(self, index: int) -> Encoded:
        try:
            _require_plain_text(self._records[index])
            return self._encoder.encode_record(self._records[index], self._look)
        except (EncodingError, RegionError) as error:
            raise TrainingError(
                f"Record {self.id(index)!r} cannot be trained on: {error} Take it out, or build the set "
                "again."
            ) from error


def _require_plain_text(record: VLIRRecord) -> None:
    """Raise EncodingError where a record says what only we and the tokenizer may: a mark of the chat or of a
    picture."""
    for text in (record.question.text, *(step.text for step in record.steps)):
        if found := SPECIAL_TOKEN.search(text):
            raise EncodingError(
                f"It holds the special token {found[0]!r}, which is read as a mark of the chat."
            )


def load_samples(path: Path, *, encoder: Encoder, look: Look, config: SFTConfig, world: World) -> Samples:
    """The records of a file or folder; all ranks call it.

    Raises TrainingError when more than ``config.max_dropped`` of them are too long, by ``max_tokens`` or for
    a micro-batch, or there are fewer than ranks.
    """
    records = read_records(path)
    samples = Samples(records, encoder=encoder, look=look, world=world)
    limit, setting = min(
        (config.max_tokens, "sft.max_tokens"), (config.tokens_per_micro_batch, "sft.tokens_per_micro_batch")
    )
    samples.drop_long(limit, setting=setting)
    if samples.num_dropped > config.max_dropped * len(records):
        raise TrainingError(
            f"{samples.num_dropped} of {len(records)} records in {path} are longer than {setting} {limit}; "
            f"at most a share of {config.max_dropped} may be dropped. Raise {setting}, or sft.max_dropped if "
            "the loss is meant."
        )
    if samples.num_total < world.size:
        raise TrainingError(
            f"{path} holds {len(records)} records, of which {samples.num_dropped} are longer than "
            f"{setting} {limit}: too few for {world.size} ranks, of which each needs one. Raise {setting}, "
            "give it more records, or lower sft.num_ranks."
        )
    return samples
