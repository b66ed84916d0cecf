"""Run a published benchmark as a child process, on a checkpoint or an OpenAI-compatible endpoint.

    python -m models.evaluation.benchmark RUN_DIR
    torchrun --standalone --nproc-per-node N -m models.evaluation.benchmark RUN_DIR

Reads :class:`models.run_config.BenchmarkRun` and leaves in the run directory ``predictions.parquet`` (every
row of the set, :mod:`models.evaluation.benchmark_rows`), ``metrics.json``, ``table.txt`` and ``chart.html``
(:mod:`models.evaluation.benchmark_files`). Rows are kept as they are answered: a start that finds rows of
the same model, set and prompt does not ask them again, however many ranks asked them. Of ``num_ranks`` ranks
each asks every ``num_ranks``-th row; the first sums up, and asks the judge when all answers are there
(:mod:`models.evaluation.judged_rows`). An endpoint's key is ``VLM_R3_API_KEY``, a judge's is
``VLM_R3_JUDGE_API_KEY``.
"""

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from models.ahead import ahead
from models.benchmarks.interleave import Interleaved
from models.benchmarks.published import PublishedSet, get_published
from models.benchmarks.scorer import Row, get_scorer
from models.benchmarks.sets import BenchmarkQuestion, LocalSet, read_set
from models.child import run_stage
from models.config import EngineConfig, Look, resolve_model_path
from models.engine import Engine
from models.errors import ConfigError, EngineError, RecordError, RegionError, ScoringError
from models.evaluation.benchmark_files import CHART, RESULTS, ROWS, TABLE, save
from models.evaluation.benchmark_results import BenchmarkResults, ModelFacts, summarise
from models.evaluation.benchmark_rows import ASKED, AskedRow, write_asked
from models.evaluation.evaluate import Progress
from models.evaluation.judge import Judge
from models.evaluation.judged_rows import judge_rows, num_needs_llm
from models.evaluation.ledger import Deliveries, Ledger
from models.evaluation.ranks import ALONE, Share, take_device, this_launch, this_share
from models.evaluation.switch import folder_digest
from models.http_engine import HTTPEngine
from models.protocol import STOPS
from models.rollout import Asked, stream
from models.run_config import BenchmarkRun
from models.rundir import Result, RunDir
from models.trajectory import AS_MANY_AS_FIT

log = logging.getLogger(__name__)

# What the starter of a server writes into the run directory, and what it calls the model.
SERVER_FILE = "server.json"
SERVED_NAME = "model"

# Rows in flight, in batches of the engine.
_QUEUE_FACTOR = 2


def run(directory: RunDir, config: BenchmarkRun) -> Result:
    """Ask and score every row of the set, or ask this rank's share of them."""
    results = measure(
        directory,
        config,
        get_published(config.benchmark),
        lambda: open_engine(config, directory),
        share=this_share(),
        launch=this_launch(),
    )
    if results is None:
        return Result(status="done", reason="asked its share of the rows")
    return Result(
        status="done",
        artifacts={name: name for name in (RESULTS, ROWS, TABLE, CHART)},
        metrics=dict(results.numbers()),
    )


def measure(
    directory: RunDir,
    config: BenchmarkRun,
    published: PublishedSet,
    open_engine: Callable[[], Engine],
    *,
    share: Share = ALONE,
    launch: str = "",
) -> BenchmarkResults | None:
    """The results of a benchmark; ``open_engine`` is called only if there is a row to ask.

    The ranks of one start have the same ``launch``; all but the first return None.

    Raises RecordError for a set that is not the published one, ScoringError or EngineError when we broke more
    rows than ``max_unscored_share`` allows: what was answered is kept, and the next start asks the rest.
    """
    judge = open_judge(directory, config)
    local = read_set(published, Path(config.data_path), config.split, allow_partial=config.allow_partial)
    if config.data_digest not in ("", local.digest):
        raise RecordError(
            f"{config.data_path} has digest {local.digest}, and {config.data_digest} was asked for: its "
            "files changed since. Start again."
        )
    scorer, model = get_scorer(config.benchmark), model_facts(config)
    ledger = Ledger(directory.path / "rows" / _identity(local, model), share, ASKED)
    asking = Asking(local, config, ledger, share)
    progress = Progress(directory, local.num_rows, share)
    asking.ask_all(open_engine, progress)
    deliveries = Deliveries(directory.path / "ranks", launch, share, ASKED)
    if not share.is_first:
        deliveries.hand_in(asking.found.values())
        return None
    found = asking.found | {row.id: row for row in deliveries.collect()}
    progress.finish()
    asked = [
        (row, found[id].about(row, published, variant=config.variant).scored(row, scorer))
        for id, row in asking.rows.items()
    ]
    assert len(asked) == local.num_rows, "every row of the set has an outcome"
    needs_llm = num_needs_llm(config.benchmark, asked)
    judged = None
    if judge is not None:
        asked, judged = judge_rows(judge, asked, max_failed=config.max_unscored_share * local.num_rows)
    write_asked(directory.path / ROWS, (found for _, found in asked))
    results = summarise(
        scorer, local, model, asked, style=config.style, seed=config.seed, needs_llm=needs_llm, judge=judged
    ).model_copy(update={"variant": config.variant})
    save(directory.path, results)
    directory.log(local.num_rows, results.numbers())
    _check_failures(config, [found for _, found in asked if found.outcome == "failed"], local.num_rows)
    return results


@dataclass
class Asking:
    """The rows of a set on their way, by id: ``rows`` are all as published, ``found`` is what became of those
    of this rank's share.
    """

    local: LocalSet
    config: BenchmarkRun
    ledger: Ledger[AskedRow]
    share: Share
    rows: dict[str, Row] = field(default_factory=dict)
    found: dict[str, AskedRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._earlier = {row.id: row for row in self.ledger.read()}
        self._look = rules(self.config)
        self._started: dict[str, float] = {}

    def ask_all(self, open_engine: Callable[[], Engine], progress: Progress) -> None:
        """Ask every row of the share that no earlier start has asked."""
        ready = self._ready(progress)
        first = next(ready, None)
        if first is not None:
            engine = open_engine()
            try:
                self._ask(engine, chain([first], ready), progress)
            finally:
                self.ledger.flush()
                engine.close()
        log.info(
            "%s: %d rows, %d of an earlier start", self.config.benchmark, len(self.found), self._num_kept
        )

    def _ask(self, engine: Engine, ready: Iterator[Asked], progress: Progress) -> None:
        trajectories = stream(
            engine,
            questions=ready,
            look=self._look,
            num_samples=1,
            temperature=0.0,
            seed=self.config.seed,
            # Enough to keep the engine's batch full, without holding every picture of the set in memory.
            max_in_flight=_QUEUE_FACTOR * self.config.engine.max_num_seqs,
            # A direct answer may hold braces that close no box.
            stops=STOPS if self.config.style == "look-again" else (),
        )
        for trajectory in trajectories:
            seconds = time.monotonic() - self._started.pop(trajectory.question_id)
            row = AskedRow.of(
                trajectory, style=self.config.style, seconds=seconds, rule=self.config.direct.answer
            )
            self.found[row.id] = row
            self.ledger.add(row)
            progress.advance()
            if row.outcome == "failed":
                log.warning("%s failed: %s", row.id, row.reason)
                failed = [each for each in self.found.values() if each.outcome == "failed"]
                _check_failures(self.config, failed, self.local.num_rows)

    def _ready(self, progress: Progress) -> Iterator[Asked]:
        """The rows of the share that are still to be asked, made ready as they are wanted; notes the rest."""
        for each, asked in ahead(self._make_ready, self._own_rows()):
            if isinstance(asked, Asked):
                self._started[each.id] = time.monotonic()
                yield asked
            else:
                self.found[each.id] = asked
                progress.advance()

    def _own_rows(self) -> Iterator[BenchmarkQuestion]:
        """The rows of the share; notes all."""
        for place, each in enumerate(self.local.questions()):
            self.rows[each.id] = each.row
            if self.share.has(place):
                yield each

    def _make_ready(self, each: BenchmarkQuestion) -> Asked | AskedRow:
        if not each.published.answers(each.row):
            raise ConfigError(
                f"{each.published.name}, split {each.split!r}: {each.id!r} has no gold answer, so it cannot "
                "be scored. The authors keep the answers of some splits; there are: "
                f"{', '.join(each.published.splits)}."
            )
        prompt = self._prompt(each)
        earlier = self._earlier.get(each.id)
        if earlier is not None and earlier.question_text == prompt.text:
            return earlier
        try:
            images = [each.image(number) for number in prompt.numbers]
            return Asked.about(each.id, prompt.text, images, self._look, places=prompt.places)
        except (RecordError, RegionError) as error:
            return AskedRow.unasked(each.id, prompt.text, str(error))

    def _prompt(self, each: BenchmarkQuestion) -> Interleaved:
        if self.config.style == "direct":
            return each.prompt("direct", wrap=self.config.direct.ask)
        return each.prompt(self.config.style)

    @property
    def _num_kept(self) -> int:
        return sum(self.found[id] is row for id, row in self._earlier.items() if id in self.found)


def rules(config: BenchmarkRun) -> Look:
    """The rules of looking again for a benchmark.

    A direct answer has no crops, and no system prompt but the model's own. Only the context and the number of
    crops bound a rationale: a cap on tokens or turns would cut it off before its answer.
    """
    unbounded = {"max_sampled_tokens": AS_MANY_AS_FIT, "max_turns": AS_MANY_AS_FIT}
    if config.style == "direct":
        return config.look.model_copy(update={**unbounded, "system": config.direct.system, "max_crops": 0})
    return config.look.model_copy(update=unbounded)


def model_facts(config: BenchmarkRun) -> ModelFacts:
    """Who answers. Raises ConfigError when the model's folder is none."""
    path = config.model_path
    return ModelFacts(
        name=config.model_name,
        path=path,
        source=config.model_source,
        digest=folder_digest(resolve_model_path(path)) if path else None,
        endpoint="" if path else config.engine.endpoint,
        served_model="" if path else config.engine.served_model,
        engine=config.engine.kind,
    )


def open_engine(config: BenchmarkRun, directory: RunDir) -> Engine:
    """The engine that answers; torch and vLLM are imported only for a checkpoint in this process."""
    if config.engine.kind == "vllm-server":
        return HTTPEngine(at_server(config.engine, directory))
    if config.engine.kind == "http":
        return HTTPEngine(config.engine, api_key=os.environ.get("VLM_R3_API_KEY", ""))
    take_device()
    from models.evaluation.engines import checkpoint_engines

    engines = checkpoint_engines(engine_config(config), look=config.look, seed=config.seed)
    return engines.open(resolve_model_path(config.model_path))


def engine_config(config: BenchmarkRun) -> EngineConfig:
    """The engine's configuration, with room for the pictures of the benchmark's questions."""
    num_pictures = len(get_published(config.benchmark).pictures)
    max_images = max(config.engine.max_images, num_pictures + config.look.max_crops)
    return config.engine.model_copy(update={"max_images": max_images})


def at_server(engine: EngineConfig, directory: RunDir) -> EngineConfig:
    """The engine of a server that was started for this run: ``server.json`` says where it listens.

    It is no part of the configuration: every start has another port. Raises ConfigError without the file.
    """
    path = directory.path / SERVER_FILE
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: engine.kind 'vllm-server' needs a server that was started for the run. "
            "Use `vlm-r3 evaluate --benchmark`, which starts it."
        )
    endpoint = json.loads(path.read_text())["endpoint"]
    return engine.model_copy(update={"kind": "http", "endpoint": endpoint, "served_model": SERVED_NAME})


def open_judge(directory: RunDir, config: BenchmarkRun) -> Judge | None:
    """The judge of a run, None without one. Raises ConfigError for a benchmark that uses no judge."""
    if not config.judge.is_used:
        return None
    folder = Path(config.verdicts_path) if config.verdicts_path else directory.path / "verdicts"
    key = os.environ.get("VLM_R3_JUDGE_API_KEY", "")
    return Judge(config.benchmark, config.judge, folder, api_key=key)


def _identity(local: LocalSet, model: ModelFacts) -> str:
    """What rows must have been asked of to count; everything else is fixed by the run directory."""
    parts = (local.digest, model.digest, model.endpoint, model.served_model)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _check_failures(config: BenchmarkRun, failed: list[AskedRow], num_rows: int) -> None:
    if len(failed) > config.max_unscored_share * num_rows:
        first = failed[0]
        error = ScoringError if first.reason.startswith(("scorer", "judge")) else EngineError
        raise error(
            f"{config.benchmark}: {len(failed)} of {num_rows} rows failed on our side, above "
            f"evaluation.max_unscored_share {config.max_unscored_share}. The first is {first.id!r}: "
            f"{first.reason}. What was answered is kept: start again to ask the rest."
        )


if __name__ == "__main__":
    sys.exit(run_stage(run, BenchmarkRun, sys.argv[1:]))
