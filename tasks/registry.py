"""MLflow's model registry: the only module that registers with it; :mod:`tasks.versions` reads from it.

The decision about promotion itself is :mod:`models.promotion`.
"""

import json
from collections.abc import Mapping

from mlflow import MlflowClient
from prefect import task
from pydantic import BaseModel, ConfigDict

from models.config import Preset, PromotionConfig
from models.errors import TrackingError
from models.promotion import REQUIRED_EVIDENCE, Decision, decide
from tasks.artifacts import ArtifactRef
from tasks.evaluation import FINAL, baseline_row, read_results
from tasks.model_flavor import log_flavor
from tasks.model_source import MODEL_NAME
from tasks.stage import read_store
from tasks.versions import CHALLENGER, CHAMPION, Version, find_version, registry_client, version_of


class Verdict(BaseModel):
    """What became of a challenger. ``is_champion`` also holds when it was champion before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    is_champion: bool
    baseline: str
    reasons: tuple[str, ...]


@task(name="register", persist_result=False)
async def register(
    model: ArtifactRef, evidence: dict[str, str], label: str = "register", parent: str = ""
) -> Version:
    """The version of this model with this evidence, made if there is none; it gets alias ``challenger``."""
    client = registry_client()
    if not client.search_registered_models(f"name = '{MODEL_NAME}'"):
        client.create_registered_model(MODEL_NAME, description="Models that look again, with their evidence.")
    found = _same(client, model, evidence)
    if found is None:
        preset = Preset.model_validate_json(evidence["preset"])
        logged = log_flavor(client, model, preset, run_id=parent)
        made = client.create_model_version(
            MODEL_NAME,
            source=f"models:/{logged}",
            run_id=parent or None,
            model_id=logged,
            tags=_tags(model, evidence),
        )
        found = version_of(made)
    client.set_registered_model_alias(MODEL_NAME, CHALLENGER, found.number)
    return found


@task(name="promote", persist_result=False)
async def promote_version(
    version: Version, config: PromotionConfig, label: str = "promote", parent: str = ""
) -> Verdict:
    """Judge a version against the present champion, and make it champion when the gate says yes."""
    champion = find_version(CHAMPION)
    if champion is not None and champion.model.sha256 == version.model.sha256:
        reason = f"Version {champion.number} with the same weights is champion already."
        return Verdict(version=version.number, is_champion=True, baseline=CHAMPION, reasons=(reason,))
    decision = judge(version, champion, config)
    client = registry_client()
    if decision.promoted:
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, version.number)
    for name, value in _audit(decision, champion).items():
        client.set_model_version_tag(MODEL_NAME, version.number, name, value)
    return Verdict(
        version=version.number,
        is_champion=decision.promoted,
        baseline=decision.baseline,
        reasons=decision.reasons,
    )


def judge(version: Version, champion: Version | None, config: PromotionConfig) -> Decision:
    """The decision on a version from the evaluation it carries.

    Raises TrackingError when that evaluation did not measure the present champion.
    """
    results, digests = read_results(read_store().fetch(evaluation_of(version)))
    baseline = baseline_row(digests, champion.model if champion else None)
    if baseline is None:
        number = champion.number if champion else ""
        raise TrackingError(
            f"Version {version.number} was not measured beside the present champion, version {number}. "
            "Run the pipeline again: its evaluation includes the champion."
        )
    return decide(results, challenger=FINAL, baseline=baseline, evidence=version.evidence, config=config)


def evaluation_of(version: Version) -> ArtifactRef:
    """The evaluation artifact that a version names. Raises TrackingError when it names none."""
    uri, digest = version.evidence.get("evaluation_uri"), version.evidence.get("evaluation_digest")
    if not uri or not digest:
        raise TrackingError(
            f"Version {version.number} carries no evaluation, so it cannot be judged. Register it by a run."
        )
    return ArtifactRef(uri=uri, sha256=digest, kind="evaluation")


def _audit(decision: Decision, champion: Version | None) -> dict[str, str]:
    """What a decision leaves on the version that it was about."""
    return {
        "promotion": "promoted" if decision.promoted else "refused",
        "promotion_checks": json.dumps([str(check) for check in decision.checks]),
        "parent_version": champion.number if champion else "none",
    }


def _same(client: MlflowClient, model: ArtifactRef, evidence: Mapping[str, str]) -> Version | None:
    """A version with the same weights and the same required evidence."""
    wanted = _tags(model, evidence)
    for found in client.search_model_versions(f"name = '{MODEL_NAME}'"):
        version = version_of(found)
        if all(version.evidence.get(name) == wanted.get(name) for name in REQUIRED_EVIDENCE):
            return version
    return None


def _tags(model: ArtifactRef, evidence: Mapping[str, str]) -> dict[str, str]:
    return {**evidence, "model_uri": model.uri, "model_digest": model.sha256}
