"""How the connections of a build are shared out over its processes."""

import pytest

from models.config import EngineConfig, FilterJudge, QuestionMix, TeacherConfig, VLIRConfig
from models.errors import EngineError
from models.presets import load_preset
from models.run_config import VLIRRun
from models.vlir.worker import Report
from models.vlir.workers import num_workers, split_connections

PRESET = load_preset("tiny")


def request(*, teacher: int, judge: int | None = None) -> VLIRRun:
    """A build with so many connections."""
    url = "http://127.0.0.1:9/v1"
    engine = PRESET.engine.model_dump() | {"kind": "http", "endpoint": url, "served_model": "m"}
    one = FilterJudge(kind="none")
    if judge is not None:
        one = FilterJudge(kind="http", endpoint=url, served_model="m", num_connections=judge)
    return VLIRRun(
        vlir=VLIRConfig(
            teacher=TeacherConfig(
                kind="http", engine=EngineConfig.model_validate(engine | {"max_num_seqs": teacher})
            ),
            semantic_unit=one,
            coherence=one,
        ),
        look=PRESET.look,
        engine=PRESET.engine,
        seed=0,
        rgrpo_questions=QuestionMix(num_questions=4, kinds={}),
        evaluation_questions=QuestionMix(num_questions=4, kinds={}),
    )


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_the_parts_are_all_connections_and_nearly_equal(number: int) -> None:
    parts = split_connections(request(teacher=100, judge=10), number)
    teachers = [part.vlir.teacher.engine.max_num_seqs for part in parts if part.vlir.teacher.engine]
    judges = [part.vlir.coherence.num_connections for part in parts]
    assert (sum(teachers), sum(judges)) == (100, 10)
    assert max(teachers) - min(teachers) <= 1
    assert judges == [part.vlir.semantic_unit.num_connections for part in parts]


def test_nothing_but_connections_differs() -> None:
    whole = request(teacher=64)
    for part in split_connections(whole, 2):
        changed = part.model_dump()
        changed["vlir"]["teacher"]["engine"]["max_num_seqs"] = 64
        for name in ("semantic_unit", "coherence"):
            changed["vlir"][name]["num_connections"] = whole.vlir.coherence.num_connections
        assert changed == whole.model_dump()


@pytest.mark.parametrize(
    ("cores", "teacher", "judge", "expected"),
    [(2, 256, None, 2), (64, 256, None, 8), (16, 1, None, 1), (16, 40, None, 2), (16, 256, 3, 3)],
)
def test_there_is_a_worker_for_each_core_that_has_something_to_do(
    monkeypatch: pytest.MonkeyPatch, cores: int, teacher: int, judge: int | None, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert num_workers(request(teacher=teacher, judge=judge)) == expected


def test_a_report_raises_what_failed() -> None:
    Report().check()
    with pytest.raises(EngineError, match="gone"):
        Report(failure=(EngineError, "gone")).check()
