"""What a request may say, and how it is told what is wrong with it."""

import json

import pytest

from models.config import EngineConfig, Look
from models.errors import ConfigError
from models.serving.chat import IGNORED, NEUTRAL, Ask, parse
from models.serving.config import ServingConfig, limits_for
from models.serving.errors import APIError
from models.serving.messages import Conversation, Question

LOOK = Look(max_crops=3, max_sampled_tokens=80)
ENGINE = EngineConfig(max_model_len=512, max_images=4)
CONFIG = ServingConfig(look=LOOK, engine=ENGINE, limits=limits_for(LOOK, ENGINE, {"max_choices": 2}))
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def asked(content="what is it?", *, messages=None, **fields) -> Ask:
    messages = [{"role": "user", "content": content}] if messages is None else messages
    return parse(json.dumps({"model": "vlm-r3", "messages": messages, **fields}).encode(), CONFIG)


def refusal(*arguments, **fields) -> APIError:
    with pytest.raises(APIError) as refused:
        asked(*arguments, **fields)
    return refused.value


def test_a_plain_question_looks_again_by_the_rules_of_the_preset():
    ask = asked()
    assert ask.said == Conversation(None, (), Question("what is it?", (), ()))
    assert ask.looks_again
    assert ask.look.system == LOOK.system
    assert (ask.look.max_crops, ask.look.max_sampled_tokens) == (3, 80)
    assert (ask.temperature, ask.num_choices, ask.seed, ask.is_stream) == (0.0, 1, None, False)


def test_pictures_stand_where_the_parts_say():
    ask = asked([text("is this "), PICTURE, text("like that "), PICTURE, text("?")])
    question = ask.said.question
    assert question.text == "is this like that ?"
    assert question.places == (len("is this "), len("is this like that "))
    assert len(ask.said.sources) == 2
    assert ask.look.max_crops == 2  # four pictures fit into one sequence


def test_a_system_message_of_the_client_is_kept():
    messages = [
        {"role": "system", "content": [text("Be "), text("brief.")]},
        {"role": "user", "content": "?"},
    ]
    assert asked(messages=messages).said.system == "Be brief."


@pytest.mark.parametrize(
    ("look_again", "max_crops", "looks_again"),
    [
        (True, 3, True),
        ({}, 3, True),
        ({"max_crops": 1}, 1, True),
        ({"max_crops": 0}, 0, True),
        (False, 0, False),
    ],
)
def test_our_field_says_how_it_may_look(look_again, max_crops, looks_again):
    ask = asked([PICTURE, text("?")], look_again=look_again)
    assert (ask.look.max_crops, ask.looks_again) == (max_crops, looks_again)
    assert (ask.look.system is None) == (not looks_again)


def test_sampling_fields():
    ask = asked(
        temperature=0.7, seed=-3, n=2, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    assert (ask.temperature, ask.seed, ask.num_choices, ask.look.max_sampled_tokens) == (0.7, -3, 2, 5)
    assert (ask.is_stream, ask.includes_usage) == (True, True)
    assert asked(max_completion_tokens=7).look.max_sampled_tokens == 7


def test_values_that_ask_for_nothing_are_taken():
    for name, values in NEUTRAL.items():
        for value in (None, *values):
            assert asked(**{name: value}).said.question.text == "what is it?"
    for name in IGNORED:
        asked(**{name: "anything"})


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "0"}, "temperature", "valid number"),
        ({"n": 3}, "n", "this server allows 2"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"max_tokens": 512}, "max_tokens", "this server allows 511"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens", "allows 511"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"seed": 2**64}, "seed", "less than"),
        ({"top_p": 0.5}, "top_p", "cannot do"),
        ({"stop": ["."]}, "stop", "cannot do"),
        ({"logprobs": True}, "logprobs", "cannot do"),
        ({"tools": [{"type": "function"}]}, "tools", "cannot do"),
        ({"response_format": {"type": "json_object"}}, "response_format", "cannot do"),
        ({"temprature": 0}, "temprature", "Did you mean 'temperature'"),
        ({"look_again": {"max_crops": 4}}, "look_again.max_crops", "allows 3"),
        ({"look_again": {"max_crop": 1}}, "look_again.max_crop", "not permitted"),
        ({"look_again": "no"}, "look_again", ""),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"messages": []}, "messages", "at least 1"),
        ({"content": ""}, "messages.0.content", "no text"),
        ({"content": None}, "messages.0.content", "no text"),
        ({"content": [PICTURE]}, "messages.0.content", "no text"),
        ({"content": 5}, "messages.0.content", ""),
        ({"content": [{"type": "input_audio"}]}, "messages.0.content.0", "input_audio"),
        ({"content": [{"type": "image_url", "image_url": "x"}]}, "messages.0.content.0.image_url", ""),
        ({"content": [*[PICTURE] * 5, text("?")]}, "messages", "5 images; this server allows 4"),
        ({"content": "x" * 2049}, "messages", "2049 characters"),
        ({"content": "end<|im_end|> it"}, "messages.0.content", "special token '<|im_end|>'"),
        ({"content": "see <|image_pad|>"}, "messages.0.content", "special token"),
    ],
)
def test_what_cannot_be_done_is_a_400_that_says_what_and_where(fields, param, says):
    refused = refusal(**fields)
    assert refused.status == 400
    assert refused.param == param
    assert says in str(refused)
    assert refused.body()["error"]["type"] == "invalid_request_error"


def said(*messages: tuple[str, object]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in messages]


def test_a_conversation_ends_in_its_question():
    ask = asked(
        messages=said(
            ("system", "Be brief."),
            ("user", [PICTURE, text("what is it?")]),
            ("assistant", [text("A card, "), text("red.")]),
            ("user", "where?"),
            ("assistant", "There."),
            ("user", [text("and this "), PICTURE, text("?")]),
        )
    )
    uri = PICTURE["image_url"]["url"]
    assert ask.said == Conversation(
        "Be brief.",
        (
            (Question("what is it?", (uri,), (0,)), "A card, red."),
            (Question("where?", (), ()), "There."),
        ),
        Question("and this ?", (uri,), (9,)),
    )
    assert ask.said.sources == (uri, uri)


def test_a_reply_is_taken_back_as_it_came():
    reply = {"role": "assistant", "content": "K7", "refusal": None, "tool_calls": None, "look_again": {}}
    messages = [*said(("user", "code?")), reply, *said(("user", "sure?"))]
    assert asked(messages=messages).said.earlier[0][1] == "K7"


@pytest.mark.parametrize(
    ("roles", "param", "says"),
    [
        ("assistant", "messages.0.role", "'user' is due"),
        ("assistant user", "messages.0.role", "'user' is due"),
        ("system", "messages.0.role", "no question to answer"),
        ("system assistant user", "messages.1.role", "'user' is due"),
        ("user user", "messages.1.role", "into one"),
        ("user assistant assistant user", "messages.2.role", "'user' is due"),
        ("system system user", "messages.1.role", "'user' is due"),
        ("system developer user", "messages.1.role", "'user' is due"),
        ("user system", "messages.1.role", "'assistant' is due"),
        ("user assistant system user", "messages.2.role", "'user' is due"),
        ("user assistant", "messages.1.role", "no question to answer"),
        ("tool", "messages.0.role", "no tools"),
        ("user tool user", "messages.1.role", "no tools"),
    ],
)
def test_an_order_that_is_no_conversation_is_a_400(roles, param, says):
    refused = refusal(messages=said(*((role, "hello") for role in roles.split())))
    assert (refused.status, refused.param) == (400, param)
    assert says in str(refused)
    assert "A conversation is" in str(refused)


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"content": ""}, "messages.1.content", "no text"),
        ({"content": None}, "messages.1.content", "no text"),
        ({"content": []}, "messages.1.content", "no text"),
        ({"content": [PICTURE, text("this")]}, "messages.1.content", "into user messages"),
        ({"content": "a<|im_start|>b"}, "messages.1.content", "special token"),
        ({"content": "K7", "tool_calls": [{"id": "1"}]}, "messages.1.tool_calls", "at most 0"),
        ({"content": "K7", "refusal": "no"}, "messages.1.refusal", "null"),
        ({"content": "x" * 2041}, "messages", "2049 characters"),
    ],
)
def test_a_reply_that_cannot_have_been_ours_is_a_400(changes, param, says):
    messages = [*said(("user", "code")), {"role": "assistant", **changes}, *said(("user", "sure"))]
    refused = refusal(messages=messages)
    assert (refused.status, refused.param) == (400, param)
    assert says in str(refused)


def test_pictures_are_counted_over_the_whole_conversation():
    turn = [PICTURE, PICTURE, PICTURE, text("?")]
    refused = refusal(messages=said(("user", turn), ("assistant", "no"), ("user", turn)))
    assert "6 images; this server allows 4" in str(refused)


def test_another_model_is_not_found():
    body = json.dumps({"model": "gpt", "messages": [{"role": "user", "content": "?"}]}).encode()
    with pytest.raises(APIError, match="'vlm-r3' is") as refused:
        parse(body, CONFIG)
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": "\\ud800"}', b"[" * 10_000, b'"' + b"a" * 99]
)
def test_what_is_no_request_is_a_400(body):
    with pytest.raises(APIError) as refused:
        parse(body, CONFIG)
    assert refused.value.status == 400
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_tokens": 512}, "max_tokens 512"),
        ({"max_crops": 4}, "max_crops 4"),
        ({"max_images": 5}, "max_images 5"),
        ({"max_seconds": 0}, "max_seconds"),
    ],
)
def test_limits_beyond_the_model_are_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        limits_for(LOOK, ENGINE, given)
