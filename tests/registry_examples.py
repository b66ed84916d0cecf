"""Versions to judge: weights, evaluations and evidence that are small, real artifacts of a store."""

import json
from pathlib import Path
from typing import Any

from models.evidence import Evidence, Kept
from tasks.artifacts import ArtifactRef
from tasks.stage import read_store
from tests.evidence_examples import make_evidence, make_results


def stored_model(folder: Path, content: str) -> ArtifactRef:
    """Weights in the store; other content makes other weights."""
    made = folder / f"model-{content}"
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps({"weights": content}))
    return read_store().publish(made, stage="rgrpo", kind="model")


def stored_evaluation(folder: Path, *, low: float, old: str, models: dict[str, ArtifactRef]) -> ArtifactRef:
    """An evaluation in the store in which ``rgrpo`` gains ``low`` to ``low + 0.1`` over the row ``old``."""
    made = folder / f"evaluation-{old}-{low}-{models['rgrpo'].sha256[:8]}"
    made.mkdir(parents=True)
    make_results(low=low, old=old).save(made / "metrics.json")
    (made / "models.json").write_text(json.dumps({name: ref.sha256 for name, ref in models.items()}))
    return read_store().publish(made, stage="evaluate", kind="evaluation")


def stored_evidence(
    folder: Path,
    weights: ArtifactRef,
    *,
    low: float = 0.02,
    champion: ArtifactRef | None = None,
    **changes: Any,
) -> Evidence:
    """Evidence of weights that gain over the untrained base, or over a champion."""
    models = {"rgrpo": weights} if champion is None else {"rgrpo": weights, "champion": champion}
    old = "base_direct" if champion is None else "champion"
    measured = stored_evaluation(folder, low=low, old=old, models=models)
    return make_evidence(
        model=Kept(uri=weights.uri, sha256=weights.sha256),
        evaluation=Kept(uri=measured.uri, sha256=measured.sha256),
        **changes,
    )
