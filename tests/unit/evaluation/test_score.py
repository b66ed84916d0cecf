"""The command line that scores a file of predictions."""

import json
import time

import pytest

from models.benchmarks.scorer import BENCHMARKS, get_scorer, row_of
from models.evaluation.score import main
from tests.oracle_vectors import FOLDER, close, read_vectors, summarise_vectors

LINE = {"id": "q1", "row": {"answers": ["Café 7"]}, "prediction": "café 7"}

NUM_TIMED = 10_000
MAX_SECONDS = 10  # of the processor: what else the machine does is not counted


def write(path, lines) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_prints_each_score_and_then_the_metrics(name, capsys):
    assert main([name, str(FOLDER / f"{name}.jsonl")]) == 0
    *scores, metrics = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert scores == [{"id": vector["id"], **close(vector["expected"])} for vector in read_vectors(name)]
    assert metrics == close(summarise_vectors(name))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_scores_ten_thousand_predictions_in_time(name):
    scorer, vectors = get_scorer(name), read_vectors(name)
    repeated = [vectors[index % len(vectors)] for index in range(NUM_TIMED)]
    started = time.process_time()
    for vector in repeated:
        scorer.score(row_of(vector, scorer), vector["prediction"])
    assert time.process_time() - started < MAX_SECONDS


def test_long_answers_take_no_longer():
    # 10,000 answers of 2,000 characters: what a model that never stops would leave.
    scorer = get_scorer("docvqa")
    started = time.process_time()
    for index in range(NUM_TIMED):
        scorer.score({"answers": ["a long answer " * 4]}, f"{index} " * 400)
    assert time.process_time() - started < MAX_SECONDS


def test_text_is_printed_as_it_is(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", [{**LINE, "id": "é\u2028", "more": 1}])
    assert main(["docvqa", path]) == 0
    assert capsys.readouterr().out.split("\n")[0] == '{"id": "é\u2028", "anls": 1.0}'


def test_half_a_surrogate_pair_is_no_crash(tmp_path, capsysbinary):
    path = write(tmp_path / "p.jsonl", [{**LINE, "id": "\ud800"}])
    assert main(["docvqa", path]) == 0
    assert json.loads(capsysbinary.readouterr().out.splitlines()[0])["id"] == "\ud800"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "'' is not JSON"),
        ("{", "'{' is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"id": "2", "row": {}}', "field 'prediction' is missing"),
        ('{"id": "2", "row": {}, "prediction": null}', "field 'prediction' is 'null', not text"),
        ('{"id": "2", "row": [], "prediction": ""}', "field 'row' is '[]', not an object"),
        ('{"id": "2", "row": {}, "prediction": ""}', "no column 'answers'"),
    ],
)
def test_a_malformed_line_is_named_and_nothing_is_printed(line, message, tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{line}\n", encoding="utf-8")
    assert main(["docvqa", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{path}, line 2: " in printed.err
    assert message in printed.err
    # The way out.
    assert "Each line is an object like" in printed.err or "Give the rows" in printed.err


def test_bytes_that_are_no_utf8_are_named(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n\xff\n")
    assert main(["docvqa", str(path)]) == 2
    assert "line 2: not UTF-8" in capsys.readouterr().err


def test_an_empty_or_missing_file_is_an_error(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", [])
    assert main(["docvqa", path]) == 2
    assert "holds no line" in capsys.readouterr().err
    assert main(["docvqa", str(tmp_path / "none.jsonl")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_an_incomplete_pair_prints_nothing(tmp_path, capsys):
    row = {"question_id": "1", "answer": "Yes", "category": "existence"}
    assert main(["mme", write(tmp_path / "p.jsonl", [{"id": "1", "row": row, "prediction": "yes"}])]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "two questions" in printed.err


def test_an_unknown_benchmark_lists_the_seven(tmp_path, capsys):
    assert main(["mmmu-pro", write(tmp_path / "p.jsonl", [LINE])]) == 2
    printed = capsys.readouterr().err
    assert all(name in printed for name in BENCHMARKS)
