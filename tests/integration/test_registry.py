"""Versions with evidence in a real registry, who becomes champion, and how somebody goes back."""

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from flows.cli import main
from models.config import EMBEDDED_MODEL
from models.errors import ArtifactError, ConfigError, RecordError
from models.evaluation.results import Estimate
from models.history import Record
from tasks.artifacts import ArtifactRef, local_path
from tasks.doctor import examine
from tasks.evidence import evaluation_of, read_evidence
from tasks.model_source import champion_or, check_model, find_model
from tasks.promotions import records
from tasks.registry import Verdict, promote_version, register, roll_back, version_named
from tasks.settings import Settings
from tasks.stage import read_store
from tasks.tracking import tracked_run
from tasks.versions import Version, find_version, read_registry, registry_client
from tests.benchmark_results_examples import some_results
from tests.evidence_examples import POLICY
from tests.registry_examples import stored_evaluation, stored_evidence, stored_model

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("settings")]


def registered(folder: Path, weights: ArtifactRef, **evidence: Any) -> Version:
    return asyncio.run(register.fn(weights, stored_evidence(folder, weights, **evidence)))


def judged(version: Version) -> Verdict:
    return asyncio.run(promote_version.fn(version, POLICY))


def rolled_back(version: str = "previous", reason: str = "") -> Verdict:
    return asyncio.run(roll_back.fn(version_named(version), reason))


def version_of(alias_or_number: str) -> Version:
    found = find_version(alias_or_number)
    assert found is not None
    return found


def history() -> list[Record]:
    return records(read_registry(registry_client()))


def aliases() -> dict[str, str]:
    """What MLflow shows to others."""
    found = registry_client().get_registered_model("vlm-r3").aliases
    return {alias: str(number) for alias, number in found.items()}


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and messages of the command line, in a process of its own: Prefect reads settings once."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


def two_champions(folder: Path) -> tuple[ArtifactRef, ArtifactRef]:
    """Version 1, and version 2 that replaced it."""
    first, second = stored_model(folder, "first"), stored_model(folder, "second")
    assert judged(registered(folder, first)).is_champion
    assert judged(registered(folder, second, champion=first, parent_version="1")).is_champion
    return first, second


def made_by_hand() -> Version:
    """A version that somebody registered in MLflow, without evidence."""
    weights = read_store().publish(EMBEDDED_MODEL, stage="rgrpo", kind="model")
    tags = {"model_uri": weights.uri, "model_digest": weights.sha256}
    made = registry_client().create_model_version("vlm-r3", source=weights.uri, tags=tags)
    return version_of(str(made.version))


def test_the_first_champion_must_beat_the_untrained_model(tmp_path: Path) -> None:
    first = stored_model(tmp_path, "a")
    version = registered(tmp_path, first)
    assert version.number == "1"
    assert find_version("challenger") == version
    assert find_version("champion") is None
    verdict = judged(version)
    assert verdict.is_champion
    assert verdict.baseline == "base_direct"
    assert version_of("champion").model == first
    assert aliases() == {"challenger": "1", "champion": "1"}
    assert version_of("1").tags["promotion"] == "promoted"


def test_a_version_carries_its_evidence_and_gives_it_back_unchanged(tmp_path: Path) -> None:
    weights = stored_model(tmp_path, "a")
    evidence = stored_evidence(tmp_path, weights)
    version = asyncio.run(register.fn(weights, evidence))
    assert read_evidence(version) == evidence
    assert version.tags["accuracy"] == "0.7420 [0.7020, 0.7820]"
    shown = mlflow.artifacts.download_artifacts(f"models:/vlm-r3/{version.number}")
    (beside,) = Path(shown, "evidence").glob("*/evidence.json")
    assert beside.read_text() == evidence.model_dump_json(indent=1)

    kept = local_path(version.tags["evidence_uri"]) / "evidence.json"
    kept.chmod(0o644)
    kept.write_text(kept.read_text().replace("drawn here", "mine"))
    with pytest.raises(ArtifactError, match=r"evidence.json changed after it was stored"):
        read_evidence(version)
    refused = judged(version)
    assert not refused.is_champion
    assert "evidence.json changed" in refused.reasons[0]


def test_a_version_is_loaded_by_mlflow_and_answers(tmp_path: Path) -> None:
    """The weights stay where they are: MLflow keeps code, signature, example and an address."""
    weights = read_store().publish(EMBEDDED_MODEL, stage="rgrpo", kind="model")
    version = registered(tmp_path, weights)
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


def test_a_model_is_named_by_alias_or_number_and_checked(tmp_path: Path, settings: Settings) -> None:
    (settings.work_dir / "mlflow.db").unlink()  # nothing was ever tracked here
    weights = stored_model(tmp_path, "a")
    with pytest.raises(ConfigError, match="no version of vlm-r3 has the alias or number 'champion'"):
        find_model("models:/vlm-r3@champion", settings)
    assert champion_or("embedded", settings) == "embedded"
    judged(registered(tmp_path, weights))
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
    old, worse, better = (stored_model(tmp_path, name) for name in ("old", "worse", "better"))
    judged(registered(tmp_path, old))

    refused = judged(registered(tmp_path, worse, low=-0.03, champion=old, parent_version="1"))
    assert not refused.is_champion
    assert any("gain over champion" in reason for reason in refused.reasons)
    assert version_of("champion").number == "1"
    assert version_of("2").tags["promotion"] == "refused"

    taken = judged(registered(tmp_path, better, low=0.04, champion=old, parent_version="1"))
    assert taken.is_champion
    assert version_of("champion").number == "3"
    assert version_of("champion").tags["parent_version"] == "1"
    assert aliases() == {"challenger": "3", "champion": "3", "previous": "1"}


def test_registering_the_same_model_and_evidence_again_makes_no_new_version(tmp_path: Path) -> None:
    weights = stored_model(tmp_path, "a")
    evidence = stored_evidence(tmp_path, weights)
    again = evidence.model_copy(update={"tracking_run": "another", "git_commit": "another"})
    other = evidence.model_copy(update={"code_digest": "other"})
    numbers = [asyncio.run(register.fn(weights, found)).number for found in (evidence, again, other)]
    assert numbers == ["1", "1", "2"]


def test_the_champion_itself_is_not_judged_again(tmp_path: Path) -> None:
    version = registered(tmp_path, stored_model(tmp_path, "a"))
    judged(version)
    again = judged(version)
    assert again.is_champion
    assert "already" in again.reasons[0]
    assert len(history()) == 1


def test_weights_that_were_trained_again_have_the_champion_as_their_baseline(tmp_path: Path) -> None:
    """The untrained model was it, and the refusal said that there had been no champion."""
    weights = stored_model(tmp_path, "a")
    first = registered(tmp_path, weights)
    judged(first)
    champion = version_of("champion")
    # It is measured on other questions, once: as the final model.
    measured = stored_evaluation(tmp_path, low=0.3, old="base_direct", models={"rgrpo": weights})
    again = evaluation_of(measured, champion)
    assert (again.baseline, again.baseline_sha256) == ("rgrpo", weights.sha256)
    # The run that made it, repeated: there was no champion.
    kept = read_evidence(first).evaluation.artifact
    own = evaluation_of(ArtifactRef(uri=kept.uri, sha256=kept.sha256, kind="evaluation"), champion)
    assert own.baseline == "base_direct"
    version = registered(tmp_path, weights, low=0.2, parent_version="1")
    assert version.number == "2"
    assert "Version 1 with the same weights is champion already" in judged(version).reasons[0]
    assert (version_of("champion").number, len(history())) == ("1", 1)


def test_a_comparison_with_another_champion_is_refused(tmp_path: Path) -> None:
    """What was measured beside version 1, or beside no champion at all, says nothing about version 2."""
    first, _ = two_champions(tmp_path)
    for name, changes in (("apart", {}), ("late", {"champion": first, "parent_version": "1"})):
        refused = judged(registered(tmp_path, stored_model(tmp_path, name), low=0.3, **changes))
        assert not refused.is_champion
        assert "champion is version 2, it was" in refused.reasons[0]
    assert aliases()["champion"] == "2"


def test_weights_that_changed_in_the_store_are_refused(tmp_path: Path) -> None:
    weights = stored_model(tmp_path, "a")
    version = registered(tmp_path, weights)
    damaged = local_path(weights.uri) / "config.json"
    damaged.chmod(0o644)
    damaged.write_text("{}")
    refused = judged(version)
    assert [reason for reason in refused.reasons if "stored weights" in reason]
    assert find_version("champion") is None


def test_a_version_without_evidence_gets_nowhere(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """By the gate, by rollback, by the command line with every limit open, or by an alias set by hand."""
    judged(registered(tmp_path, stored_model(tmp_path, "a")))
    bare = made_by_hand()
    refused = judged(bare)
    assert not refused.is_champion
    assert "carries no evidence" in refused.reasons[0]
    back = rolled_back(bare.number)
    assert not back.is_champion
    assert any("it never was" in reason for reason in back.reasons)

    limits = ("min_gain=-1", "max_kind_loss=1", "max_protocol_error_rate=1", "min_questions=1")
    opened = [word for limit in limits for word in ("--set", f"promotion.{limit}")]
    code, said = command("promote", "--version", bare.number, *opened)
    assert (code, "carries no evidence" in said) == (3, True), said

    registry_client().set_registered_model_alias("vlm-r3", "champion", bare.number)
    assert version_of("champion").number == "1"
    assert "Alias 'champion' stands at version 2, the history says version 1" in caplog.text
    assert find_model("models:/vlm-r3@champion", settings).source == "models:/vlm-r3/1"
    (found,) = [finding for finding in examine(settings) if finding.name == "champion"]
    assert not found.is_well
    assert main(["history"]) == 0
    assert "stands at version 2" in capsys.readouterr().err
    judged(bare)  # whatever acts on the registry next puts it back
    assert aliases()["champion"] == "1"


def test_an_alias_set_by_hand_where_nobody_was_ever_promoted_makes_no_champion(tmp_path: Path) -> None:
    version = registered(tmp_path, stored_model(tmp_path, "a"))
    registry_client().set_registered_model_alias("vlm-r3", "champion", version.number)
    assert find_version("champion") is None
    verdict = judged(version)
    assert verdict.baseline == "base_direct"
    assert aliases()["champion"] == version.number


def test_rollback_brings_the_previous_champion_back_and_can_be_undone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_champions(tmp_path)
    assert rolled_back(reason="it reads cards as signs").is_champion
    assert aliases() == {"challenger": "2", "champion": "1", "previous": "2"}
    again = judged(version_of("2"))
    assert not again.is_champion
    assert "rolled back" in again.reasons[0]
    assert "already" in rolled_back("1").reasons[0]
    assert rolled_back("2").is_champion
    assert aliases()["champion"] == "2"

    assert [found.action for found in history()] == [
        *("promoted", "promoted", "rolled-back", "refused", "rolled-back")
    ]
    assert history()[2].reason == "it reads cards as signs"
    assert history()[2].who.user
    tags = registry_client().get_registered_model("vlm-r3").tags
    assert [Record.model_validate_json(tags[f"history.00000{n}"]).number for n in (1, 2, 3, 4, 5)] == [
        *(1, 2, 3, 4, 5)
    ]
    assert main(["history", "--checks"]) == 0
    printed = capsys.readouterr().out
    assert "rolled-back  version 1     champion 2 -> 1  by " in printed
    assert "it reads cards as signs" in printed
    assert "yes: the verdict is about the data that were trained on" in printed


def test_rollback_by_the_command_line_has_its_exit_codes(tmp_path: Path) -> None:
    judged(registered(tmp_path, stored_model(tmp_path, "a")))
    with pytest.raises(ConfigError, match="no version 'previous'") as nothing:
        rolled_back()
    assert nothing.value.exit_code == 2
    other = registered(tmp_path, stored_model(tmp_path, "b"), parent_version="1")
    code, said = command("rollback", "--to", other.number, "--reason", "to see")
    assert (code, "only what was champion before" in said) == (3, True), said
    assert (history()[-1].reason, bool(history()[-1].who.flow_run)) == ("to see", True)


def measured_benchmark(folder: Path, weights: ArtifactRef, value: float, **changes: Any) -> None:
    """A tracked run of a published benchmark, as `vlm-r3 evaluate --benchmark` leaves it."""
    made = folder / f"benchmark-{weights.sha256[:8]}-{value}-{len(changes)}"
    made.mkdir()
    headline = Estimate(value=value, low=value - 0.01, high=value + 0.01)
    some_results("mmmu", headline=headline, **changes).save(made / "metrics.json")
    kept = read_store().publish(made, stage="benchmark", kind="benchmark")
    with tracked_run(Settings.read(), "mmmu", tags={"stage": "benchmark"}) as run:
        run.log_params({"weights_digest": weights.sha256})
        run.tag({"artifact.benchmark": f"{kept.uri}#{kept.sha256}"})


def test_a_benchmark_that_got_worse_stops_a_promotion(tmp_path: Path) -> None:
    first, second = stored_model(tmp_path, "first"), stored_model(tmp_path, "second")
    assert judged(registered(tmp_path, first)).is_champion
    measured_benchmark(tmp_path, first, 0.6)
    measured_benchmark(tmp_path, second, 0.1, variant="no_crop")  # not the question
    measured_benchmark(tmp_path, second, 0.2, data={"digest": "other"})  # other rows
    measured_benchmark(tmp_path, second, 0.5)
    version = registered(tmp_path, second, champion=first, parent_version="1")
    refused = judged(version)
    assert not refused.is_champion
    (reason,) = refused.reasons
    assert "worst of 1: mmmu direct -0.100" in reason
    measured_benchmark(tmp_path, second, 0.59)  # measured again: the newest counts
    assert judged(version).is_champion
