from collections.abc import Iterator

import pytest

from models.errors import ScoringError
from models.trajectory import Prompt
from models.vlir.judge_endpoints import EndpointJudge, open_judge
from models.vlir.judges import Nobody, judge
from models.vlir.local_judges import CoherenceJudge, SemanticUnitJudge
from models.vlir_config import FilterJudge
from tests.chat_endpoint import FakeEndpoint, completion, serving


@pytest.fixture
def endpoint() -> Iterator[FakeEndpoint]:
    with serving() as fake:
        yield fake


def at(endpoint: FakeEndpoint, **changes) -> FilterJudge:
    settings = {"max_tries": 2, "backoff_seconds": 0.001, "timeout_seconds": 5} | changes
    return FilterJudge(kind="http", endpoint=endpoint.url, served_model="judge-7b", **settings)


def text_of(body: dict) -> str:
    return body["messages"][0]["content"][0]["text"]


def test_hundreds_of_prompts_are_judged_and_failures_stay_where_they_are(endpoint):
    def answer(body, number):
        index = int(text_of(body))
        if index % 50 == 7:
            return 200, "<html>bad gateway</html>"
        return 200, completion("yes" if index % 2 else "No.") | {
            "usage": {"prompt_tokens": 9, "completion_tokens": 2}
        }

    endpoint.answer = answer
    opened = open_judge(at(endpoint), "coherence")
    found = judge(opened, [Prompt(str(index)) for index in range(200)])
    opened.close()
    expected = ["judge_failed" if index % 50 == 7 else "yes" if index % 2 else "no" for index in range(200)]
    assert [judgement.answer for judgement in found] == expected
    assert "bad gateway" in found[7].reply
    assert opened.name == "judge-7b"
    assert (opened.usage.num_requests, opened.usage.num_failed, opened.usage.prompt_tokens) == (
        200,
        4,
        196 * 9,
    )


def test_a_judge_is_asked_greedily_for_a_word_and_then_once_more(endpoint):
    endpoint.answer = lambda body, number: (200, completion("Perhaps."))
    opened = open_judge(at(endpoint, max_reply_tokens=77), "semantic_unit")
    (found,) = judge(opened, [Prompt("Is it?")])
    opened.close()
    assert (found.answer, found.num_asked) == ("unclear", 2)
    first, second = endpoint.bodies
    assert (first["temperature"], first["max_tokens"], first["model"]) == (0.0, 77, "judge-7b")
    assert second["temperature"] > 0
    # Nothing but what every endpoint takes.
    assert set(first) == {"model", "messages", "max_tokens", "temperature", "seed"}


def test_a_judge_that_is_down_stops_the_run(endpoint):
    endpoint.answer = lambda body, number: (503, "down for maintenance")
    opened = open_judge(at(endpoint), "coherence")
    with pytest.raises(ScoringError, match="down for maintenance"):
        judge(opened, [Prompt(str(index)) for index in range(20)])
    opened.close()


def test_the_key_of_a_judge_is_in_the_environment(endpoint, monkeypatch):
    monkeypatch.setenv("VLM_R3_JUDGE_API_KEY", "secret")
    endpoint.answer = lambda body, number: (200, completion("yes"))
    opened = open_judge(at(endpoint), "coherence")
    judge(opened, [Prompt("?")])
    opened.close()
    assert endpoint.headers[0]["Authorization"] == "Bearer secret"


def test_each_kind_of_judge(endpoint):
    assert isinstance(open_judge(FilterJudge(), "semantic_unit"), SemanticUnitJudge)
    assert isinstance(open_judge(FilterJudge(), "coherence"), CoherenceJudge)
    assert isinstance(open_judge(FilterJudge(kind="none"), "coherence"), Nobody)
    opened = open_judge(at(endpoint), "coherence")
    assert isinstance(opened, EndpointJudge)
    opened.close()
