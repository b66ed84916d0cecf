"""The sentences of the world."""

import pytest

from models.tiny import phrases


def test_box_json_is_the_form_of_the_protocol() -> None:
    assert phrases.box_json((2, 4, 14, 12)) == '{"bbox_2d": [2, 4, 14, 12]}'


@pytest.mark.parametrize("manner", range(phrases.NUM_MANNERS))
def test_rationales_carry_what_was_seen_and_end_in_the_final_form(manner: int) -> None:
    before, after = phrases.with_tags(phrases.read_rationale(manner, "red", "K7"), "K7")
    assert before.startswith("<think>")
    assert "red card" in before
    assert "K7" not in before
    assert after.endswith("K7.</think><answer>K7</answer><|im_end|>")

    first, second, last = phrases.with_tags(phrases.add_rationale(manner, ("red", "blue"), ("K3", "T4")), "7")
    assert "red card" in first
    assert "K3" in second
    assert "blue card" in second
    # 3 + 4 = 7
    assert "T4" in last
    assert last.endswith("3 + 4 = 7.</think><answer>7</answer><|im_end|>")

    (only,) = phrases.with_tags(phrases.where_rationale(manner, "red", "top left"), "top left")
    assert only.startswith("<think>")
    assert only.index("red card") < only.index("top left")
    assert only.endswith("</think><answer>top left</answer><|im_end|>")
