"""Benchmarks from their Parquet files to their metrics, answered by a script."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models.benchmarks.published import PublishedSet, get_published
from models.benchmarks.scorer import BENCHMARKS
from models.config import EMBEDDED_MODEL, EngineConfig, Look
from models.engine import Engine, ScriptedEngine
from models.errors import ConfigError, EngineError, RecordError, ScoringError
from models.evaluation.benchmark import measure
from models.evaluation.benchmark_results import BenchmarkResults, to_text
from models.evaluation.benchmark_rows import AskedRow, read_asked
from models.evaluation.metrics import wilson_interval
from models.evaluation.switch import folder_digest
from models.protocol import SEVERAL_IMAGES, SYSTEM_PROMPT
from models.run_config import BenchmarkRun
from models.rundir import RunDir
from models.trajectory import CropSpan, GenerationRequest, Piece, SampledSpan, StopReason
from tests.benchmark_examples import ROWS, file_name, picture, schema_of, small, write

LOOK = Look(max_pixels=12544, max_sampled_tokens=400)
# The right answer to the first row of each benchmark, and what it is worth.
FIRST = {
    "mme": "Yes",
    "mmmu": "A",
    "mathvista": "1.2",
    "mathvision": "B",
    "scienceqa": "B",
    "docvqa": "1999",
    "hallusionbench": "No",
}
# Pictures of the two rows, where it is not one each: MMMU's first has two, ScienceQA's second none.
NUM_PICTURES = {"mmmu": [2, 1], "scienceqa": [1, 0]}


class Counted:
    """Opens scripted engines and remembers what they were asked."""

    def __init__(self, script: Callable[[GenerationRequest], str], *, broken: frozenset[str] = frozenset()):
        self.script, self.broken = script, broken
        self.asked: list[GenerationRequest] = []
        self.num_opened = 0

    def __call__(self) -> Engine:
        self.num_opened += 1
        return CountedEngine(self)


class CountedEngine(ScriptedEngine):
    def __init__(self, owner: Counted) -> None:
        super().__init__(owner.script)
        self._owner = owner

    def _answer(self, request: GenerationRequest) -> Piece:
        self._owner.asked.append(request)
        if request.request_id.removesuffix("#0") in self._owner.broken:
            return Piece(request.request_id, SampledSpan("", (), ()), "error", "out of memory")
        return super()._answer(request)


def set_of(name: str, folder: Path, rows: list[dict] | None = None) -> PublishedSet:
    """The miniature of a benchmark, as if it had been published with these rows."""
    published, split, usual = small(name)
    rows = usual if rows is None else rows
    write(folder / file_name(split), rows, schema_of(published))
    return replace(published, splits={split: len(rows)})


def config_of(name: str, folder: Path, **changes: object) -> BenchmarkRun:
    values = {
        "benchmark": name,
        "data_path": str(folder),
        "split": ROWS[name][0],
        "model_path": "embedded",
        "look": LOOK,
        "engine": EngineConfig(max_num_seqs=1),
        "seed": 0,
    }
    return BenchmarkRun.model_validate({**values, **changes})


def mme_rows(num_pairs: int) -> list[dict]:
    return [
        {**row, "question_id": f"OCR/{number}.png"} for number in range(num_pairs) for row in ROWS["mme"][1]
    ]


def yes(request: GenerationRequest) -> str:
    """Looks once, then says yes."""
    if any(isinstance(span, CropSpan) for span in request.spans):
        return "</think><answer>Yes</answer>"
    return '<think>{"bbox_2d": [10, 10, 40, 40]}'


def run_of(folder: Path, config: BenchmarkRun) -> RunDir:
    return RunDir.create(folder / "run", config)


def outcomes(run: RunDir) -> dict[str, str]:
    return {row.id: row.outcome for row in read_asked(run.path / "predictions.parquet")}


@pytest.mark.parametrize("style", ["direct", "look-again"])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_end_to_end(name: str, style: str, tmp_path: Path) -> None:
    published = set_of(name, tmp_path)
    config = config_of(name, tmp_path, style=style)
    answer = FIRST[name]

    def script(request: GenerationRequest) -> str:
        assert request.temperature == 0
        expected = SYSTEM_PROMPT
        if len(request.prompt.pictures) == 2:
            expected += SEVERAL_IMAGES.format(number=2)
        assert request.prompt.system == (None if style == "direct" else expected)
        return answer if style == "direct" else f"<think>I see.</think><answer>{answer}</answer>"

    run = run_of(tmp_path, config)
    results = measure(run, config, published, Counted(script))
    rows = read_asked(run.path / "predictions.parquet")
    counts = (results.num_rows, results.num_scored, results.num_failed, results.num_unasked)
    assert counts == (2, 2, 0, 0)
    assert [len(row.transcript.views) for row in rows] == NUM_PICTURES.get(name, [1, 1])
    assert not results.data.is_partial
    assert results.metrics
    assert results.model.digest == folder_digest(EMBEDDED_MODEL)
    assert BenchmarkResults.load(run.path / "metrics.json") == results
    assert [row.prediction for row in rows] == [answer, answer]
    assert rows[0].score[results.headline_field]
    assert 0 <= results.headline.low <= results.headline.value <= results.headline.high <= 1
    logged = next(line for line in run.metrics() if f"benchmark/{name}/headline" in line)
    assert logged[f"benchmark/{name}/num_unasked"] == 0


def test_the_metrics_are_those_of_the_scorer(tmp_path: Path) -> None:
    """Yes to both questions of a picture: one of two is right, and no pair: 50 + 0 of 200 points."""
    published = set_of("mme", tmp_path)
    config = config_of("mme", tmp_path)
    results = measure(run_of(tmp_path, config), config, published, Counted(yes))
    assert results.metrics is not None
    assert results.metrics["lmms_eval"]["sum"] == 50.0
    assert results.headline == wilson_interval(1, 2)
    assert (results.scorer, results.scorer_version, results.primary) == ("mme", "1", "lmms_eval")
    assert (results.crops_per_question, results.format_rate, results.truncation_rate) == (1.0, 1.0, 0.0)
    assert "50.0 %" in to_text(results)
    assert to_text(results).isascii()


def test_a_broken_row_is_counted_and_never_scored(tmp_path: Path) -> None:
    """100 pairs and one broken row: 199 scored, and no points, because a pair lost its half."""
    rows = mme_rows(100)
    published, config = set_of("mme", tmp_path, rows), config_of("mme", tmp_path)
    run = run_of(tmp_path, config)
    broken = Counted(yes, broken=frozenset({"OCR/3.png#6"}))
    results = measure(run, config, published, broken)
    assert (results.num_rows, results.num_scored, results.num_failed) == (200, 199, 1)
    assert results.headline == wilson_interval(99, 199)
    assert results.metrics is None
    assert "'OCR/3.png' of OCR has 1 predictions" in results.metrics_note
    (failed,) = (r for r in read_asked(run.path / "predictions.parquet") if r.outcome == "failed")
    assert (failed.id, failed.score, failed.reason) == ("OCR/3.png#6", None, "engine_error: out of memory")
    assert "1 rows failed on our side" in to_text(results)

    # The next start asks this row and no other.
    again = Counted(yes)
    results = measure(run, config, published, again)
    assert {request.request_id for request in again.asked} == {"OCR/3.png#6#0"}
    assert (results.num_scored, results.num_failed) == (200, 0)
    assert results.metrics is not None
    assert results.metrics["lmms_eval"]["sum"] == 50.0


def test_too_many_broken_rows_stop_the_run_and_keep_the_others(tmp_path: Path) -> None:
    published, config = set_of("mme", tmp_path, mme_rows(5)), config_of("mme", tmp_path)
    run = run_of(tmp_path, config)
    with pytest.raises(EngineError, match=r"1 of 10 rows failed.*'OCR/2.png#4'.*out of memory"):
        measure(run, config, published, Counted(yes, broken=frozenset({"OCR/2.png#4"})))
    assert not (run.path / "metrics.json").exists()
    again = Counted(yes)
    assert measure(run, config, published, again).num_scored == 10
    asked = {request.request_id for request in again.asked}
    assert "OCR/2.png#4#0" in asked
    assert "OCR/0.png#0#0" not in asked


def test_an_interrupted_run_goes_on_at_the_row(tmp_path: Path) -> None:
    published, config = set_of("mme", tmp_path, mme_rows(8)), config_of("mme", tmp_path)
    run = run_of(tmp_path, config)
    answers = iter(range(20))

    def interrupted(request: GenerationRequest) -> str:
        if next(answers) == 13:
            raise KeyboardInterrupt
        return yes(request)

    with pytest.raises(KeyboardInterrupt):
        measure(run, config, published, Counted(interrupted))
    kept = {row.id for path in run.path.glob("rows/*") for row in read_asked(path)}
    assert 0 < len(kept) < 16
    again = Counted(yes)
    results = measure(run, config, published, again)
    assert {request.request_id.removesuffix("#0") for request in again.asked}.isdisjoint(kept)
    assert results.num_scored == 16

    # Unbroken, the same numbers; and a finished run starts no engine.
    (tmp_path / "unbroken").mkdir()
    unbroken = measure(run_of(tmp_path / "unbroken", config), config, published, Counted(yes))
    timeless = {"seconds_per_question": 0.0}
    assert results.model_copy(update=timeless) == unbroken.model_copy(update=timeless)
    idle = Counted(yes)
    assert measure(run, config, published, idle) == results
    assert idle.num_opened == 0


def test_rows_of_another_set_are_not_used(tmp_path: Path) -> None:
    config = config_of("mme", tmp_path)
    run = run_of(tmp_path, config)
    measure(run, config, set_of("mme", tmp_path), Counted(yes))
    changed = [{**row, "image": picture("blue")} for row in ROWS["mme"][1]]
    again = Counted(yes)
    measure(run, config, set_of("mme", tmp_path, changed), again)
    assert len({request.request_id for request in again.asked}) == 2


def test_a_picture_that_cannot_be_used_is_a_row_with_a_reason(tmp_path: Path) -> None:
    """One is no picture, one is 300 times as wide as high; both are kept, beside the two that were asked."""
    rows = mme_rows(2)
    rows[0] = {**rows[0], "image": {"bytes": b"no picture", "path": None}}
    rows[1] = {**rows[1], "image": picture("red", (3000, 10))}
    published, config = set_of("mme", tmp_path, rows), config_of("mme", tmp_path)
    run = run_of(tmp_path, config)
    results = measure(run, config, published, Counted(yes))
    assert (results.num_rows, results.num_scored, results.num_unasked) == (4, 2, 2)
    first, second, *_ = read_asked(run.path / "predictions.parquet")
    assert "does not open" in first.reason
    assert "over 200 times" in second.reason
    assert "2 rows were not asked" in to_text(results)


def test_a_crop_is_cut_from_the_picture_that_is_named(tmp_path: Path) -> None:
    """MMMU's first row shows a red picture and a green one; the model looks into both."""
    commands = ('<think>{"bbox_2d": [5, 5, 50, 50], "image": 2}', ' and {"bbox_2d": [5, 5, 50, 50]}')

    def script(request: GenerationRequest) -> str:
        turn = len(request.spans) // 2
        return commands[turn] if turn < 2 else "</think><answer>A</answer>"

    rows = ROWS["mmmu"][1][:1]
    published, config = set_of("mmmu", tmp_path, rows), config_of("mmmu", tmp_path)
    engines = Counted(script)
    run = run_of(tmp_path, config)
    measure(run, config, published, engines)
    last = engines.asked[-1]
    colours = [picture.image.getpixel((0, 0)) for picture in last.prompt.pictures]
    assert colours == [(255, 0, 0), (0, 128, 0)]
    crops = [span for span in last.spans if isinstance(span, CropSpan)]
    assert [crop.picture.image.getpixel((0, 0)) for crop in crops] == list(reversed(colours))
    (row,) = read_asked(run.path / "predictions.parquet")
    # The same box in two pictures is not redundant.
    assert row.transcript.errors == ()
    assert [crop.image for crop in row.transcript.crops] == [2, 1]
    assert [event.image for event in row.transcript.events] == [2, 1]
    assert row.transcript.question_text.startswith("Which is older, Image 1:  or Image 2: ?")
    assert [view.place for view in row.transcript.views] == [25, 38]


def test_formulas_and_long_rationales_are_not_cut_off(tmp_path: Path) -> None:
    """Closing braces close no box in a direct answer, and do not use up turns in a rationale.

    The preset's limit of 400 tokens, here characters, bounds training, not measuring.
    """
    formula = "$" + r"\frac{1}{2}" * 100 + "$"
    published = set_of("mathvision", tmp_path)
    direct = config_of("mathvision", tmp_path, style="direct")
    run = run_of(tmp_path, direct)
    measure(run, direct, published, Counted(lambda request: formula))
    rows = read_asked(run.path / "predictions.parquet")
    assert {(row.prediction, row.transcript.stop) for row in rows} == {
        (formula, StopReason.END_WITHOUT_ANSWER)
    }

    def thinking(request: GenerationRequest) -> str:
        num_braces = sum(isinstance(span, SampledSpan) for span in request.spans)
        return "{x}" if num_braces < 20 else f"{'so ' * 200}<answer>B</answer>"

    config = config_of("mathvision", tmp_path)
    (tmp_path / "again").mkdir()
    results = measure(run_of(tmp_path / "again", config), config, published, Counted(thinking))
    assert (results.headline.value, results.truncation_rate) == (1.0, 0.0)


def test_an_answer_that_is_missing_is_the_models_doing(tmp_path: Path) -> None:
    published, config = set_of("mme", tmp_path), config_of("mme", tmp_path)
    run = run_of(tmp_path, config)
    results = measure(run, config, published, Counted(lambda request: "<think>Yes."))
    assert (results.num_scored, results.headline.value, results.format_rate) == (2, 0.0, 0.0)
    assert [row.prediction for row in read_asked(run.path / "predictions.parquet")] == [None, None]


def test_a_prompt_beyond_the_context_is_not_asked(tmp_path: Path) -> None:
    class Full(ScriptedEngine):
        def _answer(self, request: GenerationRequest) -> Piece:
            if request.request_id.endswith("#1#0"):
                return Piece(request.request_id, SampledSpan("", (), ()), "context")
            return super()._answer(request)

    published, config = set_of("mme", tmp_path), config_of("mme", tmp_path)
    run = run_of(tmp_path, config)
    results = measure(run, config, published, lambda: Full(yes))
    assert (results.num_scored, results.num_unasked) == (1, 1)
    assert outcomes(run) == {"OCR/1.png#0": "scored", "OCR/1.png#1": "unasked"}


def test_a_set_that_is_not_the_published_one_is_refused_or_marked(tmp_path: Path) -> None:
    set_of("mme", tmp_path)
    config = config_of("mme", tmp_path)
    with pytest.raises(RecordError, match="mme has 2374"):
        measure(run_of(tmp_path, config), config, get_published("mme"), Counted(yes))
    config = config_of("mme", tmp_path, allow_partial=True)
    (tmp_path / "partial").mkdir()
    results = measure(run_of(tmp_path / "partial", config), config, get_published("mme"), Counted(yes))
    assert results.data.is_partial
    assert "not the benchmark's numbers" in to_text(results)


def test_data_that_changed_since_they_were_checked_are_not_measured(tmp_path: Path) -> None:
    published, config, engines = set_of("mme", tmp_path), config_of("mme", tmp_path), Counted(yes)
    config = config.model_copy(update={"data_digest": "0" * 64})
    with pytest.raises(RecordError, match=f"{'0' * 64} was asked for"):
        measure(run_of(tmp_path, config), config, published, engines)
    assert engines.num_opened == 0


def test_a_split_whose_answers_are_kept_is_refused_without_an_engine(tmp_path: Path) -> None:
    rows = [{**row, "answers": None} for row in ROWS["docvqa"][1]]
    published, config, engines = set_of("docvqa", tmp_path, rows), config_of("docvqa", tmp_path), Counted(yes)
    with pytest.raises(ConfigError, match="'0' has no gold answer"):
        measure(run_of(tmp_path, config), config, published, engines)
    assert engines.num_opened == 0


def test_nothing_scored_is_no_number(tmp_path: Path) -> None:
    rows = [{**ROWS["scienceqa"][1][0], "image": {"bytes": b"no picture", "path": None}}]
    published, config = set_of("scienceqa", tmp_path, rows), config_of("scienceqa", tmp_path)
    with pytest.raises(ScoringError, match=r"none of 1 rows was scored.*does not open"):
        measure(run_of(tmp_path, config), config, published, Counted(yes))


def test_a_score_survives_its_file(tmp_path: Path) -> None:
    published, config = set_of("mathvista", tmp_path), config_of("mathvista", tmp_path, style="direct")
    run = run_of(tmp_path, config)
    measure(run, config, published, Counted(lambda request: "1.2"))
    for row in read_asked(run.path / "predictions.parquet"):
        assert isinstance(row, AskedRow)
        assert json.loads(json.dumps(row.score)) == row.score
        assert row.num_tokens == 3


@pytest.mark.parametrize(("kind", "model_path"), [("http", "embedded"), ("vllm", "")])
def test_either_a_model_or_an_endpoint_answers(kind: str, model_path: str, tmp_path: Path) -> None:
    engine = EngineConfig(kind=kind, endpoint="http://h/v1", served_model="m")
    with pytest.raises(ValueError, match="needs a model folder"):
        config_of("mme", tmp_path, engine=engine, model_path=model_path)


def test_a_model_with_a_form_of_its_own_is_asked_and_read_in_it(tmp_path: Path) -> None:
    published = set_of("mmmu", tmp_path)
    direct = {"system": "Be brief.", "template": "Reason first.\n{question}", "answer": "final_answer_is"}
    config = config_of("mmmu", tmp_path, style="direct", direct=direct, model_name="mulberry-7b")

    def script(request: GenerationRequest) -> str:
        assert request.prompt.system == "Be brief."
        # The first picture stands where the question names it: 14 characters of ours, then 16 of its own.
        assert request.prompt.text.startswith("Reason first.\nWhich is older, ")
        assert request.prompt.places[0] == 30
        return "### Step 1: not B\n### The final answer is: A"

    run = run_of(tmp_path, config)
    results = measure(run, config, published, Counted(script))
    assert results is not None
    assert (results.model.name, results.answer_rate) == ("mulberry-7b", 1.0)
    found = {row.id: row.prediction for row in read_asked(run.path / "predictions.parquet")}
    assert found["validation_Art_Theory_3"] == "A"
