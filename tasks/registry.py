"""MLflow's model registry: makes versions, and asks who becomes champion; :mod:`tasks.versions` reads it.

The decision itself is :mod:`models.promotion`; :mod:`tasks.promotions` records it.
"""

import datetime

from mlflow import MlflowClient
from prefect import task
from pydantic import BaseModel, ConfigDict

from models.config import Preset, PromotionConfig
from models.errors import ArtifactError, ConfigError, RecordError, ScoringError, TrackingError
from models.evidence import Evidence
from models.history import Action, Record, champions, next_record, withdrawn
from models.promotion import Candidate, Decision, decide, decide_return
from models.source_versions import all_digest
from tasks.artifacts import ArtifactRef, store_of
from tasks.benchmark_runs import differences
from tasks.evaluation import FINAL, baseline_row, read_results
from tasks.evidence import publish_evidence, read_evidence
from tasks.model_flavor import log_flavor
from tasks.model_source import MODEL_NAME
from tasks.promotions import append, author, ensure_registry, records, settle
from tasks.settings import Settings
from tasks.uris import S3_SCHEME
from tasks.versions import (
    CHALLENGER,
    CHAMPION,
    Registry,
    Version,
    explained,
    find_version,
    registry_client,
    version_of,
)


class Verdict(BaseModel):
    """What became of a challenger. ``is_champion`` also holds when it was champion before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    is_champion: bool
    baseline: str
    reasons: tuple[str, ...]


@task(name="register", persist_result=False)
async def register(
    model: ArtifactRef, evidence: Evidence, label: str = "register", parent: str = ""
) -> Version:
    """The version of this model with this evidence, made if there is none; it gets alias ``challenger``."""
    client = registry_client()
    ensure_registry(client)
    settle(client)
    found = _same(client, evidence)
    if found is None:
        kept = publish_evidence(evidence)
        preset = Preset.model_validate(evidence.preset)
        logged = log_flavor(client, model, preset, evidence, run_id=parent)
        with explained():
            made = client.create_model_version(
                MODEL_NAME,
                source=f"models:/{logged}",
                run_id=parent or None,
                model_id=logged,
                tags=_tags(model, evidence, kept),
            )
        found = version_of(made)
    with explained():
        client.set_registered_model_alias(MODEL_NAME, CHALLENGER, found.number)
    return found


@task(name="promote", persist_result=False)
async def promote_version(
    version: Version, config: PromotionConfig, label: str = "promote", parent: str = ""
) -> Verdict:
    """Judge a version against the present champion, and make it champion when the gate says yes.

    The decision is recorded either way, on the champion that it was made about or not at all.
    """
    client = registry_client()
    champion = _champion(settle(client))
    if champion is not None and champion.model.sha256 == version.model.sha256:
        reason = f"Version {champion.number} with the same weights is champion already."
        return Verdict(version=version.number, is_champion=True, baseline=CHAMPION, reasons=(reason,))
    judged: list[Decision] = []

    def judge(registry: Registry) -> Record:
        decision = decide(_candidate(version, registry), config)
        judged.append(decision)
        action: Action = "promoted" if decision.promoted else "refused"
        return _record(registry, action, version, decision, reason=_summary(decision))

    append(client, judge)
    return _verdict(version, judged[-1])


@task(name="roll_back", persist_result=False)
async def roll_back(version: Version, reason: str = "", label: str = "rollback", parent: str = "") -> Verdict:
    """Make a version champion again that was champion before; the gate's measurements are not asked again.

    A version that was never champion, or whose evidence or weights are not what was registered, is refused.
    """
    client = registry_client()
    last = settle(client).last
    if last is not None and last.champion == version.number:
        said = f"Version {version.number} is champion already."
        return Verdict(version=version.number, is_champion=True, baseline=version.number, reasons=(said,))
    judged: list[Decision] = []

    def judge(registry: Registry) -> Record:
        was_champion = version.number in champions(records(registry))
        decision = decide_return(_candidate(version, registry), was_champion=was_champion)
        judged.append(decision)
        action: Action = "rolled-back" if decision.promoted else "refused"
        return _record(registry, action, version, decision, reason=reason or "no reason given")

    append(client, judge)
    return _verdict(version, judged[-1])


def version_named(alias_or_number: str) -> Version:
    """A version by alias or number. Raises ConfigError when there is none."""
    found = find_version(alias_or_number)
    if found is None:
        raise ConfigError(
            f"There is no version {alias_or_number!r} of the registered model. `vlm-r3 run` registers "
            "versions, `vlm-r3 history` lists what became of them."
        )
    return found


def _champion(registry: Registry) -> Version | None:
    """The champion of the history. Raises TrackingError when somebody removed its version."""
    if registry.last is None or not registry.last.champion:
        return None
    found = find_version(registry.last.champion)
    if found is None:
        raise TrackingError(
            f"The history says that version {registry.last.champion} is champion, and the registry has no "
            "such version. Name one that was champion before: vlm-r3 rollback --to NUMBER"
        )
    return found


def _candidate(version: Version, registry: Registry) -> Candidate:
    """A version as registry and store show it now, beside the champion of now."""
    champion, evidence, results, problem = _champion(registry), None, None, ""
    rows, benchmarks = dict[str, str](), dict[str, float]()
    try:
        evidence = read_evidence(version)
        kept = evidence.evaluation.artifact
        ref = ArtifactRef(uri=kept.uri, sha256=kept.sha256, kind="evaluation")
        results, rows = read_results(store_of(ref.uri, Settings.read()).fetch(ref))
        beaten = champion.model.sha256 if champion else evidence.base.sha256
        benchmarks = differences(Settings.read(), version.model.sha256, beaten)
    except (ArtifactError, RecordError, ScoringError) as error:
        problem = str(error)
    gone = [find_version(number) for number in withdrawn(records(registry))]
    return Candidate(
        registered_sha256=version.model.sha256,
        stored_sha256=_stored_digest(version.model),
        evidence=evidence,
        results=results,
        rows=rows,
        row=FINAL,
        baseline=baseline_row(rows, champion.model if champion else None),
        champion=champion.number if champion else "",
        was_withdrawn=version.model.sha256 in {found.model.sha256 for found in gone if found},
        benchmarks=benchmarks,
        problem=problem,
    )


def _stored_digest(ref: ArtifactRef) -> str:
    """The digest of what the store holds; of this machine every file is read, in S3 the manifest."""
    store = store_of(ref.uri, Settings.read())
    try:
        if not ref.uri.startswith(S3_SCHEME):
            store.fetch(ref)
        return store.ref_of(ref.uri, kind=ref.kind).sha256
    except ArtifactError:
        return ""


def _record(
    registry: Registry, action: Action, version: Version, decision: Decision, *, reason: str
) -> Record:
    return next_record(
        registry.last,
        action,
        version.number,
        who=author(),
        when=datetime.datetime.now(datetime.UTC),
        reason=reason,
        checks=decision.checks,
    )


def _summary(decision: Decision) -> str:
    broken = [check.name for check in decision.checks if not check.passed]
    return f"the gate refused: {', '.join(broken)}" if broken else "the gate agreed"


def _verdict(version: Version, decision: Decision) -> Verdict:
    return Verdict(
        version=version.number,
        is_champion=decision.promoted,
        baseline=decision.baseline,
        reasons=decision.reasons,
    )


def _same(client: MlflowClient, evidence: Evidence) -> Version | None:
    """A version with the same weights and the same evidence, whichever run found it."""
    wanted = f"name = '{MODEL_NAME}' AND tags.evidence_identity = '{evidence.identity()}'"
    with explained():
        found = client.search_model_versions(wanted, max_results=1)
    return version_of(found[0]) if found else None


def _tags(model: ArtifactRef, evidence: Evidence, kept: ArtifactRef) -> dict[str, str]:
    """What is found by search in MLflow's pages, and the addresses that retention keeps."""
    found = evidence.evaluation.accuracy
    accuracy = {"accuracy": f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"} if found else {}
    return {
        "model_uri": model.uri,
        "model_digest": model.sha256,
        "evidence_uri": kept.uri,
        "evidence_digest": kept.sha256,
        "evidence_identity": evidence.identity(),
        "preset_name": str(evidence.preset.get("name", "")),
        "git_commit": evidence.git_commit,
        "code_digest": evidence.code_digest,
        "base_digest": evidence.base.sha256,
        "data_uri": evidence.data.artifact.uri,
        "data_digest": evidence.data.artifact.sha256,
        "sources_digest": all_digest(evidence.data.sources) or "none",
        "earlier_data": evidence.data.earlier.name if evidence.data.earlier else "none",
        "validation_uri": evidence.validation.artifact.uri,
        "validation_digest": evidence.validation.artifact.sha256,
        "evaluation_uri": evidence.evaluation.artifact.uri,
        "evaluation_digest": evidence.evaluation.artifact.sha256,
        "parent_version": evidence.parent_version or "none",
        "licence": "; ".join([evidence.base_licence, *evidence.data.licences]),
        "tracking_run": evidence.tracking_run,
        **accuracy,
    }
