from collections.abc import Sequence

import pytest
from PIL import Image

from models.engine import ScriptedEngine
from models.errors import RecordError, ScoringError
from models.region import Picture
from models.trajectory import GenerationRequest, Piece, Prompt, SampledSpan
from models.vlir.judges import (
    EngineJudge,
    Nobody,
    coherence_prompt,
    judge,
    parse_verdict,
    read_coherence_prompt,
    semantic_unit_prompt,
)

PROMPTS = [Prompt("first"), Prompt("second")]


class ScriptedJudge:
    """Answers from one list per attempt, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, *replies: Sequence[str]) -> None:
        self.replies = replies
        self.asked: list[tuple[int, list[str]]] = []

    def ask(self, prompts: Sequence[Prompt], *, attempt: int) -> list[str]:
        self.asked.append((attempt, [prompt.text for prompt in prompts]))
        return list(self.replies[attempt])


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("yes", "yes"),
        ("no", "no"),
        (" Yes.\n", "yes"),
        ("'no'", "no"),
        ("“YES”.", "yes"),
        ("\u2018no\u2019", "no"),
        ("yes and no", "unclear"),
        ("yes, it is a card", "unclear"),
        ("The answer is yes", "unclear"),
        ("no..", "unclear"),
        ("nope", "unclear"),
        ("y", "unclear"),
        ("是", "unclear"),
        ("", "unclear"),
    ],
)
def test_only_the_bare_word_is_a_verdict(reply, verdict):
    assert parse_verdict(reply) == verdict


def test_unclear_is_asked_once_more_and_alone():
    scripted = ScriptedJudge(["perhaps", "no"], ["yes"])
    first, second = judge(scripted, PROMPTS)
    assert scripted.asked == [(0, ["first", "second"]), (1, ["first"])]
    assert (first.answer, first.reply, first.num_asked) == ("yes", "yes", 2)
    assert (second.answer, second.num_asked) == ("no", 1)


def test_unclear_twice_stays_unclear():
    scripted = ScriptedJudge(["perhaps", "yes"], ["I cannot tell"])
    first, _ = judge(scripted, PROMPTS)
    assert (first.answer, first.reply, first.num_asked) == ("unclear", "I cannot tell", 2)


def test_a_judge_that_loses_a_reply_is_an_error():
    with pytest.raises(ScoringError, match="1 replies to 2 prompts"):
        judge(ScriptedJudge(["yes"]), PROMPTS)


def test_nothing_to_judge_asks_nobody():
    scripted = ScriptedJudge()
    assert judge(scripted, []) == []
    assert scripted.asked == []


def test_any_engine_can_judge_greedy_first_then_sampled():
    seen: list[GenerationRequest] = []

    def script(request: GenerationRequest) -> str:
        seen.append(request)
        return "hm" if request.temperature == 0 and request.prompt.text == "second" else "yes"

    found = judge(EngineJudge(ScriptedEngine(script), name="model"), PROMPTS)
    assert [judgement.answer for judgement in found] == ["yes", "yes"]
    assert [judgement.num_asked for judgement in found] == [1, 2]
    assert [request.temperature > 0 for request in seen] == [False, False, True]
    assert all(request.spans == () for request in seen)


def test_replies_come_back_in_order_whatever_order_they_finish_in():
    class Reversed(ScriptedEngine):
        def step(self) -> list[Piece]:
            return super().step()[::-1]

    engine = Reversed(lambda request: {"first": "yes", "second": "no"}[request.prompt.text])
    assert [found.answer for found in judge(EngineJudge(engine, name="model"), PROMPTS)] == ["yes", "no"]


class Failing(ScriptedEngine):
    """Says yes, but fails at the prompts that it is told."""

    def __init__(self, *bad: str) -> None:
        super().__init__(lambda request: "yes")
        self.bad = bad
        self.most = 0

    def step(self) -> list[Piece]:
        self.most = max(self.most, len(self._waiting))
        bad = {request.request_id for request in self._waiting if request.prompt.text in self.bad}
        return [
            Piece(piece.request_id, SampledSpan(""), "error", "timed out")
            if piece.request_id in bad
            else piece
            for piece in super().step()
        ]


def test_a_failed_request_is_no_verdict_and_leaves_the_others_alone():
    first, second = judge(EngineJudge(Failing("first"), name="model"), PROMPTS)
    assert (first.answer, first.reply, first.num_asked) == ("judge_failed", "timed out", 1)
    assert second.answer == "yes"


def test_a_judge_that_fails_at_everything_is_an_error():
    down = EngineJudge(Failing("first"), name="model")
    # Seven in a row may be chance, also over several batches; an answer between them starts the count again.
    for _ in range(7):
        assert judge(down, PROMPTS[:1])[0].answer == "judge_failed"
    judge(down, PROMPTS[1:])
    judge(down, PROMPTS[:1] * 7)
    with pytest.raises(ScoringError, match=r"failed at 8 requests in a row, the last: timed out"):
        judge(down, PROMPTS[:1])


def test_no_more_requests_are_in_flight_than_allowed():
    engine = Failing()
    found = judge(EngineJudge(engine, name="model", max_in_flight=3), PROMPTS * 5)
    assert [judgement.answer for judgement in found] == ["yes"] * 10
    assert engine.most == 3


def test_a_reply_that_was_cut_off_is_no_verdict():
    # A token is a character here: the third is the last.
    scripted = ScriptedEngine(lambda request: "yesss")
    (found,) = judge(EngineJudge(scripted, name="model", max_reply_tokens=3), PROMPTS[:1])
    assert (found.answer, found.reply, found.num_asked) == ("unclear", "yes [cut off]", 2)


def test_a_judge_may_think_first():
    scripted = ScriptedEngine(lambda request: "<think>No? It is one card.</think> Yes.")
    (found,) = judge(EngineJudge(scripted, name="model", max_reply_tokens=99), PROMPTS[:1])
    assert found.answer == "yes"


def test_nobody_gives_no_verdict():
    assert [found.answer for found in judge(Nobody(), PROMPTS)] == ["not_judged"] * 2


def test_the_prompts_are_those_of_the_paper():
    crop = Picture.of(Image.new("RGB", (28, 28)))
    unit = semantic_unit_prompt(crop)
    assert unit.pictures == (crop,)
    assert "complete and semantically meaningful visual unit" in unit.text
    assert unit.text.endswith("Now output 'yes' or 'no' directly.")
    text = coherence_prompt("what?", "K7", "<think>so</think>").text
    assert text.startswith("You need to make an in-depth assessment of this reasoning process.")
    assert "\nwhat?\nK7\n<think>so</think>\nNow output 'yes' or 'no' directly." in text


def test_a_coherence_prompt_can_be_read_back():
    prompt = coherence_prompt("what\nis it?", "K7", "line one\nline two")
    assert read_coherence_prompt(prompt.text) == ("what is it?", "K7", "line one\nline two")
    with pytest.raises(RecordError, match="Listing 4"):
        read_coherence_prompt("is this coherent?")
