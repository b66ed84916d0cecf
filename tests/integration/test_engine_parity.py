"""Engine and trainer agree: real vLLM against the policy's own forward pass, before and after weight updates.

The mismatch is the k3 estimator of KL(engine || trainer) per sampled token: mean of exp(d) - 1 - d with
d = log-prob of the trainer - log-prob of the engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import EngineConfig, Look
from models.encoding import Encoded
from models.errors import EngineError
from models.policy import Policy, collate, load_policy, save_policy
from models.trajectory import GenerationRequest, Piece, Prompt, SampledSpan
from models.transformers_engine import TransformersEngine
from models.vllm_engine import LLMEngine, VLLMEngine, _start, can_sleep
from tests.tiny_models import as_published, finish, picture, save_random_model, turn_with_crops

from vllm import envs  # isort: skip
from vllm.engine import arg_utils  # isort: skip
from vllm.platforms import interface  # isort: skip
from vllm.platforms.cpu import CpuPlatform  # isort: skip
from vllm.platforms.interface import Platform, PlatformEnum  # isort: skip

pytestmark = pytest.mark.integration


class CudaPlatform(Platform):
    """What vLLM asks of a platform without its GPU."""

    _enum = PlatformEnum.CUDA
    device_name = "cuda"
    device_control_env_var = "CUDA_VISIBLE_DEVICES"


LOOK = Look(min_pixels=3136, max_pixels=12544)
CONFIG = EngineConfig(
    dtype="float32", max_model_len=256, max_num_seqs=48, max_images=5, kv_cache_gib=0.25, enforce_eager=True
)
MAX_MISMATCH_KL = 0.005
TEMPERATURE = 0.8
NUMBERS_OF_CROPS = range(5)


@dataclass
class Pair:
    """An engine and the policy whose weights it should have."""

    engine: VLLMEngine
    policy: Policy

    def perturb(self, parts, *, trained_only: bool = False) -> None:
        """Move weights of the policy and send them to the engine."""
        generator = torch.Generator().manual_seed(self.engine.version)
        with torch.no_grad():
            for parameter in parts:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        weights = self.policy.weights(trained_only=trained_only)
        self.engine.update_weights(weights, version=self.engine.version + 1)


@pytest.fixture(params=["untied", "tied", "tied, as published"], scope="module")
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_random_model(tmp_path_factory.mktemp("model"), tied=request.param.startswith("tied"))
    return as_published(folder) if request.param.endswith("published") else folder


@pytest.fixture(scope="module")
def pair(model_path: Path) -> Iterator[Pair]:
    engine = VLLMEngine(model_path, CONFIG, look=LOOK, sleeps=True)
    yield Pair(engine, load_policy(model_path).eval())
    engine.close()


def request(encoder, *, id, num_crops=0, seed=0, temperature=TEMPERATURE, max_new_tokens=20, stops=()):
    prompt = Prompt("what code is on the red card?", (picture(112, 112, seed=seed % 3),), "Look twice.")
    spans = turn_with_crops(encoder, num_crops)
    return GenerationRequest(id, prompt, spans, stops, max_new_tokens, temperature, seed)


def mixed_requests(encoder):
    """Four requests for each number of crops from 0 to 4; views are shared, as in a group."""
    return [
        request(encoder, id=f"{num_crops}/{seed}", num_crops=num_crops, seed=seed)
        for num_crops in NUMBERS_OF_CROPS
        for seed in range(4)
    ]


def encode(policy, one: GenerationRequest, piece: Piece) -> Encoded:
    encoder = policy.encoder
    return encoder.expand(encoder.collapse(one.prompt, (*one.spans, piece.span)))


def mismatch(policy, requests, pieces, num_crops=None) -> float:
    """The mean k3 of the tokens in ``pieces``, optionally only of requests with that many crops."""
    chosen = [one for one in requests if num_crops is None or one.request_id.startswith(f"{num_crops}/")]
    encoded = [encode(policy, one, pieces[one.request_id]) for one in chosen]
    with torch.no_grad():
        logprobs = policy(collate(encoded, policy), temperature=TEMPERATURE)
    differences = []
    for row, one, sequence in zip(logprobs, chosen, encoded, strict=True):
        engine_logprobs = torch.tensor(pieces[one.request_id].span.logprobs)
        end = len(sequence) - 1
        differences.append(row[end - len(engine_logprobs) : end] - engine_logprobs)
    d = torch.cat(differences).double()
    assert len(d) > 0
    return float((d.exp() - 1 - d).mean())


def test_engine_and_trainer_agree_for_every_number_of_crops(pair):
    requests = mixed_requests(pair.policy.encoder)
    pieces = finish(pair.engine, requests)
    assert not [piece.error for piece in pieces.values() if piece.error]
    for num_crops in NUMBERS_OF_CROPS:
        assert mismatch(pair.policy, requests, pieces, num_crops) < MAX_MISMATCH_KL


def test_they_agree_on_several_pictures_in_the_text_and_on_none(pair):
    def asked(id: str, *places: int) -> GenerationRequest:
        pictures = tuple(picture(56 + 28 * i, 56, seed=i) for i in range(len(places)))
        prompt = Prompt("which card is red?", pictures, "Look twice.", places)
        spans = turn_with_crops(pair.policy.encoder, 2)
        return GenerationRequest(id, prompt, spans, (), 20, TEMPERATURE, 7)

    # With two crops three pictures make five, the most that this engine takes.
    requests = [asked("none"), asked("before", 0, 0), asked("inside", 0, 6, 18), asked("end", 18)]
    pieces = finish(pair.engine, requests)
    assert not [piece.error for piece in pieces.values() if piece.error]
    for one in requests:
        assert mismatch(pair.policy, [one], pieces) < MAX_MISMATCH_KL


def test_they_agree_after_all_weights_changed(pair):
    requests = mixed_requests(pair.policy.encoder)
    before = finish(pair.engine, requests)
    pair.perturb(pair.policy.parameters())
    assert mismatch(pair.policy, requests, before) > 10 * MAX_MISMATCH_KL  # the update is large enough to see
    after = finish(pair.engine, requests)
    for num_crops in NUMBERS_OF_CROPS:
        assert mismatch(pair.policy, requests, after, num_crops) < MAX_MISMATCH_KL
    assert {piece.span.policy_version for piece in after.values()} == {pair.engine.version}


def test_a_tower_that_is_not_sent_is_the_one_that_the_engine_has(pair):
    requests = mixed_requests(pair.policy.encoder)
    pair.perturb(pair.policy.model.parameters(), trained_only=True)
    sent = dict(pair.policy.weights(trained_only=True))
    left_out = dict(pair.policy.weights()).keys() - sent.keys()
    assert left_out
    assert all(name.startswith("model.visual.") for name in left_out)
    after = finish(pair.engine, requests)  # it looks with its own tower
    for num_crops in NUMBERS_OF_CROPS:
        assert mismatch(pair.policy, requests, after, num_crops) < MAX_MISMATCH_KL


def test_a_changed_vision_tower_changes_the_same_picture(pair, tmp_path):
    # The canary for stale caches: prompts and pictures are those of the run before, only the tower moved.
    requests = mixed_requests(pair.policy.encoder)
    before = finish(pair.engine, requests)
    pair.perturb(pair.policy.tower.parameters())
    save_policy(pair.policy, tmp_path / "moved")
    pair.policy = load_policy(tmp_path / "moved").eval()  # a new one: the old one kept its features
    assert mismatch(pair.policy, requests, before) > MAX_MISMATCH_KL
    after = finish(pair.engine, requests)
    for num_crops in NUMBERS_OF_CROPS:
        assert mismatch(pair.policy, requests, after, num_crops) < MAX_MISMATCH_KL


def test_the_engine_runs_on_the_ids_and_positions_of_the_trainer(pair):
    seen = record_mrope(pair.engine)
    encoder = pair.policy.encoder
    requests = mixed_requests(encoder)
    finish(pair.engine, requests)
    for one in requests:
        encoded = encoder.expand(encoder.collapse(one.prompt, one.spans))
        assert np.array_equal(seen[tuple(encoded.ids.tolist())], encoded.positions)
        num_pads = int((encoded.ids == encoder.image_token_id).sum())
        assert num_pads == sum(len(features) for features in pair.policy.features(encoded.pictures))


def record_mrope(engine) -> dict[tuple[int, ...], np.ndarray]:
    """From now on, the rotary positions (3, T) that vLLM computes, by the prompt ids it computes them for."""
    seen = {}

    def spy(model):
        compute = model.get_mrope_input_positions

        def recording(ids, *rest, **named):
            positions, delta = compute(ids, *rest, **named)
            seen[tuple(ids)] = positions.numpy()
            return positions, delta

        model.get_mrope_input_positions = recording

    engine._engine.apply_model(spy)
    return seen


def test_the_reference_engine_writes_the_same_greedy_text(pair):
    reference = TransformersEngine(pair.policy, CONFIG)
    requests = [
        request(pair.policy.encoder, id=str(n), num_crops=n, temperature=0.0) for n in NUMBERS_OF_CROPS
    ]
    fast, slow = finish(pair.engine, requests), finish(reference, requests)
    assert {id: piece.span.text for id, piece in fast.items()} == {
        id: piece.span.text for id, piece in slow.items()
    }


def test_banned_tokens_are_never_sampled(pair):
    # At vLLM's highest temperature the choice is nearly uniform: 32 * 40 draws from 1200 tokens would hit the
    # 7 banned ones about seven times.
    encoder = pair.policy.encoder
    requests = [
        request(encoder, id=str(seed), seed=seed, temperature=2.0, max_new_tokens=40) for seed in range(32)
    ]
    pieces = finish(pair.engine, requests).values()
    sampled = [token for piece in pieces for token in piece.span.token_ids]
    assert len(sampled) > 1000
    assert not set(sampled) & set(encoder.banned_ids)


def test_a_late_request_does_not_wait_for_an_early_one(pair):
    encoder = pair.policy.encoder
    pair.engine.submit(request(encoder, id="long", max_new_tokens=60, temperature=0.0))
    for _ in range(5):
        assert pair.engine.step() == []
    pair.engine.submit(request(encoder, id="short", num_crops=2, max_new_tokens=2))
    finished = []
    while len(finished) < 2:
        finished += [piece.request_id for piece in pair.engine.step()]
    assert finished == ["short", "long"]


def test_a_seed_repeats_a_sample(pair):
    encoder = pair.policy.encoder
    requests = [request(encoder, id=str(i), seed=seed) for i, seed in enumerate((3, 3, 6))]
    first, second, third = (piece.span.token_ids for piece in finish(pair.engine, requests).values())
    assert first == second
    assert first != third


def test_every_way_to_finish_has_its_name(pair):
    encoder = pair.policy.encoder
    (free,) = finish(pair.engine, [request(encoder, id="free", max_new_tokens=3)]).values()
    assert (free.finish, len(free.span.token_ids)) == ("length", 3)
    stop = encoder.decode(free.span.token_ids[1:2])
    stopped = request(encoder, id="stop", stops=(stop,))
    filled = filled_up(encoder, request(encoder, id="context"), room=4)
    full = filled_up(encoder, request(encoder, id="full"), room=0)
    pieces = finish(pair.engine, [stopped, filled, full])
    assert pieces["stop"].finish == "stop"
    assert stop in pieces["stop"].span.text
    assert pieces["stop"].span.token_ids == free.span.token_ids[: len(pieces["stop"].span.token_ids)]
    assert (pieces["context"].finish, len(pieces["context"].span.token_ids)) == ("context", 4)
    assert (pieces["full"].finish, pieces["full"].span.token_ids) == ("context", ())


def filled_up(encoder, one: GenerationRequest, *, room: int) -> GenerationRequest:
    """The same request with so much text before it that only ``room`` tokens fit into the context."""
    length = len(encoder.expand_ids(encoder.collapse(one.prompt, one.spans)))
    (token,) = encoder.tokenize(str(one.seed))
    filler = SampledSpan("", (token,) * (CONFIG.max_model_len - length - room))
    return replace(one, spans=(filler, *one.spans))


def test_as_many_long_prompts_as_fit_are_sampled_at_once(pair):
    # 48 different prompts of 250 tokens, each with a seed: more than one step of vLLM's usual size (8192),
    # and on a CPU a seeded prompt must not be split over steps.
    encoder = pair.policy.encoder
    requests = [
        filled_up(encoder, request(encoder, id=str(seed), num_crops=2, seed=seed), room=6)
        for seed in range(CONFIG.max_num_seqs)
    ]
    pieces = finish(pair.engine, requests)
    assert {piece.finish for piece in pieces.values()} <= {"context", "end"}
    again = finish(pair.engine, requests)
    assert {id: piece.span.token_ids for id, piece in again.items()} == {
        id: piece.span.token_ids for id, piece in pieces.items()
    }


def test_a_request_that_vllm_refuses_fails_alone(pair):
    encoder = pair.policy.encoder
    crowded = request(encoder, id="crowded", num_crops=5)  # with the view six pictures, one more than allowed
    hot = request(encoder, id="hot", temperature=3.0)
    pieces = finish(pair.engine, [crowded, hot, request(encoder, id="good")])
    assert pieces["crowded"].finish == "error"
    assert "image" in pieces["crowded"].error
    assert pieces["hot"].finish == "error"
    assert "temperature" in pieces["hot"].error
    assert pieces["good"].finish in ("length", "end")


def test_a_picture_is_seen_as_it_is_given(pair):
    # Over the engine's pixel budget, as a long and narrow picture comes out of smart resizing: vLLM's own
    # processor would shrink it, and see fewer tokens than the trainer.
    prompt = Prompt("?", (picture(28, 560),))
    one = GenerationRequest("long", prompt, (), (), 12, TEMPERATURE)
    assert one.prompt.pictures[0].size.area > LOOK.max_pixels
    pieces = finish(pair.engine, [one])
    assert not pieces["long"].error
    assert mismatch(pair.policy, [one], pieces) < MAX_MISMATCH_KL


def test_a_picture_that_was_not_resized_fails_alone(pair):
    ragged = GenerationRequest("ragged", Prompt("?", (picture(60, 56),)), (), (), 4, 0.0)
    pieces = finish(pair.engine, [ragged, request(pair.policy.encoder, id="good")])
    assert pieces["ragged"].finish == "error"
    assert "60x56" in pieces["ragged"].error
    assert not pieces["good"].error


@contextmanager
def looking_with(engine: VLLMEngine, look_at) -> Iterator[None]:
    engine._inputs.look_at = look_at
    engine.begin_version(engine.version)  # nothing of the pictures is left
    try:
        yield
    finally:
        engine._inputs.look_at = None
        engine.begin_version(engine.version)


def test_with_the_trainers_features_the_engines_tower_looks_at_nothing(pair):
    calls = []

    def watch(model):
        look = model.visual.forward
        model.visual.forward = lambda *given, **named: calls.append(given) or look(*given, **named)

    pair.engine._engine.apply_model(watch)
    requests = mixed_requests(pair.policy.encoder)
    with looking_with(pair.engine, pair.policy.features):
        pieces = finish(pair.engine, requests)
        assert not calls
        for num_crops in NUMBERS_OF_CROPS:
            assert mismatch(pair.policy, requests, pieces, num_crops) < MAX_MISMATCH_KL
        with pair.engine.looking_itself():
            own = finish(pair.engine, requests)
        assert calls
    assert mismatch(pair.policy, requests, own) < MAX_MISMATCH_KL


def test_other_features_are_seen(pair):
    requests = mixed_requests(pair.policy.encoder)
    with looking_with(pair.engine, lambda shown: [-one for one in pair.policy.features(shown)]):
        pieces = finish(pair.engine, requests)
    assert mismatch(pair.policy, requests, pieces) > MAX_MISMATCH_KL


def test_weights_do_not_change_under_a_running_request(pair):
    pair.engine.submit(request(pair.policy.encoder, id="running"))
    with pytest.raises(EngineError, match="1 requests are in flight"):
        pair.engine.update_weights(pair.policy.weights(), version=99)
    with pytest.raises(EngineError, match="already in flight"):
        pair.engine.submit(request(pair.policy.encoder, id="running"))
    pair.engine.abort("running")
    pair.engine.abort("never seen")
    assert pair.engine.step() == []
    pair.engine.update_weights(pair.policy.weights(), version=pair.engine.version + 1)


def test_on_a_cpu_nothing_sleeps(pair):
    assert can_sleep(CudaPlatform(), sleeps=True)
    assert not can_sleep(CudaPlatform(), sleeps=False)
    assert not can_sleep(CpuPlatform(), sleeps=True)
    pair.engine.sleep()  # as before a training step: vLLM must not be told here
    assert not pair.engine._engine.is_sleeping()
    (piece,) = finish(pair.engine, [request(pair.policy.encoder, id="awake", max_new_tokens=2)]).values()
    assert piece.finish in ("length", "end")


@pytest.mark.parametrize(("visible", "physical"), [("", 1), ("4,6,7", 6)])
def test_the_engine_beside_a_trainer_takes_the_gpu_of_its_rank(monkeypatch, tmp_path, visible, physical):
    given = []
    monkeypatch.setattr(LLMEngine, "from_engine_args", given.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setitem(vars(envs), "CUDA_VISIBLE_DEVICES", visible)  # vLLM has its own memory of that
    monkeypatch.setattr(arg_utils, "current_platform", CudaPlatform())
    _start(tmp_path, CONFIG, look=LOOK, seed=0, transfer="", sleeps=True)
    devices = given[0]._resolve_device_ids()
    assert devices == [physical]
    monkeypatch.setattr(interface, "_assigned_physical_gpu_ids", devices)  # as vLLM's worker does
    # Where that goes, as the first of its engine.
    assert CudaPlatform.logical_device_id_to_visible_device_id(0) == 1


def test_the_trainer_can_still_set_its_threads(pair):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
