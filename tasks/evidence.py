"""Gathers the evidence of a version from what its stages kept, and keeps it in the artifact store."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from models.check import Check, Preflight
from models.config import Preset, RGRPOConfig
from models.errors import ArtifactError
from models.evaluation.results import Results
from models.evidence import (
    DataEvidence,
    EarlierData,
    EvaluationEvidence,
    Evidence,
    Guards,
    Kept,
    Spread,
    ValidationEvidence,
)
from models.rgrpo.guards import CROP_GAIN, Limit, limits
from models.rundir import RunDir
from models.source_versions import versions_in
from models.vlir.checks import read_manifest
from models.vlir.layout import QUESTIONS, RECORDS
from tasks.artifacts import ArtifactRef, store_of
from tasks.caching import ROOT, code_version
from tasks.data import read_validated_data
from tasks.evaluation import CHAMPION, FINAL, UNTRAINED, baseline_row, read_results
from tasks.launch import source_revision
from tasks.settings import Settings
from tasks.stage import StageOutput, read_store
from tasks.verdicts import read_verdict
from tasks.versions import CHAMPION as PRESENT
from tasks.versions import Version, find_version, number_of_weights

_CODE = ("models.vlir.build", "models.sft.train", "models.rgrpo.train", "models.evaluation.run")
# What of R-GRPO's metrics says whether it went as it should (docs/metrics.md).
_GUARDED = (
    "rgrpo/mismatch_kl",
    "rgrpo/mismatch_max",
    "rgrpo/stale_kl",
    "rgrpo/unscored_share",
    "rgrpo/zero_variance_share",
    "rgrpo/truncated_share",
    "rgrpo/entropy",
    "rgrpo/gradient_norm",
    "rgrpo/crops_per_trajectory",
    "rgrpo/all_wrong_share",
    "rgrpo/all_wrong_moving_share",
    "rgrpo/box_share",
    "rgrpo/box_rounding",
    CROP_GAIN,
    "rgrpo/reward",
)


def evidence_of(
    preset: Preset,
    *,
    base: ArtifactRef,
    model: ArtifactRef,
    preflight: Preflight,
    outputs: Mapping[str, StageOutput],
    parent: str,
) -> Evidence:
    """The evidence of the model that the stages ``outputs`` made, in the tracked run ``parent``."""
    store = read_store()
    data = outputs["build_vlir"].artifacts["data"]
    verdict = outputs["validate"].artifacts["verdict"]
    folder = store.fetch(verdict)
    validation = read_verdict(folder)
    record = store.fetch(outputs["rgrpo"].artifacts["record"])
    champion = find_version(PRESENT)
    evaluation = evaluation_of(outputs["evaluate"].artifacts["evaluation"], champion)
    return Evidence(
        preset=preset.model_dump(mode="json"),
        git_commit=source_revision(ROOT),
        code_digest=code_version(*_CODE),
        base=_kept(base),
        base_licence=preset.model.licence,
        model=_kept(model),
        data=_data(data, num_records=validation.num_records, earlier=preset.vlir.earlier),
        validation=ValidationEvidence(
            artifact=_kept(verdict),
            data_sha256=read_validated_data(folder),
            passed=validation.passed,
            summary=validation.summary(),
        ),
        preflight=Preflight(checks=(*preflight.checks, *batch_checks(record))),
        guards=guards_of(record, preset.rgrpo),
        evaluation=evaluation,
        parent_version=_parent(evaluation, champion),
        tracking_run=parent,
    )


def publish_evidence(evidence: Evidence) -> ArtifactRef:
    """Keep evidence in the artifact store."""
    with tempfile.TemporaryDirectory() as folder:
        evidence.write(Path(folder))
        return read_store().publish(Path(folder), stage="register", kind="evidence")


def read_evidence(version: Version) -> Evidence:
    """What a version carries, checked against the digest that was registered.

    Raises ArtifactError when it carries none or what it carried changed, RecordError when it is no evidence
    that this program knows.
    """
    uri, digest = version.tags.get("evidence_uri", ""), version.tags.get("evidence_digest", "")
    if not uri or not digest:
        raise ArtifactError(
            f"Version {version.number} carries no evidence. Register the model by a run: vlm-r3 run"
        )
    ref = ArtifactRef(uri=uri, sha256=digest, kind="evidence")
    return Evidence.read(store_of(uri, Settings.read()).fetch(ref))


def batch_checks(record: Path) -> tuple[Check, ...]:
    """What R-GRPO looked at before it began; a check that fails where it did not look."""
    rule = "one real batch was looked at before R-GRPO began (rgrpo.preflight)"
    return Preflight.read(record).checks or (Check(name="batch", value="none", rule=rule, passed=False),)


def guards_of(record: Path, config: RGRPOConfig) -> Guards:
    """What the guards saw, from the ``metrics.jsonl`` of R-GRPO; of a step its last line, as when resumed."""
    lines = (line for line in RunDir(record).metrics() if any(name in line for name in _GUARDED))
    steps = {line["step"]: line for line in lines}
    values: dict[str, list[float]] = {}
    for step in sorted(steps):
        for name in _GUARDED:
            if name in steps[step]:
                values.setdefault(name, []).append(float(steps[step][name]))
    return Guards(
        num_steps=len(steps),
        metrics={name: _spread(found) for name, found in values.items()},
        limits=tuple(_limits(values, config)),
    )


def _limits(values: Mapping[str, list[float]], config: RGRPOConfig) -> Iterator[Check]:
    """The rules that the training itself obeys by stopping, looked at once more."""
    for name, limit, what in (
        (
            "rgrpo/mismatch_kl",
            config.max_mismatch_kl,
            "engine and trainer differ by at most {} nats per token",
        ),
        (
            "rgrpo/unscored_share",
            config.max_failed_share,
            "at most a share of {} of a step's rollouts failed",
        ),
    ):
        if name in values:
            worst = max(values[name])
            yield Check(name=name, value=f"{worst:.3g}", rule=what.format(limit), passed=worst <= limit)
    if not config.guards.enabled:
        rule = "the guards watched the training (rgrpo.guards)"
        yield Check(name="guards", value="off", rule=rule, passed=False)
    for guard in limits(config.guards):
        seen = values.get(guard.metric, [])
        found = guard.worst(seen)
        yield Check(
            name=guard.metric,
            value=_said_of(seen, found, guard),
            rule=str(guard),
            passed=found is None or guard.allows(found),
        )


def _said_of(seen: list[float], found: float | None, guard: Limit) -> str:
    if found is None:
        return "never bound the run" if seen else "nothing to judge"
    return f"{found:.3g}" + (f", over {len(seen)} only" if len(seen) < guard.window else "")


def _spread(values: list[float]) -> Spread:
    return Spread(
        first=values[0],
        last=values[-1],
        lowest=min(values),
        highest=max(values),
        mean=sum(values) / len(values),
    )


def _data(data: ArtifactRef, *, num_records: int, earlier: str) -> DataEvidence:
    """The data, what they were made from, and their licence notes: those of the rationales, and of the
    questions of R-GRPO. ``earlier`` is the name of the set that they go on from, empty for none.
    """
    folder = read_store().fetch(data)
    found: set[str] = set()
    for path in (folder / RECORDS, folder / QUESTIONS / "train.parquet"):
        column = ds.dataset(path, format="parquet").to_table(columns=["licence"])["licence"]
        found |= set(column.unique().to_pylist())
    manifest = read_manifest(folder)
    return DataEvidence(
        artifact=_kept(data),
        num_records=num_records,
        licences=tuple(sorted(found)),
        sources=versions_in(manifest),
        earlier=_earlier(manifest["earlier"], earlier) if earlier else None,
    )


def _earlier(described: Mapping[str, Any], name: str) -> EarlierData:
    num_kept = sum(split.get("records", 0) for split in described["kept"].values())
    return EarlierData(name=name, sha256=described["digest"], num_kept=num_kept)


def evaluation_of(kept: ArtifactRef, champion: Version | None) -> EvaluationEvidence:
    """The final model's accuracy and its gains, each with its 95 % interval, and what it was to beat.

    ``champion`` is the present one.
    """
    results, digests = read_results(read_store().fetch(kept))
    row = results.variant(FINAL)
    baseline = _baseline(kept, digests, champion)
    return EvaluationEvidence(
        artifact=_kept(kept),
        questions_digest=results.questions_digest,
        model_sha256=digests.get(FINAL, ""),
        baseline=baseline,
        baseline_sha256=_digest_of_row(results, digests, baseline),
        accuracy=row.overall.accuracy if row else None,
        gains=tuple(found for found in results.comparisons if found.new == FINAL),
    )


def _baseline(kept: ArtifactRef, digests: Mapping[str, str], champion: Version | None) -> str:
    """The row of the champion, or of the untrained model where there was none.

    A champion whose weights are those of another row has none of its own. One that was registered by this
    very evaluation did not exist when it was made: a run that is repeated must come to the same evidence.
    """
    if CHAMPION in digests:
        return CHAMPION
    if champion is None or champion.tags.get("evaluation_digest") == kept.sha256:
        return UNTRAINED
    return baseline_row(digests, champion.model) or UNTRAINED


def _digest_of_row(results: Results, digests: Mapping[str, str], row: str) -> str:
    """The digest of the weights of a row, which may share them with a row of another name."""
    found = results.variant(row)
    same = {variant.name for variant in results.variants if found and variant.model_path == found.model_path}
    return next((digest for name, digest in digests.items() if name in same), "")


def _parent(evaluation: EvaluationEvidence, champion: Version | None) -> str:
    """The number of the champion that was to be beaten, empty when it was the untrained model."""
    if evaluation.baseline == UNTRAINED:
        return ""
    if champion is not None and champion.model.sha256 == evaluation.baseline_sha256:
        return champion.number
    return number_of_weights(evaluation.baseline_sha256)


def _kept(ref: ArtifactRef) -> Kept:
    return Kept(uri=ref.uri, sha256=ref.sha256)
