"""What a registered version carries, so that anybody can judge it later: one record, with a version.

It names everything by digest and holds the numbers that decided. It is written once, when the version is
registered, and kept as ``evidence.json`` in an artifact of its own; a reader checks its digest.
"""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from models.check import Check, Part, Preflight
from models.errors import RecordError
from models.evaluation.results import Comparison, Estimate
from models.source_versions import SourceVersion

EVIDENCE_VERSION = "evidence/1"
EVIDENCE = "evidence.json"


class Kept(Part):
    """An artifact: where it is, and the digest of its manifest."""

    uri: str
    sha256: str


class EarlierData(Part):
    """A set whose records were kept: ``name`` says where it is, ``sha256`` is the digest of its manifest."""

    name: str
    sha256: str
    num_kept: int


class DataEvidence(Part):
    """The data that were trained on; ``licences`` are the notes of their records, each once.

    ``sources`` are the versions of what they were made from, none for a version from before they were noted;
    ``earlier`` is the set that they go on from.
    """

    artifact: Kept
    num_records: int
    licences: tuple[str, ...]
    sources: dict[str, SourceVersion] = Field(default_factory=dict)
    earlier: EarlierData | None = None


class ValidationEvidence(Part):
    """The gate's verdict on data; ``data_sha256`` says on which."""

    artifact: Kept
    data_sha256: str
    passed: bool
    summary: str


class Spread(Part):
    """The values of one metric over the steps of a run."""

    first: float
    last: float
    lowest: float
    highest: float
    mean: float


class Guards(Part):
    """What the guards of R-GRPO saw: their metrics over ``num_steps`` steps, and the limits of the run."""

    num_steps: int
    metrics: dict[str, Spread]
    limits: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether there are steps and limits, and all limits are kept."""
        return self.num_steps > 0 and bool(self.limits) and all(check.passed for check in self.limits)


class EvaluationEvidence(Part):
    """How the version answered held-out questions: accuracy and gains with their 95 % intervals.

    ``model_sha256`` is the digest of the weights that answered, ``baseline`` the row that they were to beat,
    ``baseline_sha256`` the digest of that row's weights.
    """

    artifact: Kept
    questions_digest: str
    model_sha256: str
    baseline: str
    baseline_sha256: str
    accuracy: Estimate | None
    gains: tuple[Comparison, ...]


class Evidence(Part):
    """Everything that is known about a version. ``parent_version`` is the champion that it was compared with,
    empty when there was none: the untrained base was the baseline then. ``git_commit`` is empty outside of a
    checkout, where ``code_digest`` alone names the sources.
    """

    version: str = EVIDENCE_VERSION
    preset: dict[str, Any]
    git_commit: str
    code_digest: str
    base: Kept
    base_licence: str
    model: Kept
    data: DataEvidence
    validation: ValidationEvidence
    preflight: Preflight
    guards: Guards
    evaluation: EvaluationEvidence
    parent_version: str
    tracking_run: str

    @classmethod
    def read(cls, folder: Path) -> "Evidence":
        """What :meth:`write` wrote. Raises RecordError for anything else, and for an unknown version."""
        path = folder / EVIDENCE
        try:
            found = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise RecordError(f"{path} holds no evidence: {error}. Register the model by a run.") from error
        if found.version != EVIDENCE_VERSION:
            raise RecordError(
                f"{path} is {found.version!r}; this program knows {EVIDENCE_VERSION!r}. Register the model "
                "again by a run."
            )
        return found

    def write(self, folder: Path) -> None:
        """Keep it as ``evidence.json`` in a folder."""
        (folder / EVIDENCE).write_text(self.model_dump_json(indent=1), encoding="utf-8")

    def missing(self) -> tuple[str, ...]:
        """Names of the parts that say nothing."""
        artifacts = {
            "base": self.base,
            "model": self.model,
            "data": self.data.artifact,
            "validation": self.validation.artifact,
            "evaluation": self.evaluation.artifact,
        }
        said = {
            **{name: bool(kept.uri and kept.sha256) for name, kept in artifacts.items()},
            "preset": bool(self.preset),
            "code_digest": bool(self.code_digest),
            "base_licence": bool(self.base_licence),
            "data_licences": bool(self.data.licences) and all(self.data.licences),
            "preflight": bool(self.preflight.checks),
            "guards": bool(self.guards.num_steps and self.guards.limits),
            "accuracy": self.evaluation.accuracy is not None,
        }
        return tuple(name for name, is_said in said.items() if not is_said)

    def identity(self) -> str:
        """Digest of what makes it another version: not the run that found it, which may be a repetition."""
        same = self.model_dump_json(exclude={"git_commit", "tracking_run", "preflight"})
        return hashlib.sha256(same.encode()).hexdigest()
