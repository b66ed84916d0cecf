"""Rollouts are scored again from what was kept, and whatever was changed since is pointed at."""

import copy
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from flows.cli import main
from models.config import ObjectiveConfig, resolve_model_path
from models.encoding import Encoder
from models.errors import RecordError, RunDirError
from models.records import read_rows, write_questions, write_rows
from models.rgrpo import train as rgrpo
from models.rgrpo.replay import replay
from models.rgrpo.rollouts import ROLLOUT_SCHEMA, rollouts_path
from models.run_config import RGRPORun
from models.rundir import RunDir
from models.transcripts import TRANSCRIPT_VERSION
from tests.tiny_models import save_random_model
from tests.training_data import questions, rgrpo_config, rgrpo_run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four steps of a random model, with checkpoints after the second and the fourth."""
    folder = tmp_path_factory.mktemp("run")
    write_questions(folder / "questions.parquet", questions(4))
    # A reference is read by the updates that are made again too.
    training = rgrpo_config(objective=ObjectiveConfig(aggregation="seq-mean-token-mean", beta=0.1))
    model_path = save_random_model(folder / "base", tied=False)
    config = rgrpo_run(model_path, folder / "questions.parquet", training)
    made = RunDir.create(folder / "rgrpo", config)
    rgrpo.train(made, config)
    return made


@pytest.mark.parametrize(
    ("step", "started_from", "updates_again"),
    [
        (0, "the model that the run began with", 0),
        (1, "the model that the run began with", 1),
        (2, "checkpoints/step-2", 0),
        (3, "checkpoints/step-2", 1),
    ],
)
def test_what_was_kept_comes_out_again(run, step, started_from, updates_again):
    found = replay(run, step)
    assert (found.started_from, found.updates_again) == (started_from, updates_again)
    assert len(found.rollouts) == 6
    assert found.num_tokens == sum(one.num_tokens for one in found.rollouts) > 0
    assert found.largest_difference < 1e-4
    assert found.mismatch_kl < 1e-8
    assert found.diverging == ()


def test_limits_of_the_run_pause_no_replay(run, tmp_path):
    """What one looks for is often why it paused; and another machine may be further apart."""
    shutil.copytree(run.path, tmp_path / "run")
    config = json.loads(run.config_text())
    config["rgrpo"]["max_mismatch_kl"] = 1e-30
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    found = replay(RunDir.open(tmp_path / "run"), 1)
    assert (found.updates_again, found.diverging) == (1, ())
    assert not found.agrees  # no token is far off, and yet all together are beyond the limit


def test_the_coarser_precision_says_how_far_log_probs_may_be_apart(tmp_path):
    """Here the engine's is float32, and samples from a policy in bfloat16."""
    write_questions(tmp_path / "questions.parquet", questions(2))
    training = rgrpo_config(num_steps=1, precision="bfloat16", max_mismatch_kl=1.0)
    model_path = save_random_model(tmp_path / "base", tied=False)
    config = rgrpo_run(model_path, tmp_path / "questions.parquet", training)
    made = RunDir.create(tmp_path / "rgrpo", config)
    rgrpo.train(made, config)
    found = replay(made, 0)
    assert (found.tolerance, found.diverging) == (0.5, ())
    assert found.agrees


def test_without_the_updates_the_step_diverges(run):
    """Rollouts of step 3 under the weights of step 2: stale weights in an engine look like this."""
    path = rollouts_path(run.path, 2)
    before = path.read_bytes()
    path.write_bytes(rollouts_path(run.path, 3).read_bytes())
    try:
        found = replay(run, 2, tolerance=1e-5)
    finally:
        path.write_bytes(before)
    assert len(found.diverging) == 6
    assert all("sampled by policy version [3] in step 2" in one.faults for one in found.diverging)
    assert any(one.divergence for one in found.diverging)


@pytest.fixture
def tampered(run):
    """Changes the rows of step 0 while a test lasts."""
    path = rollouts_path(run.path, 0)
    before = path.read_bytes()

    def change(how):
        rows = copy.deepcopy(list(read_rows(path, ROLLOUT_SCHEMA, version=TRANSCRIPT_VERSION)))
        how(rows)
        write_rows(path, ROLLOUT_SCHEMA, rows, version=TRANSCRIPT_VERSION)

    yield change
    path.write_bytes(before)


def test_the_first_token_that_diverges_is_named(run, tampered, capsys):
    def how(rows):
        for place in (5, 9):
            rows[2]["spans"][0]["logprobs"][place] -= 0.25

    tampered(how)
    (one,) = replay(run, 0).diverging
    row = pq.read_table(rollouts_path(run.path, 0)).to_pylist()[2]
    assert (one.question_id, one.sample_index) == (row["question_id"], row["sample_index"])
    assert (one.divergence.number, one.divergence.turn) == (5, 0)
    assert one.divergence.token_id == row["spans"][0]["token_ids"][5]
    assert one.divergence.reference - one.divergence.engine == pytest.approx(0.25, abs=1e-4)
    assert one.faults == ()
    assert main(["replay", str(run.path), "0", "--work-dir", str(run.path.parent / "work")]) == 3
    told = capsys.readouterr()
    assert f"{one.question_id} #{one.sample_index}" in told.out
    assert "diverges at sampled token 5 of" in told.out
    assert "1 of 6 rollouts of step 0 do not come out as they were kept" in told.err
    assert main(["replay", str(run.path), "0", "--tolerance", "0.3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tolerance"] == 0.3


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_an_id_that_is_no_token_is_a_fault_of_its_rollout(run, tampered, token_id):
    def how(rows):
        rows[2]["spans"][0]["token_ids"][0] = token_id

    tampered(how)
    (one,) = replay(run, 0).diverging
    assert f"Sampled ids [{token_id}] are none of the model's" in one.faults[0]


def test_a_rollout_that_is_missing_is_told(run, tampered):
    tampered(lambda rows: rows.pop(1))
    with pytest.raises(
        RecordError, match="The 5 rollouts that were kept are not 3 of each question in a row"
    ):
        replay(run, 0)


def test_a_rollout_that_is_kept_twice_is_a_fault(run, tampered):
    tampered(lambda rows: rows.__setitem__(1, rows[0]))
    # What it replaced is missing from its group, whose advantages may be others now.
    (one,) = [
        one for one in replay(run, 0).rollouts if any("kept a second time" in fault for fault in one.faults)
    ]
    assert one.sample_index == 0


def test_a_reason_to_stop_that_is_none_names_the_rollout(run, tampered):
    tampered(lambda rows: rows[2].update(stop="weird"))
    with pytest.raises(RecordError, match="#2 is damaged: 'weird' is not a valid StopReason"):
        replay(run, 0)


def test_other_rewards_and_pictures_are_named(run, tampered):
    def how(rows):
        rows[0]["reward"]["format"] += 1.0
        rows[1]["advantage"] += 0.5

    tampered(how)
    first, second = replay(run, 0).diverging
    assert first.faults[0].startswith("its format reward was ")
    assert second.faults[0].startswith("its advantage was ")

    def other_picture(rows):
        rows[3]["views"][0]["sha256"] = "0" * 64

    tampered(other_picture)
    faults = {one.sample_index: one.faults for one in replay(run, 0).diverging}
    assert any("is no longer what the model was asked" in fault for fault in sum(faults.values(), ()))


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        (lambda row: row["token_ids"].__setitem__(3, 7), "its ids (.*) are others now .*, from token 3 on"),
        (lambda row: row["token_ids"].pop(), "its ids .* are others now"),
        (lambda row: row.update(token_ids=None), "its ids \\(0\\) are others now"),
        (
            lambda row: row["sampled_mask"].__setitem__(0, True),
            "its mask of what was sampled .* others now .*, from token 0 on",
        ),
        (lambda row: row.update(kind="another"), "kept as a question of kind 'another', which is "),
        (lambda row: row.update(is_trained=not row["is_trained"]), "trained on, which is otherwise now"),
        (lambda row: row["spans"][0].update(text="a"), "the sampled text 'a' is not that of its ids"),
    ],
)
def test_whatever_else_was_changed_is_named(run, tampered, how, fault):
    tampered(lambda rows: how(rows[2]))
    found = {one.sample_index: one.faults for one in replay(run, 0).rollouts[:3]}
    assert any(re.search(fault, said) for said in found[2])


def test_the_whole_sequence_is_kept_with_its_mask(run):
    encoder = Encoder.load(resolve_model_path(RGRPORun.model_validate_json(run.config_text()).model_path))
    for row in pq.read_table(rollouts_path(run.path, 0)).to_pylist():
        ids, mask = row["token_ids"], row["sampled_mask"]
        sampled = [token for span in row["spans"] for token in span["token_ids"] or ()]
        assert [token for token, is_sampled in zip(ids, mask, strict=True) if is_sampled] == sampled
        assert row["question_text"] in encoder.tokenizer.decode(ids)
        (view,) = row["views"]
        assert ids.count(encoder.image_token_id) == view["width"] * view["height"] // 28**2
        assert not any(mask[: ids.index(sampled[0])])


def test_a_step_that_was_not_kept_is_refused(run):
    with pytest.raises(RunDirError, match="keeps no rollouts of step 4; it has 0 to 3"):
        replay(run, 4)


def test_a_gap_is_named_and_an_update_without_rollouts_is_refused(run):
    """A run that went on elsewhere from a copied checkpoint has no rollouts of the steps before it."""
    path = rollouts_path(run.path, 0)
    away = path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(RunDirError, match=r"keeps no rollouts of step 0; it has 1 to 3\."):
            replay(run, 0)
        with pytest.raises(RunDirError, match=r"policy of step 1 cannot be made again.*no rollouts of 0\."):
            replay(run, 1)
        assert replay(run, 2).diverging == ()
    finally:
        away.rename(path)
