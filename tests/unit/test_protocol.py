import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.protocol import (
    STOPS,
    SYSTEM_PROMPT,
    BadJSON,
    BoxRequest,
    box_request,
    extract_answer,
    is_well_formed,
    reasoning_text,
    render_box,
)
from models.region import Box


def seen(*corners):
    return Box(*map(float, corners), space="seen")


def of_first_image(*corners):
    return BoxRequest(seen(*corners), image=1)


GOOD = '{"bbox_2d": [28, 30, 56, 60]}'

coordinates = st.integers(0, 5000)


@given(st.tuples(coordinates, coordinates, coordinates, coordinates))
def test_what_is_rendered_is_parsed(corners):
    box = seen(*corners)
    assert box_request(render_box(box)) == BoxRequest(box)


def test_a_command_has_the_form_of_the_paper():
    assert render_box(seen(28, 30.4, 55.6, 60)) == '{"bbox_2d": [28, 30, 56, 60]}'
    assert '{"bbox_2d": [x1, y1, x2, y2]}' in SYSTEM_PROMPT
    assert STOPS == ("}", "</answer>")


@given(before=st.text(), after=st.text(alphabet=st.characters(exclude_characters="{}")))
def test_text_around_the_command_does_not_matter(before, after):
    # A tokenizer may have glued characters to the closing brace, hence "after".
    assert box_request(before + GOOD + after) == of_first_image(28, 30, 56, 60)


def test_the_last_command_counts():
    assert box_request(GOOD + " and " + '{"bbox_2d": [1, 2, 3, 4]}') == of_first_image(1, 2, 3, 4)


@pytest.mark.parametrize(
    "text",
    [
        '{"bbox_2d":[28,30,56,60]}',
        '{ "bbox_2d" : [ 28 , 30 , 56 , 60 ] }',
        '{"bbox_2d": [28.0, 30.0, 56.0, 60.0]}',
        '{"bbox_2d":\n[28, 30, 56, 60]\n}',
        '{"label": "card", "bbox_2d": [28, 30, 56, 60]}',
        '{"why": {"a": {}}, "bbox_2d": [28, 30, 56, 60]}',
        '[{"bbox_2d": [28, 30, 56, 60]}',
    ],
)
def test_other_ways_to_write_the_same_command(text):
    assert box_request(text) == of_first_image(28, 30, 56, 60)


@pytest.mark.parametrize("number", [1, 2, 7, 0, -1, 10**8])
def test_a_command_may_name_a_picture(number):
    # Whether there is such a picture is for the loop to say.
    text = f'{{"bbox_2d": [28, 30, 56, 60], "image": {number}}}'
    assert box_request(text) == BoxRequest(seen(28, 30, 56, 60), image=number)


# Commands that name the key but are not four numbers in JSON.
MALFORMED = {
    "three numbers": '{"bbox_2d": [1, 2, 3]}',
    "five numbers": '{"bbox_2d": [1, 2, 3, 4, 5]}',
    "no list": '{"bbox_2d": 7}',
    "words": '{"bbox_2d": ["a", "b", "c", "d"]}',
    "numbers as words": '{"bbox_2d": ["1", "2", "3", "4"]}',
    "true is no number": '{"bbox_2d": [true, 2, 3, 4]}',
    "nothing": '{"bbox_2d": null}',
    "nested list": '{"bbox_2d": [[1, 2, 3, 4]]}',
    "missing bracket": '{"bbox_2d": [1, 2, 3, 4}',
    "missing comma": '{"bbox_2d": [1 2 3 4]}',
    "single quotes": "{'bbox_2d': [1, 2, 3, 4]}",
    "comma at the end": '{"bbox_2d": [1, 2, 3, 4,]}',
    "not a number": '{"bbox_2d": [NaN, 2, 3, 4]}',
    "infinite": '{"bbox_2d": [1e999, 2, 3, 4]}',
    "astronomical": '{"bbox_2d": [10000000000, 2, 3, 4]}',
    "an integer that Python refuses to read": '{"bbox_2d": [' + "1" * 5000 + ", 2, 3, 4]}",
    "arithmetic": '{"bbox_2d": [1+1, 2, 3, 4]}',
    "a key without a value": '{"bbox_2d"}',
    "a picture by name": '{"bbox_2d": [1, 2, 3, 4], "image": "2"}',
    "half a picture": '{"bbox_2d": [1, 2, 3, 4], "image": 1.5}',
    "true is no picture": '{"bbox_2d": [1, 2, 3, 4], "image": true}',
    "a picture beyond all numbers": '{"bbox_2d": [1, 2, 3, 4], "image": 3000000000}',
    "no picture": '{"bbox_2d": [1, 2, 3, 4], "image": null}',
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_command_is_named_and_kept(name):
    assert box_request("Look: " + MALFORMED[name]) == BadJSON(MALFORMED[name])


@pytest.mark.parametrize("before", ['{"name": "crop", "arguments": ', "{", '{"a": {"b": ', "{the box "])
@pytest.mark.parametrize("after", ["}", "}}", "} }", " }\n"])
def test_a_command_within_an_object_is_one_command(before, after):
    assert box_request(before + GOOD) == of_first_image(28, 30, 56, 60)
    assert box_request(before + GOOD + after) == of_first_image(28, 30, 56, 60)
    # Asked about before, at its own brace: what closes around it adds nothing.
    assert box_request(before + GOOD + after, seen=len(before + GOOD)) is None


def test_braces_that_nothing_opened_do_not_hide_a_command():
    assert box_request(GOOD + "}}") == of_first_image(28, 30, 56, 60)
    assert box_request(GOOD + "}}", seen=len(GOOD)) is None


def test_a_deeply_nested_command_is_no_crash():
    text = '{"bbox_2d": ' + "[" * 100_000 + "]" * 100_000 + "}"
    assert isinstance(box_request(text), BadJSON)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no braces at all",
        "a set {1, 2, 3}",
        '{"box": [1, 2, 3, 4]}',
        "}",
        '"bbox_2d": [1, 2, 3, 4]}',
        GOOD + " and the set {1, 2}",
        '{"why": "bbox_2d", "a": {}',
    ],
)
def test_prose_and_other_objects_ask_for_nothing(text):
    assert box_request(text) is None


@given(st.text(alphabet='{}[]", :0123456789bbox_2d-.e', max_size=60))
def test_no_text_makes_the_parser_fail(text):
    found = box_request(text)
    assert found is None or isinstance(found, BoxRequest | BadJSON)


@given(st.dictionaries(st.text(), st.integers()))
def test_json_objects_without_the_key_ask_for_nothing(content):
    content.pop("bbox_2d", None)
    literal = json.dumps(content)
    if "bbox_2d" not in literal and literal.count("{") == literal.count("}") == 1:
        assert box_request(literal) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>K7</answer>", "K7"),
        ("<think>a</think><answer> K7\n</answer> bye", "K7"),
        ("<answer>A1</answer><answer>B2</answer>", "B2"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("<answer></answer>", ""),
        ("<think>I put it in <answer> tags.</think><answer>K7</answer>", "K7"),
        ("<answer><answer>K7</answer>", "K7"),
        ("<answer>K7", None),
        ("K7</answer>", None),
        ("", None),
    ],
)
def test_the_last_complete_answer_counts(text, answer):
    assert extract_answer(text) == answer


WELL_FORMED = [
    "<think>a</think><answer>b</answer>",
    " <think>a</think>\n<answer>b</answer>\n",
    f"<think>a {GOOD} b</think><answer>c</answer>",
    "<think></think><answer>b</answer>",
    "<think>a\nb</think><answer>c\nd</answer>",
]
NOT_WELL_FORMED = [
    "",
    "<answer>b</answer>",
    "<think>a</think>",
    "<think>a</think><answer></answer>",
    "<think>a</think><answer>  </answer>",
    "<think>a</think><answer>b",
    "<think>a<answer>b</answer></think>",
    "<answer>b</answer><think>a</think>",
    "<think>a</think><think>a</think><answer>b</answer>",
    "<think>a</think><answer>b</answer><answer>c</answer>",
    "so <think>a</think><answer>b</answer>",
    "<think>a</think> so <answer>b</answer>",
    "<think>a</think><answer>b</answer> so",
]


@pytest.mark.parametrize("text", WELL_FORMED)
def test_well_formed(text):
    assert is_well_formed(text)


@pytest.mark.parametrize("text", NOT_WELL_FORMED)
def test_not_well_formed(text):
    assert not is_well_formed(text)


def test_reasoning_is_counted_without_tags_and_commands():
    text = f"<think>Look. {GOOD} It is K7.</think><answer>K7</answer>"
    assert reasoning_text(text) == "Look.  It is K7."
    assert reasoning_text("<think>ab") == "ab"
    assert reasoning_text("<answer>K7</answer>") == ""
    assert reasoning_text("<think>ab</think><answer>B2</answer> c<answer>K7</answer>") == "ab c"
    assert reasoning_text("<think>In <answer> tags: K7.</think><answer>K7</answer>") == "In  tags: K7."


@pytest.mark.parametrize("command", ["{'bbox_2d': [28, 30, 5, 6]}", "{bbox_2d: [28]}", '{"bbox_2d": 1}'])
def test_a_broken_command_is_no_reasoning(command):
    assert isinstance(box_request(command), BadJSON)
    assert reasoning_text(f"<think>{command * 9}") == ""
