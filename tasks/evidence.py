"""What a version must carry so that anybody can judge it later: digests, verdicts, numbers, licences."""

from collections.abc import Mapping
from pathlib import Path

from models.config import Preset
from tasks.artifacts import ArtifactRef
from tasks.caching import ROOT, code_version
from tasks.evaluation import FINAL, read_results
from tasks.launch import source_revision
from tasks.stage import StageOutput, read_store
from tasks.verdicts import read_verdict

_CODE = ("models.vlir.build", "models.sft.train", "models.rgrpo.train", "models.evaluation.run")


def evidence_of(
    preset: Preset,
    *,
    base: ArtifactRef,
    model: ArtifactRef,
    outputs: Mapping[str, StageOutput],
    parent: str,
) -> dict[str, str]:
    """Evidence by name, as text; the promotion gate demands the required part of it."""
    store = read_store()
    data = outputs["build_vlir"].artifacts["data"]
    judged = outputs["validate"].artifacts["verdict"]
    validation = read_verdict(store.fetch(judged))
    kept = outputs["evaluate"].artifacts["evaluation"]
    return {
        "preset_name": preset.name,
        "preset": preset.model_dump_json(),
        "code_digest": code_version(*_CODE),
        "git_commit": source_revision(ROOT),
        "base_digest": base.sha256,
        "data_uri": data.uri,
        "data_digest": data.sha256,
        "validation_passed": "true" if validation.passed else "",
        "validation": validation.summary(),
        "validation_uri": judged.uri,
        "validation_digest": judged.sha256,
        "model_digest": model.sha256,
        "evaluation_uri": kept.uri,
        "evaluation_digest": kept.sha256,
        "licence": preset.model.licence,
        "tracking_run": parent,
        **_numbers(store.fetch(kept)),
    }


def _numbers(folder: Path) -> dict[str, str]:
    """The final model's accuracy and its gains, each with its 95 % interval."""
    results, _ = read_results(folder)
    row = results.variant(FINAL)
    accuracy = row.overall.accuracy if row else None
    gains = {
        f"gain_over_{found.old}": f"{found.difference.value:+.4f} "
        f"[{found.difference.low:+.4f}, {found.difference.high:+.4f}]"
        for found in results.comparisons
        if found.new == FINAL and not found.kind
    }
    if accuracy is None:
        return gains
    return {"accuracy": f"{accuracy.value:.4f} [{accuracy.low:.4f}, {accuracy.high:.4f}]", **gains}
