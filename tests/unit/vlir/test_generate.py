from models.engine import ScriptedEngine
from models.rollout import rollout
from models.tiny.teacher import EmbeddedTeacher
from models.trajectory import GenerationRequest, Piece, SampledSpan
from models.vlir.filters import Judges
from models.vlir.generate import Teacher, generate, to_record
from models.vlir.local_judges import CoherenceJudge, SemanticUnitJudge

JUDGES = Judges(SemanticUnitJudge(), CoherenceJudge())


def _scenes(drawn):
    return {item.question.id: (item.scene, item.asked) for item in drawn}


def _perfect_teacher(perfect, drawn):
    return Teacher(EmbeddedTeacher(perfect, _scenes(drawn)), name="embedded", prompt_id="question")


def _generate(engine, questions, look, *, num_samples):
    teacher = Teacher(engine, name="scripted", prompt_id="question")
    return generate(teacher, questions, look=look, judges=JUDGES, num_samples=num_samples, seed=0)


def test_a_perfect_teacher_is_accepted_at_once(perfect, drawn, look):
    questions = [item.question for item in drawn]
    found = generate(
        _perfect_teacher(perfect, drawn), questions, look=look, judges=JUDGES, num_samples=3, seed=0
    )
    assert [record.question.id for record in found.accepted] == [question.id for question in questions]
    assert found.rejected == ()
    assert found.num_tries == len(questions)


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
    assert [record.question.id for record in found.accepted] == [easy[0].id, easy[1].id]
    # The second failed twice, the third three times.
    assert [record.question.id for record in found.rejected].count(easy[1].id) == 2
    assert [record.question.id for record in found.rejected].count(easy[2].id) == 3
    assert {record.reason for record in found.rejected} == {"wrong_answer"}
    assert found.num_tries == 1 + 3 + 3 == len(asked)
    # Every try has a seed of its own, or a sampling teacher would repeat itself.
    assert len(seeds) == 7


def test_an_engine_failure_is_a_reason_of_its_own(drawn, look):
    class Broken(ScriptedEngine):
        def step(self) -> list[Piece]:
            return [Piece(piece.request_id, SampledSpan(""), "error", "503") for piece in super().step()]

    found = _generate(Broken(lambda request: ""), [drawn[0].question], look, num_samples=1)
    (record,) = found.rejected
    assert record.reason == "engine_failure"
    assert record.verdicts[0].evidence == "503"


def test_a_record_is_the_trajectory_cut_after_each_crop_command(perfect, drawn, look):
    item = next(item for item in drawn if item.asked.kind == "add")
    teacher = _perfect_teacher(perfect, drawn)
    (trajectory,) = rollout(teacher.engine, [item.question], look=look, seed=5)
    record = to_record(item.question, trajectory, look=look, teacher=teacher)
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
    record = to_record(item.question, trajectory, look=look, teacher=Teacher(engine, "t", "p"))
    assert record.steps[0].text.endswith("]}")
    assert record.steps[1].text.startswith(". It says so.")
