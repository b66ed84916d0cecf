"""No training question may come from an evaluation set: pictures and questions that are held out.

What counts as a leak is written in docs/sources.md, and at :meth:`HeldOut.find_leak`. A picture is compared
by its file, then by its pixels, then by a small copy; a question by its words and options. Only a training
picture of a size that is held out, or with a question that is, costs more than a digest.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.ahead import ahead
from models.answers import normalise
from models.benchmarks.published import (
    ANSWER_WITH_A_LETTER,
    ANSWER_WITH_A_WORD,
    PublishedSet,
    get_published,
)
from models.benchmarks.sets import BenchmarkQuestion, LocalFiles, find_set, read_questions, split_names
from models.errors import RecordError
from models.pictures import PictureFault, ReadPicture, read_picture
from models.vlir.sources.base import Sample

# A short question is asked of many pictures, and a yes, a no or a digit is answered by chance.
MIN_WORDS = 6
MIN_WORDS_WITH_COMMON_ANSWER = 12
_COMMON_ANSWERS = frozenset({"yes", "no", "true", "false", "none"})
# Side of the small copies, and how far their values (0 to 255) may differ. Compressing a picture again
# changes a value of its copy by a few; another digit on a page of 1700 x 2200 changes one by more than 20.
_SIDE = 48
_MOST_OF_SAME = 10
# Of a resized picture with the same question; of two pages with other writing the mean is over 15.
_MOST_OF_LIKE, _MEAN_OF_LIKE, _SHAPE_OF_LIKE = 60, 8.0, 0.02
# Evaluation pictures are known to be sound; the bound is against a file that is no such set.
_MAX_PIXELS, _MAX_BYTES = 150_000_000, 1 << 28
_INSTRUCTIONS = re.compile(
    "|".join(
        re.escape(text)
        for text in (
            *(ANSWER_WITH_A_LETTER, ANSWER_WITH_A_WORD, "Please answer yes or no.", "Answer yes or no."),
        )
    ),
    re.IGNORECASE,
)
_OPTION = re.compile(r"\(?([A-Z])[.):]\s+(.+)")


@dataclass(frozen=True, slots=True)
class _Words:
    """A question without its form: words, options in any order, gold answers."""

    key: str
    num_words: int
    golds: frozenset[str]

    def is_distinctive(self, golds: frozenset[str]) -> bool:
        """Whether the same words with one of these answers are no coincidence."""
        common = any(gold in _COMMON_ANSWERS or len(gold) <= 2 for gold in self.golds & golds)
        least = MIN_WORDS_WITH_COMMON_ANSWER if common else MIN_WORDS
        return bool(self.golds & golds) and self.num_words >= least


@dataclass(frozen=True, slots=True)
class _Shown:
    """A held-out picture: digest of its pixels, a small copy, and where it is from."""

    pixels: bytes
    copy: NDArray[np.uint8]
    ratio: float
    where: str


@dataclass(slots=True)
class _Asked:
    """A held-out question; ``pictures`` are the digests of those it is asked of, each time in a benchmark."""

    words: _Words
    where: str
    pictures: set[tuple[bytes, ...]] = field(default_factory=set)


class HeldOut:
    """Everything of some evaluation sets that training must not see."""

    def __init__(self) -> None:
        self._files: dict[bytes, str] = {}
        self._shown: dict[bytes, _Shown] = {}
        self._by_size: dict[tuple[int, int], list[_Shown]] = {}
        self._asked: dict[tuple[str, str], _Asked] = {}
        self._benchmarks: list[str] = []

    @classmethod
    def read(cls, folders: Mapping[str, str | Path]) -> "HeldOut":
        """From the folders of benchmarks, by name: every split that is there, each picture decoded once.

        A part of a set is taken, too. Raises RecordError when a folder holds no split of its benchmark or
        other columns, ConfigError for a name that is no benchmark's.
        """
        held_out = cls()
        for name, folder in folders.items():
            published = get_published(name)
            held_out._benchmarks.append(name)
            questions = _questions(published, Path(folder).expanduser())
            made = ahead(
                held_out._picture_of,
                held_out._noted(questions),
                num_ahead=2 * _num_threads(),
                num_threads=_num_threads(),
            )
            for (digest, _, _), shown in made:
                if shown is not None:
                    held_out._shown[digest] = shown[1]
                    held_out._by_size.setdefault(shown[0], []).append(shown[1])
        return held_out

    @property
    def num_pictures(self) -> int:
        """How many pictures are held out."""
        return len(self._files)

    def pictures(self) -> Iterator[tuple[str, str]]:
        """sha256 of the file of every picture, and where it is from."""
        return ((digest.hex(), where) for digest, where in self._files.items())

    def find_leak(self, sample: Sample, pictures: Sequence[ReadPicture] = ()) -> str | None:
        """What an evaluation set shares with a sample, in words; None when it shares nothing.

        A leak is the same file of a picture, and the same pixels, also when they were compressed again,
        whatever is asked. The same question with the same options is a leak about a picture that looks alike
        at any size; and about any picture when the answer is the same, the benchmark asks it of one picture
        only, and it has at least ``MIN_WORDS`` words with its options (``MIN_WORDS_WITH_COMMON_ANSWER`` where
        the answer is yes, no or up to two letters).

        ``pictures`` are the sample's, decoded; without them only files and words are compared.
        """
        if not self._benchmarks:
            return None
        for data in dict.fromkeys((sample.image_bytes, *(picture.original for picture in pictures))):
            where = self._files.get(_digest(data))
            if where:
                return f"{where}: the same picture (file)"
        words = _words(sample.question or sample.text, sample.text, sample.answers)
        keys = ((benchmark, words.key) for benchmark in self._benchmarks)
        asked_so = [self._asked[key] for key in keys if key in self._asked]
        for picture in pictures:
            found = self._shared_picture(picture.image, asked_so)
            if found:
                return found
        for asked in asked_so:
            if len(asked.pictures) <= 1 and words.is_distinctive(asked.words.golds):
                return f"{asked.where}: the same question and answer"
        return None

    def _shared_picture(self, image: Image.Image, asked_so: Sequence[_Asked]) -> str | None:
        candidates = self._by_size.get(image.size, ())
        if not candidates and not asked_so:
            return None
        copy = _small_copy(image)
        pixels = _digest(image.tobytes()) if candidates else b""
        for shown in candidates:
            if shown.pixels == pixels:
                return f"{shown.where}: the same picture (pixels)"
            if _difference(shown.copy, copy).max() <= _MOST_OF_SAME:
                return f"{shown.where}: the same picture (compressed again)"
        for asked in asked_so:
            if self._is_like(copy, image.width / image.height, asked.pictures):
                return f"{asked.where}: the same question about a picture that looks alike"
        return None

    def _is_like(self, copy: NDArray[np.uint8], ratio: float, asked_of: Iterable[tuple[bytes, ...]]) -> bool:
        digests = {digest for each in asked_of for digest in each} & self._shown.keys()
        for shown in (self._shown[digest] for digest in digests):
            difference = _difference(shown.copy, copy)
            if (
                abs(np.log(ratio / shown.ratio)) <= _SHAPE_OF_LIKE
                and difference.max() <= _MOST_OF_LIKE
                and difference.mean() <= _MEAN_OF_LIKE
            ):
                return True
        return False

    def _noted(
        self, questions: Iterable[tuple[str, BenchmarkQuestion]]
    ) -> Iterator[tuple[bytes, bytes, str]]:
        """Notes questions and files; gives each new picture as digest, file and where it is from."""
        for where, question in questions:
            name = question.published.name
            text = str(question.row["question"])
            words = _words(
                text, question.published.look_again(question.row), question.published.answers(question.row)
            )
            asked = self._asked.setdefault((name, words.key), _Asked(words, where))
            if asked.words.golds != words.golds:
                asked.words = _Words(words.key, words.num_words, asked.words.golds | words.golds)
            digests = tuple(_digest(data) for data in question.pictures.values())
            asked.pictures.add(digests)
            for digest, data in zip(digests, question.pictures.values(), strict=True):
                if digest not in self._files:
                    self._files[digest] = where
                    yield digest, data, where

    @staticmethod
    def _picture_of(item: tuple[bytes, bytes, str]) -> tuple[tuple[int, int], _Shown] | None:
        """A picture's size and what is kept of it; None when it does not decode: its file is known."""
        _, data, where = item
        try:
            image = read_picture(data, max_pixels=_MAX_PIXELS, max_bytes=_MAX_BYTES).image
        except PictureFault:
            return None
        ratio = image.width / image.height
        return image.size, _Shown(_digest(image.tobytes()), _small_copy(image), ratio, where)


def _questions(published: PublishedSet, folder: Path) -> Iterator[tuple[str, BenchmarkQuestion]]:
    """Every question of every split in a folder, and where it is from."""
    missing: list[RecordError] = []
    for split in published.splits:
        try:
            split_names(LocalFiles(folder), split)
        except RecordError as error:
            missing.append(error)
            continue
        names, _ = find_set(published, LocalFiles(folder), split, allow_partial=True)
        for question in read_questions(published, split, [folder / name for name in names]):
            yield f"{published.name} {split} {question.id!r}", question
    if len(missing) == len(published.splits):
        raise missing[0]


def _words(question: str, text: str, answers: Sequence[str]) -> _Words:
    """What of a question is compared; its options stand in ``text``, each on a line as "A. brass"."""
    options: list[str] = []
    rest: list[str] = []
    for line in text.splitlines():
        option = _OPTION.fullmatch(line.strip())
        if option and ord(option[1]) - ord("A") == len(options):
            options.append(option[2])
        else:
            rest.append(line)
    if question == text:
        question = "\n".join(rest)
    asked = _plain(_INSTRUCTIONS.sub(" ", question))
    key = "\n".join((asked, *sorted(_plain(option) for option in options)))
    golds = (_option_of(answer, options) for answer in answers)
    return _Words(key, len(key.split()), frozenset(gold for gold in map(normalise, golds) if gold))


def _option_of(answer: str, options: Sequence[str]) -> str:
    """A letter stands for its option: options may come in another order."""
    place = ord(answer) - ord("A") if len(answer) == 1 else -1
    return options[place] if 0 <= place < len(options) else answer


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", normalise(text)))


def _small_copy(image: Image.Image) -> NDArray[np.uint8]:
    """Shape (_SIDE, _SIDE, 3)."""
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))


def _difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.int16]:
    return np.abs(first.astype(np.int16) - second.astype(np.int16))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _num_threads() -> int:
    return os.cpu_count() or 1
