"""The text contract: crop commands, tags, reasoning."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.protocol import (
    BadJSON,
    box_request,
    extract_answer,
    is_well_formed,
    reasoning_text,
    render_box,
)
from models.region import Box

BOX = Box(651, 158, 955, 588, "seen")


@given(st.tuples(*[st.integers(0, 4000) for _ in range(4)]), st.text(max_size=50))
def test_a_rendered_box_is_read_back_whatever_stands_before_it(corners, before):
    x1, y1, x2, y2 = corners
    box = Box(x1, y1, x2, y2, "seen")
    assert box_request(before + render_box(box)) == box


@pytest.mark.parametrize(
    "text",
    [
        'Let me look. {"bbox_2d": [651, 158, 955, 588]}',
        '{"bbox_2d":[651,158,955,588]}',
        '{ "bbox_2d" : [651.0, 158, 955, 588] }',
        '{"bbox_2d": [1, 2, 3, 4]} then {"bbox_2d": [651, 158, 955, 588]}',
        '{"bbox_2d": [651, 158, 955, 588], "label": "sign"}',
        '{"a": 1} {"bbox_2d": [651, 158, 955, 588]}]\n',  # a token glued a bracket to the brace
    ],
)
def test_a_command_is_found(text):
    assert box_request(text) == BOX


@pytest.mark.parametrize(
    "text",
    [
        '{"bbox_2d": [1, 2, 3]}',
        '{"bbox_2d": [1, 2, 3, 4, 5]}',
        '{"bbox_2d": []}',
        '{"bbox_2d": "1, 2, 3, 4"}',
        '{"bbox_2d": [1, 2, "3", 4]}',
        '{"bbox_2d": [1, 2, null, 4]}',
        '{"bbox_2d": [1, 2, true, 4]}',
        '{"bbox_2d": [1, 2, NaN, 4]}',
        '{"bbox_2d": [1, 2, Infinity, 4]}',
        '{"bbox_2d": [1, 2, 3 4]}',
        '{"bbox_2d": [1, 2, 3, 4}',
        "{'bbox_2d': [1, 2, 3, 4]}",
        '{"bbox_2d": {"x1": 1}}',
        '{"bbox_2d"}',
    ],
)
def test_a_malformed_command_is_named(text):
    assert isinstance(box_request("I look. " + text), BadJSON)


@pytest.mark.parametrize("text", ["", "}", "no braces", "a set {1, 2}", '{"label": "x"}', "{"])
def test_other_text_is_not_a_command(text):
    assert box_request(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think><answer> K7 </answer>", "K7"),
        ("<answer>a</answer> no, <answer>b</answer>", "b"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("<answer>open", None),
        ("K7", None),
        ("<answer></answer>", ""),
    ],
)
def test_the_last_complete_answer_counts(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        ("<think>a</think><answer>b</answer>", True),
        ("\n<think>a\n</think>\n<answer>b</answer>\n", True),
        ("<think>a</think><answer> </answer>", False),
        ("<think>a</think>", False),
        ("<answer>b</answer>", False),
        ("<answer>b</answer><think>a</think>", False),
        ("<think>a</think><answer>b</answer> and more", False),
        ("<think>a</think> well, <answer>b</answer>", False),
        ("<think>a</think><answer>b</answer><answer>b</answer>", False),
        ("<think>a<think></think><answer>b</answer>", False),
    ],
)
def test_the_format_rule(text, well_formed):
    assert is_well_formed(text) is well_formed


def test_reasoning_leaves_out_tags_commands_and_the_answer():
    text = '<think>I look. {"bbox_2d": [1, 2, 3, 4]} It says K7.</think><answer>K7</answer>'
    assert reasoning_text(text) == "I look.  It says K7."
