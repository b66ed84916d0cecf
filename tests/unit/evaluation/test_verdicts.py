"""Verdicts on disk: found again by what they are about, never for another judge, whole whoever writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from models.evaluation.verdicts import Case, Verdict, VerdictStore

CASE = Case(benchmark="mme", question="Is it red?", gold="Yes", answer="Reddish.", judge_version="v1")


def verdict_on(case: Case, verdict: str = "Yes") -> Verdict:
    return Verdict(case=case, judge_model="m", verdict=verdict, reply=f" {verdict}.")


def test_a_verdict_is_found_again(tmp_path: Path) -> None:
    store = VerdictStore(tmp_path / "verdicts")
    assert store.read(CASE) is None
    store.write(verdict_on(CASE))
    assert VerdictStore(tmp_path / "verdicts").read(CASE) == verdict_on(CASE)


@pytest.mark.parametrize("part", list(Case.model_fields))
def test_every_part_of_a_case_tells_it_from_others(part: str, tmp_path: Path) -> None:
    store = VerdictStore(tmp_path)
    store.write(verdict_on(CASE))
    assert store.read(CASE.model_copy(update={part: "other"})) is None


def test_parts_do_not_run_into_each_other() -> None:
    one = CASE.model_copy(update={"gold": 'a", "b', "answer": "c"})
    other = CASE.model_copy(update={"gold": "a", "answer": 'b", "c'})
    assert one.key != other.key


@pytest.mark.parametrize("content", ["", "{", "[]", '{"verdict": "Yes"}'])
def test_a_file_that_is_no_verdict_counts_as_none(content: str, tmp_path: Path) -> None:
    store = VerdictStore(tmp_path)
    store.write(verdict_on(CASE))
    (file,) = tmp_path.rglob("*.json")
    file.write_text(content)
    assert store.read(CASE) is None
    store.write(verdict_on(CASE))
    assert store.read(CASE) == verdict_on(CASE)


def test_processes_that_write_at_once_leave_whole_verdicts(tmp_path: Path) -> None:
    """Two children write the same 200 verdicts over and over while this process reads them."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom tests.unit.evaluation.test_verdicts import *\n"
        "store = VerdictStore(Path(sys.argv[1]))\n"
        "for _ in range(3):\n"
        "    for number in range(200):\n"
        "        store.write(verdict_on(CASE.model_copy(update={'answer': str(number)}), 'x' * 5000))\n"
    )
    root = Path(__file__).resolve().parents[3]
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=root) for _ in range(2)]
    store, found = VerdictStore(tmp_path), 0
    while any(writer.poll() is None for writer in writers):
        for number in range(200):
            path = tmp_path / (key := CASE.model_copy(update={"answer": str(number)}).key)[:2] / f"{key}.json"
            if path.exists():
                Verdict.model_validate_json(path.read_bytes())
                found += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert found > 0
    assert len(list(tmp_path.rglob("*.json"))) == 200
    assert not list(tmp_path.rglob("*.partial"))
    assert store.read(CASE.model_copy(update={"answer": "7"})) is not None
