import threading
import time

import pytest

from models.engine import ScriptedEngine
from models.errors import ScoringError
from models.records import VLIRRecord
from models.rollout import Asked, rollout
from models.tiny.teacher import EmbeddedTeacher
from models.trajectory import GenerationRequest, Piece, SampledSpan
from models.vlir.entries import Ready
from models.vlir.filters import Judges
from models.vlir.generate import Task, Teacher, Tried, generate, to_record
from models.vlir.local_judges import CoherenceJudge, SemanticUnitJudge

JUDGES = Judges(SemanticUnitJudge(), CoherenceJudge())


def _scenes(drawn):
    return {item.question.id: (item.scene, item.asked) for item in drawn}


def _generate(engine, questions, look, *, num_samples, judges=JUDGES, max_in_flight=8) -> list[Tried]:
    """All tries, in the order in which they finished."""
    teacher = Teacher(engine, "scripted", max_in_flight)
    tasks = (Task(Ready(each, Asked.of(each, look), "question"), 0, 0, each.id) for each in questions)
    return list(generate(teacher, tasks, look=look, judges=judges, num_samples=num_samples))


def _accepted(found: list[Tried]) -> list[str]:
    return [tried.record.question.id for tried in found if not tried.record.reason]


def _rejected(found: list[Tried]) -> list[VLIRRecord]:
    return [tried.record for tried in found if tried.record.reason]


def test_a_perfect_teacher_is_accepted_at_once(perfect, drawn, look):
    questions = [item.question for item in drawn]
    found = _generate(EmbeddedTeacher(perfect, _scenes(drawn)), questions, look, num_samples=3)
    assert sorted(_accepted(found)) == sorted(question.id for question in questions)
    assert len(found) == len(questions)


def test_only_rejected_questions_are_asked_again_and_every_rejected_try_is_kept(drawn, look):
    easy = [item.question for item in drawn if item.asked.kind == "where"][:3]
    asked: list[str] = []
    seeds: set[int | None] = set()

    def script(request: GenerationRequest) -> str:
        """The first question is answered at once, the second at the third try, the third never."""
        identity = request.request_id.partition("#")[0]
        asked.append(identity)
        seeds.add(request.seed)
        index = [question.id for question in easy].index(identity)
        is_right = index == 0 or (index == 1 and asked.count(identity) == 3)
        answer = easy[index].answers[0] if is_right else "in the middle"
        scene, where = _scenes(drawn)[identity]
        color = scene.cards[where.named[0]].color
        return f"<think>I see the {color} card at the {answer}.</think><answer>{answer}</answer>"

    found = _generate(ScriptedEngine(script), easy, look, num_samples=3)
    assert _accepted(found) == [easy[0].id, easy[1].id]
    # The second failed twice, the third three times.
    rejected = _rejected(found)
    assert [record.question.id for record in rejected].count(easy[1].id) == 2
    assert [record.question.id for record in rejected].count(easy[2].id) == 3
    assert {record.reason for record in rejected} == {"wrong_answer"}
    assert len(found) == 1 + 3 + 3 == len(asked)
    # Every try has a seed of its own, or a sampling teacher would repeat itself.
    assert len(seeds) == 7


def test_an_engine_failure_is_a_reason_of_its_own(drawn, look):
    class Broken(ScriptedEngine):
        def step(self) -> list[Piece]:
            return [Piece(piece.request_id, SampledSpan(""), "error", "503") for piece in super().step()]

    found = _generate(Broken(lambda request: ""), [drawn[0].question], look, num_samples=1)
    (record,) = _rejected(found)
    assert record.reason == "engine_failure"
    assert record.verdicts[0].evidence == "503"


def test_a_record_is_the_trajectory_cut_after_each_crop_command(perfect, drawn, look):
    item = next(item for item in drawn if item.asked.kind == "add")
    engine = EmbeddedTeacher(perfect, _scenes(drawn))
    (trajectory,) = rollout(engine, [item.question], look=look, seed=5)
    record = to_record(item.question, trajectory, look=look, teacher="t", prompt_id="p")
    assert record.text == trajectory.text
    assert record.boxes == trajectory.accepted_boxes
    assert [step.text.endswith("]}") for step in record.steps] == [True, True, False]
    assert record.steps[-1].box is None
    # A perfect teacher's boxes are the gold boxes, a quarter as large in the view of 112 pixels.
    quarter = [tuple(corner / 4 for corner in box.corners()) for box in item.question.gold_boxes]
    assert [box.corners() for box in record.boxes] == quarter
    assert record.final_answer == item.question.answers[0]
    assert record.seen_size == (112, 112)


def test_characters_glued_to_the_closing_brace_belong_after_the_crop(drawn, look):
    item = next(item for item in drawn if item.asked.kind == "read")
    x1, y1, x2, y2 = (round(corner / 4) for corner in item.question.gold_boxes[0].corners())

    class Glued(ScriptedEngine):
        """A tokenizer whose last token was `}.`: the stop string is not the end of the text."""

        def step(self) -> list[Piece]:
            return [
                Piece(piece.request_id, SampledSpan(piece.span.text + "."), "stop")
                if piece.span.text.endswith("}")
                else piece
                for piece in super().step()
            ]

    def script(request: GenerationRequest) -> str:
        if not request.spans:
            return f'<think>Look. {{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}'
        return " It says so.</think><answer>K7</answer>"

    engine = Glued(script)
    (trajectory,) = rollout(engine, [item.question], look=look)
    record = to_record(item.question, trajectory, look=look, teacher="t", prompt_id="p")
    assert record.steps[0].text.endswith("]}")
    assert record.steps[1].text.startswith(". It says so.")


def test_no_more_are_in_flight_than_allowed_and_one_takes_the_place_of_another(perfect, drawn, look):
    class Counting(EmbeddedTeacher):
        """The embedded teacher, answering one request per step."""

        most = 0

        def step(self) -> list[Piece]:
            self.most = max(self.most, len(self._waiting))
            later, self._waiting = self._waiting[1:], self._waiting[:1]
            pieces = super().step()
            self._waiting += later
            return pieces

    engine = Counting(perfect, _scenes(drawn))
    found = _generate(engine, [item.question for item in drawn], look, num_samples=1, max_in_flight=5)
    assert len(found) == len(drawn)
    assert engine.most == 5


def test_tasks_that_must_wait_are_asked_for_again(perfect, drawn, look):
    ready = [Ready(item.question, Asked.of(item.question, look), "question") for item in drawn[:4]]

    def tasks():
        for number, each in enumerate(ready):
            if number == 2:
                yield None  # two are in work; the third comes when they are done
            yield Task(each, 0, 0, number)

    teacher = Teacher(EmbeddedTeacher(perfect, _scenes(drawn)), "embedded", 8)
    found = list(generate(teacher, tasks(), look=look, judges=JUDGES, num_samples=1))
    assert sorted(tried.task.place for tried in found) == [0, 1, 2, 3]


def test_a_judge_that_breaks_stops_the_generation_and_leaves_nothing_running(perfect, drawn, look):
    class Broken(CoherenceJudge):
        def ask(self, prompts, *, attempt):
            raise ScoringError("the judge is down")

    engine = EmbeddedTeacher(perfect, _scenes(drawn))
    judges = Judges(SemanticUnitJudge(), Broken())
    with pytest.raises(ScoringError, match="the judge is down"):
        _generate(engine, [item.question for item in drawn], look, num_samples=1, judges=judges)
    assert not engine._waiting
    deadline = time.monotonic() + 60
    while any(thread.name.startswith("judging") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_try_has_the_temperature_of_its_number(drawn, look):
    seen: list[float] = []

    def script(request: GenerationRequest) -> str:
        seen.append(request.temperature)
        return "<think>No.</think><answer>nothing</answer>"

    teacher = Teacher(ScriptedEngine(script), "t", 1, lambda attempt: (0.0, 0.7)[min(attempt, 1)])
    question = drawn[0].question
    tasks = iter([Task(Ready(question, Asked.of(question, look), "question"), 0, 0, None)])
    list(generate(teacher, tasks, look=look, judges=JUDGES, num_samples=3))
    assert seen == [0.0, 0.7, 0.7]


def test_a_given_box_must_come_back_as_it_was(drawn, look):
    item = next(item for item in drawn if item.asked.kind == "read")
    answer = item.question.answers[0]
    given = '{"bbox_2d": [8, 8, 40, 40]}'

    def tried(written: str) -> VLIRRecord:
        def script(request: GenerationRequest) -> str:
            return (
                f"<think>Look. {written}"
                if not request.spans
                else f" {answer}.</think><answer>{answer}</answer>"
            )

        ready = Ready(item.question, Asked.of(item.question, look), "listing-2", (given,))
        tasks = iter([Task(ready, 0, 0, None)])
        teacher = Teacher(ScriptedEngine(script), "t", 1)
        (found,) = generate(teacher, tasks, look=look, judges=JUDGES, num_samples=1)
        return found.record

    assert tried(given).reason != "box_modified"
    other = tried('{"bbox_2d": [8, 8, 40, 41]}')
    assert other.reason == "box_modified"
    assert "[8, 8, 40, 41]" in other.verdicts[0].evidence
    assert tried('{"bbox_2d":[8,8,40,40]}').reason == "box_modified"
