"""The verdicts of judges on disk: one small JSON file each, readable by a person.

A file is named by a digest of benchmark, question, gold answer, answer and judge version. The version covers
the judge's model, so a verdict is never used for another judge. Files are written beside and renamed: any
number of processes may share the folder, and a reader sees a whole verdict or none.
"""

import hashlib
import json
import logging
from pathlib import Path

from pydantic import ValidationError

from models.evaluation.results import Frozen
from models.rundir import write_atomically

log = logging.getLogger(__name__)


class Case(Frozen):
    """What a verdict is about: ``question`` is all that the judge is told of the row."""

    benchmark: str
    question: str
    gold: str
    answer: str
    judge_version: str

    @property
    def key(self) -> str:
        """What the verdict is kept under."""
        parts = [self.benchmark, self.question, self.gold, self.answer, self.judge_version]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Verdict(Frozen):
    """A judge's verdict, and its words."""

    case: Case
    judge_model: str
    verdict: str
    reply: str


class VerdictStore:
    """A folder of verdicts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, case: Case) -> Verdict | None:
        """The verdict on a case, None when there is none or its file cannot be read."""
        path = self._path(case)
        try:
            found = Verdict.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            log.warning("%s holds no verdict; the judge is asked again.", path)
            return None
        return found

    def write(self, verdict: Verdict) -> None:
        """Keep a verdict; one that is there is replaced."""
        write_atomically(self._path(verdict.case), verdict.model_dump_json(indent=2))

    def _path(self, case: Case) -> Path:
        # Sub-folders keep a listing short after many thousand verdicts.
        return self._folder / case.key[:2] / f"{case.key}.json"
