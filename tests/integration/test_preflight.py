"""Every fault that the preflight looks for is made, one after the other, and must be named."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import rollout as loop
from models import vllm_engine
from models.check import PREFLIGHT, Preflight
from models.config import PreflightConfig, RewardConfig, RGRPOConfig
from models.crops import CROP_SOURCES
from models.engine import ScriptedEngine
from models.errors import GateError
from models.presets import load_preset
from models.records import write_questions
from models.region import Box, Size, View, look
from models.rgrpo import preflight
from models.rgrpo import train as rgrpo
from models.rgrpo.actors import opened
from models.rgrpo.box_check import boxes_are_right
from models.rgrpo.preflight import PREFLIGHT_ROLLOUTS, check_before
from models.rgrpo.rollouts import read_rollouts
from models.rgrpo.samplers import Colocated
from models.run_config import RGRPORun
from models.rundir import RunDir
from models.trajectory import StopReason
from tests.tiny_models import save_random_model
from tests.training_data import LOOK, VLLM, questions, rgrpo_run

pytestmark = pytest.mark.integration

# A random model's rewards may all be equal, and it is right about nothing.
LENIENT = PreflightConfig(num_questions=2, max_zero_variance_share=1.0)
TRAINING = RGRPOConfig(
    num_steps=1,
    questions_per_step=2,
    group_size=2,
    tokens_per_micro_batch=1024,
    precision="float32",
    preflight=LENIENT,
)
NAMES = ["engine", "encoding", "image pads", "sampled mask", "boxes", "rotary positions"]
NAMES += ["engine and trainer", "caches", "spread of rewards", "reward floor"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "questions.parquet"
    write_questions(path, questions(4))
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("model"), tied=False)


def make_run(tmp_path, model_path, data, **changes):
    config = rgrpo_run(model_path, data, TRAINING.model_copy(update=changes))
    return RunDir.create(tmp_path / "run", config), config


def found_broken(run, config, spoil):
    """The names of the checks that fail when ``spoil`` has had the actors."""
    with opened(config) as actors:
        spoil(actors)
        with pytest.raises(GateError, match="R-GRPO is not begun"):
            check_before(run, config, actors)
    checks = json.loads((run.path / PREFLIGHT).read_text())["checks"]
    return [check["name"] for check in checks if not check["passed"]]


def test_a_sound_run_passes_and_says_what_was_looked_at(tmp_path, model_path, data):
    run, config = make_run(tmp_path, model_path, data)
    with opened(config) as actors:
        check_before(run, config, actors)
    checks = json.loads((run.path / PREFLIGHT).read_text())["checks"]
    assert [check["name"] for check in checks] == NAMES
    assert all(check["passed"] for check in checks)
    values = {check["name"]: check["value"] for check in checks[:6]}
    assert values.pop("engine") == "0 of 4 trajectories failed"
    assert values.pop("encoding") == "0 of 4 trajectories cannot be"
    assert len(read_rollouts(run.path / PREFLIGHT_ROLLOUTS)) == 4
    assert values.pop("boxes") == "4 of 4 trajectories, 0 crops"  # a random model asks for none
    assert set(values.values()) == {"4 of 4 trajectories"}


def test_the_engine_rests_while_the_policy_scores(tmp_path, model_path, data, monkeypatch):
    """On one GPU there may be no room for both, in the preflight as in a step."""
    done = []
    measure = preflight.measure_mismatch
    monkeypatch.setattr(Colocated, "rest", lambda self: done.append("rest"))
    monkeypatch.setattr(Colocated, "update_weights", lambda *_, **__: done.append("weights"))
    monkeypatch.setattr(
        preflight, "measure_mismatch", lambda *told, **more: (done.append("score"), measure(*told, **more))[1]
    )
    run, config = make_run(tmp_path, model_path, data)
    with opened(config) as actors:
        check_before(run, config, actors)
    assert done == ["rest", "score", "weights"]


def fail_every_second(actors):
    roll_out = actors.sampler.roll_out

    def fails(*asked, **settings):
        broken = {"stop": StopReason.ENGINE_ERROR, "detail": "the test says so"}
        made = roll_out(*asked, **settings)
        return [one if number % 2 else replace(one, **broken) for number, one in enumerate(made)]

    actors.sampler.roll_out = fails


def test_an_engine_that_fails(tmp_path, model_path, data):
    """The batch is kept, and nothing is made of it."""
    run, config = make_run(tmp_path, model_path, data)
    assert found_broken(run, config, fail_every_second) == ["engine"]
    (check,) = json.loads((run.path / PREFLIGHT).read_text())["checks"]
    assert check["value"] == "2 of 4 trajectories failed: engine_error, the test says so"
    kept = read_rollouts(run.path / PREFLIGHT_ROLLOUTS)
    assert [one.transcript.reward is None for one in kept] == [True, False, True, False]


def test_an_engine_that_samples_what_is_banned(tmp_path, model_path, data):
    """It is a check that fails, not the preflight; and the batch is there to be looked at."""

    def sample_banned(actors):
        roll_out = actors.sampler.roll_out
        banned = actors.engine.module.encoder.image_token_id

        def spoilt(*asked, **settings):
            first, *others = roll_out(*asked, **settings)
            span = first.spans[0]
            span = replace(span, token_ids=(banned, *span.token_ids[1:]))
            return [replace(first, spans=(span, *first.spans[1:])), *others]

        actors.sampler.roll_out = spoilt

    run, config = make_run(tmp_path, model_path, data)
    assert found_broken(run, config, sample_banned) == ["encoding"]
    *_, check = json.loads((run.path / PREFLIGHT).read_text())["checks"]
    assert check["value"].startswith("1 of 4 trajectories cannot be: The engine sampled the banned tokens")
    first, *others = read_rollouts(run.path / PREFLIGHT_ROLLOUTS)
    assert (first.token_ids, first.is_trained) == (None, False)
    assert all(one.token_ids for one in others)


def spoil_encoder(change):
    def spoil(actors):
        encoder = actors.engine.module.encoder
        encode = encoder.encode
        encoder.encode = lambda trajectory: change(encode(trajectory))

    return spoil


def test_a_picture_that_is_lost(tmp_path, model_path, data):
    spoil = spoil_encoder(lambda encoded: replace(encoded, pictures=encoded.pictures[1:]))
    broken = found_broken(*make_run(tmp_path, model_path, data), spoil)
    assert broken[0] == "image pads"


def test_rotary_positions_that_fall_back_to_one_dimension(tmp_path, model_path, data):
    def flat(encoded):
        return replace(encoded, positions=np.tile(np.arange(len(encoded)), (3, 1)))

    broken = found_broken(*make_run(tmp_path, model_path, data), spoil_encoder(flat))
    assert broken[0] == "rotary positions"


def test_a_token_of_ours_that_is_trained(tmp_path, model_path, data):
    def greedy(encoded):
        sampled = encoded.sampled.copy()
        sampled[int(sampled.argmax()) - 1] = True
        return replace(encoded, sampled=sampled)

    broken = found_broken(*make_run(tmp_path, model_path, data), spoil_encoder(greedy))
    assert broken[0] == "sampled mask"


def test_an_engine_with_other_weights(tmp_path, model_path, data):
    def spoil(actors):
        weight = actors.engine.module.model.model.language_model.norm.weight
        sampler_step = actors.sampler.engine.step

        def step_with_other_weights():
            with torch.no_grad():
                weight.mul_(1.5)
                pieces = sampler_step()
                weight.div_(1.5)
            return pieces

        actors.sampler.engine.step = step_with_other_weights

    assert found_broken(*make_run(tmp_path, model_path, data), spoil) == ["engine and trainer"]


def test_an_engine_that_samples_at_another_temperature(tmp_path, model_path, data):
    def spoil(actors):
        submit = actors.sampler.engine.submit
        actors.sampler.engine.submit = lambda request: submit(replace(request, temperature=0.5))

    assert found_broken(*make_run(tmp_path, model_path, data), spoil) == ["engine and trainer"]


def test_rewards_without_spread_and_a_high_floor(tmp_path, model_path, data):
    run, config = make_run(
        tmp_path,
        model_path,
        data,
        preflight=LENIENT.model_copy(update={"max_zero_variance_share": 0.5}),
        reward=RewardConfig(accuracy=0.1, length_cap=0.0),
    )
    assert found_broken(run, config, lambda actors: None) == ["spread of rewards", "reward floor"]


def test_the_training_itself_refuses_to_begin(tmp_path, model_path, data):
    run, config = make_run(tmp_path, model_path, data, reward=RewardConfig(accuracy=0.1))
    with pytest.raises(
        GateError, match=r"reward floor: at most a share of 0.7 \(found: a wrong answer in full"
    ):
        rgrpo.train(run, config)
    assert not (run.path / "rollouts").exists()
    off = config.model_copy(update={"rgrpo": config.rgrpo.without_trust()})
    rgrpo.train(RunDir.create(run.path, off, may_change=True), off)
    assert (run.path / "rollouts" / "step-0.parquet").exists()


def test_a_run_that_goes_on_in_another_way_is_looked_at_again(tmp_path, model_path, data, monkeypatch):
    run, config = make_run(tmp_path, model_path, data, num_steps=2, checkpoint_every=1, keep_checkpoints=2)
    rgrpo.train(run, config)
    first = Preflight.read(run.path)
    (run.path / PREFLIGHT_ROLLOUTS).unlink()

    def go_on():
        shutil.rmtree(run.path / "checkpoints" / "step-2")
        rgrpo.train(run, config)
        return Preflight.read(run.path)

    assert go_on() == first
    assert not (run.path / PREFLIGHT_ROLLOUTS).exists()  # nothing was looked at
    monkeypatch.setattr(preflight, "version", lambda library: "another")
    again = go_on()
    assert "torch another" in again.under
    assert again.passed
    assert [check.name for check in again.checks] == NAMES  # the last two are those of the beginning
    assert again.checks[-2:] == first.checks[-2:]
    kept = read_rollouts(run.path / PREFLIGHT_ROLLOUTS)
    assert {one.transcript.spans[0].policy_version for one in kept} == {1}


def test_a_run_that_does_not_go_on_is_looked_at_again_until_it_does(tmp_path, model_path, data, monkeypatch):
    run, config = make_run(tmp_path, model_path, data, num_steps=2, checkpoint_every=1, keep_checkpoints=2)
    rgrpo.train(run, config)
    shutil.rmtree(run.path / "checkpoints" / "step-2")
    monkeypatch.setattr(preflight, "version", lambda library: "another")
    with monkeypatch.context() as broken:
        broken.setattr(preflight, "_pads_are_features", lambda policy, encoded: False)
        for _ in range(2):
            with pytest.raises(GateError, match="R-GRPO does not go on, for on one real batch 1 of 10 "):
                rgrpo.train(run, config)
    assert rgrpo.train(run, config).status == "done"
    assert Preflight.read(run.path).passed


def test_with_vllm_stale_caches_and_wrong_crops_are_seen(tmp_path, data, monkeypatch):
    preset = load_preset("tiny")
    training = preset.rgrpo.model_copy(update={"preflight": LENIENT, "questions_per_step": 2})
    config = RGRPORun(
        model_path="embedded",
        questions_path=str(data),
        look=preset.look,
        rgrpo=training,
        engine=preset.engine,
        freeze_vision=True,
        seed=0,
    )
    run = RunDir.create(tmp_path / "run", config)
    with opened(config) as actors:
        before = {name: tensor.clone() for name, tensor in actors.engine.module.weights()}
        check_before(run, config, actors)
        checks = {check["name"]: check for check in json.loads((run.path / PREFLIGHT).read_text())["checks"]}
        assert "put back: 0 nats" in checks["caches"]["value"]
        assert "vision tower: moved by" in checks["caches"]["value"]
        assert checks["vision towers"]["passed"]
        assert all(torch.equal(tensor, before[name]) for name, tensor in actors.engine.module.weights())
        # The prefixes of old weights stay: the canary's language model sees the old ones.
        monkeypatch.setattr(actors.sampler.engine._engine, "reset_prefix_cache", lambda: True)
        with pytest.raises(GateError, match="wrong: language model"):
            check_before(run, config, actors)
        monkeypatch.undo()
        # Features that are wrong for engine and trainer alike: the two agree, on what is not there.
        policy = actors.engine.module
        look_at = policy._look_at
        policy.look_afresh()
        monkeypatch.setattr(policy, "_look_at", lambda shown: [-one for one in look_at(shown)])
        with pytest.raises(GateError, match=r"1 of 11 checks fail\. vision towers"):
            check_before(run, config, actors)


def test_with_vllm_an_output_head_of_old_weights_is_seen(tmp_path, data, monkeypatch):
    """It is tied to the embeddings, and vLLM computes with a packed copy: known and new are both stale."""
    tied = save_random_model(tmp_path / "model", tied=True)
    config = rgrpo_run(tied, data, TRAINING, engine=VLLM)
    run = RunDir.create(tmp_path / "run", config)
    with opened(config) as actors:
        check_before(run, config, actors)
        monkeypatch.setattr(vllm_engine, "_renew_tied_head", lambda model: None)
        with pytest.raises(GateError, match=r"1 of 11 checks fail\. caches.*wrong: trainer"):
            check_before(run, config, actors)


def play(*script):
    """The trajectory of a script, and whether its boxes are right."""
    (question,) = questions(1)
    assert View.of(Size(question.width, question.height), LOOK.budget).seen.width < question.width
    pieces = iter(script)
    rules = LOOK.model_copy(update={"max_sampled_tokens": 500})
    (trajectory,) = loop.rollout(ScriptedEngine(lambda request: next(pieces)), [question], look=rules)
    return trajectory, boxes_are_right(trajectory, question, rules)


def cut_in_wrong_pixels(image, box, budget, rng):
    """Boxes in the pixels of the seen picture, cut from the original: the usual mistake."""
    return look(image, Box(*box.corners(), space="original"), budget), box


def swapped(box):
    return replace(box, x1=box.y1, y1=box.x1, x2=box.y2, y2=box.x2)


CONVERT, REQUEST = View.convert, loop.box_request
FAULTS = {
    "cut in other pixels": (loop, "CROP_SOURCES", {**CROP_SOURCES, "original": cut_in_wrong_pixels}),
    "not scaled": (View, "convert", lambda view, box, space: replace(box, space=space)),
    "x is y": (View, "convert", lambda view, box, space: swapped(CONVERT(view, box, space))),
    "read as y, x": (
        loop,
        "box_request",
        lambda text, seen=0: (found := REQUEST(text, seen=seen)) and replace(found, box=swapped(found.box)),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_crops_that_are_not_what_the_numbers_enclose(monkeypatch, fault):
    script = ['<think>{"bbox_2d": [10, 20, 60, 50]}', "</think><answer>x</answer>"]
    trajectory, is_right = play(*script)
    assert is_right
    monkeypatch.setattr(*FAULTS[fault])
    trajectory, is_right = play(*script)
    assert len(trajectory.crops) == 1
    assert not is_right


def test_a_batch_without_crops_says_something_about_boxes_too(monkeypatch):
    assert play("<think></think><answer>x</answer>")[1]
    monkeypatch.setattr(*FAULTS["not scaled"])
    assert not play("<think></think><answer>x</answer>")[1]
