"""What advantages are made of, counted on hand-made rewards and read from a run directory."""

import pytest

from models.config import EngineConfig, Look, RewardConfig, RGRPOConfig
from models.records import write_rows
from models.rgrpo.rollouts import ROLLOUT_SCHEMA
from models.rgrpo.spread import groups_of, main, regraded, table
from models.run_config import RGRPORun
from models.rundir import RunDir
from models.trajectory import BoxEvent, Reward, SampledSpan, StopReason
from models.transcripts import TRANSCRIPT_VERSION, Transcript, transcript_row

RIGHT, LONGER = Reward(1, 1, 0.5, 0.02), Reward(1, 1, 0.5, 0.06)
WRONG, SHAPELESS = Reward(0, 1, 0.5, 0.02), Reward(0, 0, 0.5, 0.02)
# Two steps. Groups: right and wrong; lengths only | equal; all wrong, in form.
STEPS = [[RIGHT, WRONG, RIGHT, LONGER], [RIGHT, RIGHT, WRONG, SHAPELESS]]


def sizes(scale):
    return [group.sizes.tolist() for group in groups_of(STEPS, group_size=2, scale=scale, eps=1e-12)]


def test_kinds_of_groups():
    groups = groups_of(STEPS, group_size=2, scale="group", eps=1e-4)
    assert [group.kind for group in groups] == ["mixed", "all right", "equal", "all wrong"]
    assert [group.is_style and group.is_length_only for group in groups] == [False, True, False, False]


def test_the_groups_own_spread_makes_four_hundredths_as_large_as_a_whole_answer():
    # Half the difference over std (ddof 1) = difference / sqrt(2): 0.7071 whatever the difference is.
    assert [found[0] for found in sizes("group")] == pytest.approx([0.70711, 0.70711, 0, 0.70711], abs=1e-5)
    assert [found[0] for found in sizes("none")] == pytest.approx([0.5, 0.02, 0, 0.5])
    # Step 1 has rewards 2.52, 1.52, 2.52, 2.56: mean 2.28, std = sqrt((0.0576 x 2 + 0.5776 + 0.0784) / 3).
    std = ((2 * 0.0576 + 0.5776 + 0.0784) / 3) ** 0.5
    assert [found[0] for found in sizes("batch")[:2]] == pytest.approx([0.5 / std, 0.02 / std])


def test_what_we_broke_is_in_no_size():
    (group,) = groups_of([[RIGHT, None, WRONG]], group_size=3, scale="none", eps=1e-4)
    assert (group.kind, group.sizes.tolist()) == ("mixed", [0.5, 0.5])


def test_the_table_has_the_counts_and_the_shares():
    found = table(STEPS, group_size=2, eps=1e-12)
    assert "4 groups of 2: mixed 1, all right 1, all wrong 1, equal 1" in found
    assert "of the 2 all right or all wrong, 1 differ in length only" in found
    # Sums of sizes without a scale: mixed 2 x 0.5, style 2 x 0.02 + 2 x 0.5: 1.04 / 2.04.
    assert found.splitlines()[-1].split() == ["scale", "none", "0.500", "0.260", "0.020", "51.0%"]


def transcript(index, text, reward):
    spans = (SampledSpan(text, (1,), (-0.5,)),)
    return Transcript("q", index, "?", None, (), spans, (BoxEvent(None),), StopReason.ANSWERED, reward=reward)


def write_run(folder, **changes):
    config = RGRPORun(
        model_path="embedded",
        questions_path="",
        look=Look(),
        rgrpo=RGRPOConfig(group_size=2, **changes),
        engine=EngineConfig(),
        freeze_vision=True,
        seed=0,
    )
    run = RunDir.create(folder, config)
    texts = ("<think>abc</think><answer>7</answer>", "<think>abcde</think><answer>7</answer>")
    rows = [
        {**transcript_row(transcript(i, text, reward)), "step": 0}
        for i, (text, reward) in enumerate(zip(texts, (RIGHT, LONGER), strict=True))
    ]
    (run.path / "rollouts").mkdir()
    write_rows(run.path / "rollouts" / "step-0.parquet", ROLLOUT_SCHEMA, rows, version=TRANSCRIPT_VERSION)
    return run.path


def test_stored_rollouts_are_rewarded_again():
    # 3 characters at 0.01 each; format 0.5; no box was parsed.
    (found, none) = regraded(
        [transcript(0, "abc<answer>7</answer>", RIGHT), transcript(1, "", None)],
        RewardConfig(format=0.5, format_rule="ends-with-answer", length_per_character=0.01),
    )
    assert (found.accuracy, found.format, found.validity, found.length) == pytest.approx((1, 0.5, 0, 0.03))
    assert none is None


def test_the_command_reads_a_run(tmp_path, capsys):
    assert main([str(write_run(tmp_path / "run")), "--profile", "released"]) == 0
    run, released = capsys.readouterr().out.strip().split("\n\n")
    assert run.startswith("as rewarded in the run: 1 groups of 2: mixed 0, all right 1")
    # 0.03 and 0.05 for 3 and 5 characters: half the difference is 0.01.
    assert released.splitlines()[-1].split()[-2] == "0.010"


def test_what_cannot_be_measured_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err
    run = write_run(tmp_path / "run", reward=RewardConfig(accuracy=0))
    assert main([str(run)]) == 2
    assert "which are right" in capsys.readouterr().err
    (run / "rollouts" / "step-0.parquet").unlink()
    (run / "config.json").write_text(
        (run / "config.json").read_text().replace('"accuracy": 0.0', '"accuracy": 1.0')
    )
    assert main([str(run)]) == 2
    assert "no rollouts" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert main([str(tmp_path)]) == 2
    assert "stage rgrpo" in capsys.readouterr().err
