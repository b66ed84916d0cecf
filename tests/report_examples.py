"""A report as large as a real one: drawn questions, attempts by two teachers, rollouts with rewards."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.config import EngineConfig, Look, QuestionMix, ReportConfig, RewardConfig, VLIRConfig
from models.engine import ScriptedEngine
from models.evaluation.benchmark import measure
from models.evaluation.benchmark_report import PAGE, write_page
from models.evaluation.predictions import score, write_predictions
from models.evaluation.report_inputs import Check, Fact, Figure, Promotion, ReportInputs, StageTime
from models.records import write_questions, write_rows
from models.rgrpo.rewards import score as reward_of
from models.rollout import rollout
from models.run_config import BenchmarkRun
from models.rundir import RunDir
from models.tiny.teacher import EmbeddedTeacher
from models.trajectory import CropSpan, GenerationRequest, Trajectory
from models.transcripts import TRANSCRIPT_FIELDS, TRANSCRIPT_VERSION, Transcript, transcript_row
from models.vlir.drawn import DrawnQuestion, draw_questions
from tests.benchmark_examples import file_name, schema_of, small, write
from tests.evaluation_examples import LOOK, make_results

MIX = {"read": 0.6, "add": 0.25, "where": 0.15}
# A teacher writes characters, not tokens.
RULES = LOOK.model_copy(update={"max_sampled_tokens": 2000})
CARELESS = VLIRConfig(wrong_region_rate=0.3, misread_rate=0.3, junk_rate=0.15, box_growth=0.9)
CAREFUL = VLIRConfig(wrong_region_rate=0.05, misread_rate=0.08, junk_rate=0.05, box_growth=0.2)
FIGURE = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 90 10"><rect width="40" height="9"/></svg>'
GROUP_SIZE = 4


def make_large_inputs(folder: Path, *, num_pictures: int = 250, num_copies: int = 4) -> ReportInputs:
    """Inputs of a report with two attempts at every question, and two steps of rollouts.

    A picture is asked about ``num_copies`` times: drawing takes the longest.
    """
    once = list(draw_questions("test", QuestionMix(num_questions=num_pictures, kinds=MIX), seed=1))
    drawn = [
        replace(item, question=replace(item.question, id=f"{item.question.id}-{copy}"))
        for copy in range(num_copies)
        for item in once
    ]
    questions = [item.question for item in drawn]
    write_questions(folder / "test.parquet", questions)
    for name, teacher in {"rgrpo": CAREFUL, "sft": CARELESS}.items():
        attempts = attempt(drawn, teacher, seed=0)
        predictions = [
            score(one, question, style="look-again", temperature=0.0, budget=RULES.budget)
            for one, question in zip(attempts, questions, strict=True)
        ]
        write_predictions(folder / f"{name}.parquet", predictions)
    steps = {"step 1": CARELESS, "step 80": CAREFUL}
    for name, teacher in steps.items():
        write_rollouts(folder / f"{name}.parquet", drawn[:12], teacher)
    return ReportInputs(
        title="tiny, version 2",
        trained="Trained from the embedded tiny model on 1933 accepted rationales (2 epochs of SFT), then 80 "
        "steps of R-GRPO with 12 questions and 8 rollouts of each. Seed 0.",
        results=make_results(),
        headline=("rgrpo", "sft"),
        promotion=Promotion(True, "2", ("gain over champion: lower end +1.4 points, above 0",)),
        look=RULES,
        questions_path=folder / "test.parquet",
        predictions={name: folder / f"{name}.parquet" for name in ("rgrpo", "sft")},
        rollouts={name: folder / f"{name}.parquet" for name in steps},
        rollout_questions_path=folder / "test.parquet",
        facts=(Fact("git commit", "c218138"), Fact("data digest", "d" * 64)),
        validation=(
            Check("boxes lie inside the picture", True),
            Check("no leaked answer", False, "3: a, b, c"),
        ),
        data=(Fact("accepted rationales", "1933"), Fact("acceptance", "80.5 %")),
        statistics={
            "crops_per_record": {"0": 290, "1": 1170, "2": 473},
            "records_per_source": {"tiny": 1933},
            "crops_per_size": {"very_small": 1500, "small": 590, "medium": 26, "large": 0},
        },
        figures=(Figure("Figure 5: accuracy by size of the object", FIGURE, "A bar."),),
        stages=(StageTime("sft", 121.4, "", 2), StageTime("rgrpo", 260.0, "from the cache")),
        sft_metrics=curves(120, {"sft/loss": (6.0, 0.4)}),
        rgrpo_metrics=curves(
            80, {"rgrpo/reward": (1.2, 1.9), "rgrpo/reward/accuracy": (0.4, 0.8), "rgrpo/entropy": (0.5, 0.2)}
        ),
        config=ReportConfig(num_trajectories=4 * len(drawn), price_per_process_hour=2.5),
    )


def make_benchmark_page(folder: Path) -> Path:
    """The page of MMMU in miniature beside an equal earlier run; the first row has two pictures."""
    published, split, rows = small("mmmu")
    write(folder / "set" / file_name(split), rows, schema_of(published))
    config = BenchmarkRun(
        benchmark="mmmu",
        data_path=str(folder / "set"),
        split=split,
        model_path="embedded",
        look=Look(max_pixels=12544, max_sampled_tokens=400),
        engine=EngineConfig(max_num_seqs=1),
        seed=0,
    )
    run = RunDir.create(folder / "run", config)
    exact = replace(published, splits={split: len(rows)})
    measure(run, config, exact, lambda: ScriptedEngine(_second_picture_first))
    write_page(run.path, config, other=run.path)
    return run.path / PAGE


def _second_picture_first(request: GenerationRequest) -> str:
    if any(isinstance(span, CropSpan) for span in request.spans):
        return " It is the older.</think><answer>A</answer>"
    number = len(request.prompt.pictures)
    return f'<think>{{"bbox_2d": [10, 10, 40, 40], "image": {number}}}'


def attempt(
    drawn: Sequence[DrawnQuestion], config: VLIRConfig, *, seed: int, num: int = 1
) -> list[Trajectory]:
    """A teacher's attempts, ``num`` per question, in order."""
    scenes = {item.question.id: (item.scene, item.asked) for item in drawn}
    return rollout(
        EmbeddedTeacher(config, scenes),
        [item.question for item in drawn],
        look=RULES,
        num_samples=num,
        temperature=1.0,
        seed=seed,
    )


def write_rollouts(path: Path, drawn: Sequence[DrawnQuestion], config: VLIRConfig) -> None:
    """Scored rollouts as R-GRPO writes them, but for the columns that a report does not read."""
    schema = pa.schema([*TRANSCRIPT_FIELDS, ("kind", pa.string()), ("advantage", pa.float64())])
    rows = []
    for place, one in enumerate(attempt(drawn, config, seed=3, num=GROUP_SIZE)):
        question = drawn[place // GROUP_SIZE].question
        reward = reward_of(one, question, RewardConfig())
        scored = one if reward is None else one.with_reward(reward)
        advantage = math.nan if reward is None else reward.total - 1.0
        rows.append({**transcript_row(Transcript.of(scored)), "kind": question.kind, "advantage": advantage})
    write_rows(path, schema, rows, version=TRANSCRIPT_VERSION)


def curves(num_steps: int, ends: dict[str, tuple[float, float]]) -> list[dict[str, float]]:
    """Noisy lines of metrics from a first to a last value."""
    noise = np.random.default_rng(0)
    return [
        {
            "step": float(step),
            **{
                name: first
                + (last - first) * step / num_steps
                + float(noise.normal()) * abs(last - first) / 12
                for name, (first, last) in ends.items()
            },
        }
        for step in range(1, num_steps + 1)
    ]
