"""Versions with evidence in a real registry, and who becomes champion."""

import asyncio
import base64
import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from models.config import EMBEDDED_MODEL, PromotionConfig
from models.errors import ArtifactError, ConfigError, RecordError, TrackingError
from models.evaluation.results import Comparison, Estimate, Results, Scores, VariantResult
from models.presets import load_preset
from models.promotion import REQUIRED_EVIDENCE
from tasks.artifacts import ArtifactRef
from tasks.model_source import champion_or, check_model, find_model
from tasks.registry import Verdict, promote_version, register
from tasks.settings import Settings, prepare
from tasks.stage import read_store
from tasks.versions import Version, find_version

pytestmark = pytest.mark.integration

POLICY = PromotionConfig(min_questions=500, min_gain=0.0, max_protocol_error_rate=0.2)


@pytest.fixture(autouse=True)
def settings(work_dir: Path) -> None:
    prepare(work_dir)


def model(tmp_path: Path, content: str) -> ArtifactRef:
    folder = tmp_path / f"model-{content}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"weights": content}))
    return read_store().publish(folder, stage="rgrpo", kind="model")


def row(name: str) -> VariantResult:
    scores = Scores(
        num_scored=600,
        num_unscored=0,
        num_correct=300,
        accuracy=Estimate(value=0.5, low=0.46, high=0.54),
        format_rate=1.0,
        protocol_error_rate=0.01,
        truncation_rate=0.0,
        crops_per_question=1.0,
        look_rate=None,
        first_box_on_object=None,
        first_box_iou=None,
        first_box_coverage=None,
        gold_recall=None,
        crops_with_answer=None,
        crop_width=None,
        crop_height=None,
        crop_tokens=None,
        tokens_per_question=30.0,
        seconds_per_question=0.5,
    )
    return VariantResult(
        name=name,
        label=name,
        style="look-again",
        crop_source="original",
        model_path=f"/models/{name}",
        model_digest="0",
        overall=scores,
        kinds={},
        seconds=1.0,
        tokens_per_second=1.0,
    )


def evaluation(tmp_path: Path, *, low: float, old: str, models: dict[str, ArtifactRef]) -> ArtifactRef:
    """An evaluation in which rgrpo gains ``low`` to ``low + 0.1`` over the row ``old``."""
    gain = Estimate(value=low + 0.05, low=low, high=low + 0.1)
    results = Results(
        seed=0,
        questions_digest="q",
        variants=(row("rgrpo"), row(old)),
        comparisons=(Comparison(new="rgrpo", old=old, difference=gain, num_questions=600, num_unscored=0),),
    )
    folder = tmp_path / f"evaluation-{old}-{low}"
    folder.mkdir()
    results.save(folder / "metrics.json")
    (folder / "models.json").write_text(json.dumps({name: ref.sha256 for name, ref in models.items()}))
    return read_store().publish(folder, stage="evaluate", kind="evaluation")


def evidence(kept: ArtifactRef, **changed: str) -> dict[str, str]:
    found = {**dict.fromkeys(REQUIRED_EVIDENCE, "known"), "evaluation_uri": kept.uri}
    known = {"evaluation_digest": kept.sha256, "preset": load_preset("tiny", []).model_dump_json()}
    return {**found, **known, **changed}


def registered(weights: ArtifactRef, found: dict[str, str]) -> Version:
    return asyncio.run(register.fn(weights, found))


def judged(version: Version) -> Verdict:
    return asyncio.run(promote_version.fn(version, POLICY))


def version_of(alias_or_number: str) -> Version:
    found = find_version(alias_or_number)
    assert found is not None
    return found


def test_the_first_champion_must_beat_the_untrained_model(tmp_path: Path) -> None:
    first = model(tmp_path, "a")
    measured = evaluation(tmp_path, low=0.02, old="base_direct", models={"rgrpo": first})
    version = registered(first, evidence(measured))
    assert version.number == "1"
    assert find_version("challenger") == version
    assert find_version("champion") is None
    verdict = judged(version)
    assert verdict.is_champion
    assert verdict.baseline == "base_direct"
    assert version_of("champion").evidence["promotion"] == "promoted"
    assert version_of("champion").model == first


def test_a_version_is_loaded_by_mlflow_and_answers(tmp_path: Path) -> None:
    """The weights stay where they are: MLflow keeps code, signature, example and an address."""
    weights = read_store().publish(EMBEDDED_MODEL, stage="rgrpo", kind="model")
    measured = evaluation(tmp_path, low=0.02, old="base_direct", models={"rgrpo": weights})
    version = registered(weights, evidence(measured))
    loaded = mlflow.pyfunc.load_model(f"models:/vlm-r3/{version.number}")
    kept = Path(mlflow.artifacts.download_artifacts(f"models:/vlm-r3/{version.number}"))
    assert sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) < 50_000

    image = Image.linear_gradient("L").resize((300, 200)).convert("RGB")
    image.save(tmp_path / "picture.png")
    data = (tmp_path / "picture.png").read_bytes()
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    asked = [
        {"image": image, "question": "what code?"} for image in (data, uri, str(tmp_path / "picture.png"))
    ]
    answers = loaded.predict(pd.DataFrame(asked))
    assert list(answers.columns) == loaded.metadata.get_output_schema().input_names()
    assert len(set(answers["rationale"])) == 1
    assert loaded.input_example["question"].tolist() == ["What colour is it?"]
    with pytest.raises(RecordError, match="cannot be read as a picture"):
        loaded.predict(pd.DataFrame([{"image": b"no picture", "question": "?"}]))
    with pytest.raises(MlflowException, match="missing inputs"):
        loaded.predict(pd.DataFrame([{"question": "what code?"}]))


def test_a_model_is_named_by_alias_or_number_and_checked(tmp_path: Path) -> None:
    settings, weights = Settings.read(), model(tmp_path, "a")
    with pytest.raises(ConfigError, match="no version of vlm-r3 has the alias or number 'champion'"):
        find_model("models:/vlm-r3@champion", settings)
    assert champion_or("embedded", settings) == "embedded"
    judged(
        registered(
            weights, evidence(evaluation(tmp_path, low=0.02, old="base_direct", models={"rgrpo": weights}))
        )
    )
    assert champion_or("embedded", settings) == "models:/vlm-r3@champion"
    for wanted in (
        "models:/vlm-r3@champion",
        "models:/vlm-r3/1",
        "models:/vlm-r3@challenger",
        "champion",
        "1",
    ):
        check_model(wanted, settings)
        found = find_model(wanted, settings)
        assert found.source == "models:/vlm-r3/1"
        assert json.loads((Path(found.path) / "config.json").read_text()) == {"weights": "a"}
    with pytest.raises(ConfigError, match="alias or number '2'"):
        check_model("models:/vlm-r3/2", settings)

    damaged = Path(found.path) / "config.json"
    damaged.chmod(0o644)
    damaged.write_text("{}")
    with pytest.raises(ArtifactError, match=r"config.json changed after it was stored"):
        find_model("models:/vlm-r3@champion", settings)


def test_a_better_challenger_replaces_the_champion_and_a_worse_one_does_not(tmp_path: Path) -> None:
    old, worse, better = (model(tmp_path, name) for name in ("old", "worse", "better"))
    first = evaluation(tmp_path, low=0.01, old="base_direct", models={"rgrpo": old})
    judged(registered(old, evidence(first)))

    beside = {"rgrpo": worse, "champion": old}
    refused = judged(
        registered(worse, evidence(evaluation(tmp_path, low=-0.03, old="champion", models=beside)))
    )
    assert not refused.is_champion
    assert any("gain over champion" in reason for reason in refused.reasons)
    assert version_of("champion").number == "1"
    assert version_of("2").evidence["promotion"] == "refused"

    beside = {"rgrpo": better, "champion": old}
    taken = judged(
        registered(better, evidence(evaluation(tmp_path, low=0.04, old="champion", models=beside)))
    )
    assert taken.is_champion
    champion = version_of("champion")
    assert champion.number == "3"
    assert champion.evidence["parent_version"] == "1"


def test_registering_the_same_model_and_evidence_again_makes_no_new_version(tmp_path: Path) -> None:
    weights = model(tmp_path, "a")
    found = evidence(evaluation(tmp_path, low=0.02, old="base_direct", models={"rgrpo": weights}))
    assert registered(weights, found).number == "1"
    assert registered(weights, found).number == "1"
    assert registered(weights, {**found, "data_digest": "other"}).number == "2"


def test_the_champion_itself_is_not_judged_again(tmp_path: Path) -> None:
    weights = model(tmp_path, "a")
    found = evidence(evaluation(tmp_path, low=0.02, old="base_direct", models={"rgrpo": weights}))
    version = registered(weights, found)
    judged(version)
    again = judged(version)
    assert again.is_champion
    assert "already" in again.reasons[0]


@pytest.mark.parametrize("missing", REQUIRED_EVIDENCE)
def test_no_version_without_evidence_is_promoted(tmp_path: Path, missing: str) -> None:
    weights = model(tmp_path, "a")
    kept = evaluation(tmp_path, low=0.02, old="base_direct", models={"rgrpo": weights})
    version = registered(weights, evidence(kept))
    bare = version.model_copy(update={"evidence": {**version.evidence, missing: ""}})
    if missing == "evaluation_digest":
        with pytest.raises(TrackingError, match="carries no evaluation"):
            judged(bare)
    else:
        verdict = judged(bare)
        assert not verdict.is_champion
        assert missing in verdict.reasons[0]
    assert find_version("champion") is None


def test_a_version_that_never_met_the_champion_cannot_replace_it(tmp_path: Path) -> None:
    old, other = model(tmp_path, "old"), model(tmp_path, "other")
    judged(
        registered(old, evidence(evaluation(tmp_path, low=0.01, old="base_direct", models={"rgrpo": old})))
    )
    apart = evaluation(tmp_path, low=0.3, old="base_direct", models={"rgrpo": other})
    with pytest.raises(TrackingError, match="not measured beside the present champion"):
        judged(registered(other, evidence(apart)))
