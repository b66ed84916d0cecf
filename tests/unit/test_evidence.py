"""Evidence of a version: read back as it was written, and known again when a run is repeated."""

import json
from pathlib import Path

import pytest

from models.errors import RecordError
from models.evidence import Evidence
from tests.evidence_examples import make_evidence


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    evidence = make_evidence()
    evidence.write(tmp_path)
    assert Evidence.read(tmp_path) == evidence
    assert evidence.missing() == ()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "evidence/9"}, "is 'evidence/9'; this program knows 'evidence/1'"),
        ({"model": None}, "holds no evidence"),
        ({"verdict": "fine"}, "holds no evidence"),
    ],
)
def test_what_this_program_does_not_know_is_refused(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    values = {**make_evidence().model_dump(mode="json"), **changes}
    (tmp_path / "evidence.json").write_text(json.dumps(values))
    with pytest.raises(RecordError, match=says):
        Evidence.read(tmp_path)


def test_a_repetition_is_the_same_and_another_measurement_is_not() -> None:
    evidence = make_evidence()
    again = evidence.model_copy(update={"tracking_run": "another", "git_commit": "another"})
    assert again.identity() == evidence.identity()
    for changes in ({"parent_version": "1"}, {"code_digest": "other"}, {"base_licence": "other"}):
        assert evidence.model_copy(update=changes).identity() != evidence.identity()
