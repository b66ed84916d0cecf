from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.config import EngineConfig
from models.policy import Policy, collate, load_policy
from models.trajectory import GenerationRequest, Prompt, SampledSpan
from models.transformers_engine import TransformersEngine
from tests.tiny_models import finish, load_reference, picture, turn_with_crops

CONFIG = EngineConfig(kind="transformers", dtype="float32", max_model_len=256)


@pytest.fixture(scope="module")
def policy(untied_model: Path) -> Policy:
    return load_policy(untied_model)


@pytest.fixture
def engine(policy: Policy) -> TransformersEngine:
    return TransformersEngine(policy, CONFIG)


def request(encoder, *, id="r", num_crops=0, stops=(), max_new_tokens=12, temperature=0.0, seed=None):
    prompt = Prompt("what code is on the red card?", (picture(112, 112),), None)
    spans = turn_with_crops(encoder, num_crops) if num_crops else ()
    return GenerationRequest(id, prompt, spans, stops, max_new_tokens, temperature, seed)


def answers(engine, *requests):
    return list(finish(engine, requests).values())


@pytest.mark.parametrize("num_crops", [0, 1, 4])
def test_greedy_ids_equal_those_of_transformers_generate(engine, untied_model, num_crops):
    encoder = engine.encoder
    asked = request(encoder, num_crops=num_crops)
    (piece,) = answers(engine, asked)
    model = load_reference(untied_model)
    encoded = encoder.expand(encoder.collapse(asked.prompt, asked.spans))
    ids = torch.from_numpy(encoded.ids)[None]
    patches, grids = encoder.patches(encoded.pictures)
    generated = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=patches,
        image_grid_thw=grids,
        mm_token_type_ids=(ids == encoder.image_token_id).int(),
        suppress_tokens=list(encoder.banned_ids),
        eos_token_id=list(encoder.end_ids),
        do_sample=False,
        max_new_tokens=asked.max_new_tokens,
    )
    assert piece.span.token_ids == tuple(generated[0, len(encoded) :].tolist())


def test_logprobs_equal_those_of_the_policy(engine, policy):
    asked = request(engine.encoder, num_crops=2, temperature=0.8, seed=5)
    (piece,) = answers(engine, asked)
    spans = (*asked.spans, piece.span)
    encoded = engine.encoder.expand(engine.encoder.collapse(asked.prompt, spans))
    with torch.no_grad():
        expected = policy(collate([encoded], policy), temperature=0.8)[0]
    last = slice(len(encoded) - 1 - len(piece.span.token_ids), len(encoded) - 1)
    assert torch.allclose(torch.tensor(piece.span.logprobs), expected[last], atol=2e-5, rtol=0)


def test_requests_do_not_disturb_each_other(engine):
    asked = [request(engine.encoder, id=str(n), num_crops=n, temperature=1.0, seed=n) for n in range(4)]
    together = answers(engine, *asked)
    alone = [answers(engine, one)[0] for one in asked]
    assert [piece.span.token_ids for piece in together] == [piece.span.token_ids for piece in alone]


def test_a_seed_repeats_a_sample_and_another_seed_does_not(engine):
    asked = [
        request(engine.encoder, id=str(i), temperature=1.0, seed=seed) for i, seed in enumerate((1, 1, 2))
    ]
    first, second, third = (piece.span.token_ids for piece in answers(engine, *asked))
    assert first == second
    assert first != third


def test_banned_tokens_are_never_sampled(engine):
    # Hot enough for a nearly uniform choice: of 64 * 12 draws from 1200 tokens, 7 banned ones would be hit
    # about four times.
    asked = [request(engine.encoder, id=str(seed), temperature=50.0, seed=seed) for seed in range(64)]
    sampled = {token for piece in answers(engine, *asked) for token in piece.span.token_ids}
    assert sampled
    assert not sampled.intersection(engine.encoder.banned_ids)


def test_generation_stops_after_a_stop_string_and_keeps_it(engine):
    (free,) = answers(engine, request(engine.encoder))
    stop = engine.encoder.decode(free.span.token_ids[4:5])
    expected = next(
        end for end in range(1, 13) if stop in engine.encoder.decode(free.span.token_ids[:end])
    )  # the stop string may come up before the token it was taken from
    (piece,) = answers(engine, request(engine.encoder, stops=(stop,)))
    assert piece.finish == "stop"
    assert piece.span.token_ids == free.span.token_ids[:expected]
    assert stop in piece.span.text


def test_the_token_limit_of_a_request_is_its_length(engine):
    (piece,) = answers(engine, request(engine.encoder, max_new_tokens=3))
    assert piece.finish == "length"
    assert len(piece.span.token_ids) == 3


def test_the_end_token_ends_the_turn(policy):
    engine = TransformersEngine(policy, CONFIG)
    end = engine.encoder.eos_id
    sample = torch.full((engine.encoder.vocab_size,), -torch.inf)
    sample[end] = 0.0
    engine._next_logits = lambda batch: sample.expand(len(batch), -1)
    (piece,) = answers(engine, request(engine.encoder))
    assert (piece.finish, piece.span.token_ids, piece.span.text) == ("end", (end,), "")


def test_a_full_context_is_named(policy):
    encoder = policy.encoder
    asked = request(encoder, max_new_tokens=50)
    length = len(encoder.expand_ids(encoder.collapse(asked.prompt, ())))
    room = TransformersEngine(policy, CONFIG.model_copy(update={"max_model_len": length + 4}))
    (piece,) = answers(room, asked)
    assert (piece.finish, len(piece.span.token_ids)) == ("context", 4)
    full = TransformersEngine(policy, CONFIG.model_copy(update={"max_model_len": length}))
    (piece,) = answers(full, asked)
    assert (piece.finish, piece.span.token_ids) == ("context", ())


def test_a_request_that_cannot_be_encoded_fails_alone(engine):
    broken = GenerationRequest("broken", Prompt("<|image_pad|>"), (), (), 4, 0.0)
    bad, good = answers(engine, broken, request(engine.encoder))
    assert bad.finish == "error"
    assert "image pads" in bad.error
    assert good.finish != "error"


def test_an_aborted_request_is_forgotten(engine):
    engine.submit(request(engine.encoder))
    engine.abort("r")
    engine.abort("never seen")
    assert engine.step() == []


def test_spans_carry_the_policy_version(engine):
    engine.version = 7
    (piece,) = answers(engine, request(engine.encoder))
    assert isinstance(piece.span, SampledSpan)
    assert piece.span.policy_version == 7


def test_drafts_are_the_beginning_of_the_piece(engine):
    asked = [
        replace(request(engine.encoder, id=name, temperature=1.0, seed=3), shows_drafts=name == "shown")
        for name in ("shown", "quiet")
    ]
    for one in asked:
        engine.submit(one)
    drafts, pieces = [], {}
    while len(pieces) < 2:
        pieces.update({piece.request_id: piece for piece in engine.step()})
        drafts += engine.drafts()
    assert {draft.request_id for draft in drafts} == {"shown"}
    told = "".join(draft.text for draft in drafts)
    assert told
    assert pieces["shown"].span.text.startswith(told)
    assert pieces["shown"].span == pieces["quiet"].span, "drafts change nothing"
    assert pieces["shown"].context_tokens == len(
        engine.encoder.expand_ids(engine.encoder.collapse(asked[0].prompt, ()))
    )
