"""What names the directory of a run, and the copies of its checkpoints."""

import pytest

from models.config import EngineConfig, GuardsConfig, Look, RGRPOConfig, SFTConfig
from models.run_config import RGRPORun, SFTRun


def paths(kind: type[SFTRun] | type[RGRPORun], root: str) -> dict[str, str]:
    """Every path of a run, also one that is added to it later."""
    return {name: f"{root}/{name}" for name in kind.model_fields if name.endswith("_path")}


def sft_run(root: str, **changes: object) -> SFTRun:
    return SFTRun(
        **paths(SFTRun, root),
        look=Look(),
        sft=SFTConfig().model_copy(update=changes),
        freeze_vision=True,
        seed=0,
    )


def rgrpo_run(root: str, **changes: object) -> RGRPORun:
    return RGRPORun(
        **paths(RGRPORun, root),
        look=Look(),
        rgrpo=RGRPOConfig().model_copy(update=changes),
        engine=EngineConfig(),
        freeze_vision=True,
        seed=0,
    )


def test_another_machine_has_another_place_and_number_of_ranks_but_the_same_run() -> None:
    elsewhere = {"num_ranks": 2, "num_threads": 3, "zero_stage": 3, "keep_checkpoints": 9}
    elsewhere["gradient_checkpointing"] = True
    assert sft_run("/a").anywhere() == sft_run("/b", **elsewhere).anywhere()
    assert rgrpo_run("/a").anywhere() == rgrpo_run("/b", **elsewhere).anywhere()
    assert rgrpo_run("/a").anywhere() == rgrpo_run("/a", guards=GuardsConfig(window=3)).anywhere()


@pytest.mark.parametrize("limit", ["max_mismatch_kl", "max_failed_share"])
def test_a_run_that_a_limit_ended_goes_on_under_another(limit: str) -> None:
    assert rgrpo_run("/a").anywhere() == rgrpo_run("/a", **{limit: 0.5}).anywhere()


def test_what_changes_the_outcome_is_another_run() -> None:
    for changes in ({"learning_rate": 0.5}, {"batch_size": 32}, {"precision": "float32"}):
        assert sft_run("/a").anywhere() != sft_run("/a", **changes).anywhere()
    assert rgrpo_run("/a").anywhere() != rgrpo_run("/a", group_size=6).anywhere()
