"""What batching through our loop costs: sampled tokens per second against vLLM alone on the same tokens.

    python -m tests.benchmarks.rollout_throughput [--questions N] [--repeats N] [--model FOLDER]

Two stages: ``look-again`` (the loop of data generation, R-GRPO and evaluation, a crop after every turn but
the last) and ``direct`` (the rows of a benchmark set, asked without crops). Each runs our way ("loop") and
as vLLM alone ("raw"): the same engine gets every turn of every trajectory at once, as token ids, so that it
knows from the start what the loop learns turn by turn. It gets the questions' pictures as the loop does, as
files, and the crops ready-made; "ready" is the same with the questions' pictures, too, decoded and resized
before the clock starts, which no client can have for nothing.

The work is fixed, so that any model will do: vLLM really samples as many tokens as a turn has, but the loop
then goes on with a written turn of that length. All ways run in one process, one after the other, several
times; a ratio is the median over these rounds. Caches are emptied before each.

Of the look-again stage two more ways are measured, on ``--alone`` of the trajectories: "one" is the loop with
one trajectory in flight, as a trainer samples that rolls out one after the other, on the same engine;
"transformers" is a plain loop of ``generate``, turn by turn, one trajectory at a time.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from models.benchmarks.sets import read_set
from models.config import EngineConfig, Look, resolve_model_path
from models.encoding import Encoder
from models.evaluation.benchmark import Asking
from models.evaluation.benchmark_rows import ASKED
from models.evaluation.evaluate import ALONE, Progress
from models.evaluation.ledger import Ledger
from models.presets import load_preset
from models.protocol import render_box
from models.records import Question, png_bytes
from models.region import Box, see
from models.rollout import stream
from models.run_config import BenchmarkRun
from models.rundir import RunDir, write_atomically
from models.tiny.world import draw, sample_scene
from models.trajectory import AS_MANY_AS_FIT, Finish, GenerationRequest, SampledSpan, StopReason
from tests.benchmark_examples import file_name, schema_of, small, write
from tests.fixed_length import Dictated, FixedLengthEngine, Pass, PlainTransformers

NAME = "rollout_throughput"
FILLER = "I look closer. "
ANSWER = "It says K7.</think><answer>K7</answer>"
# What the loop's speed must be as a multiple of another way's.
LIMITS = {"raw": 0.85, "one": 8.0}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured. A turn has about ``turn_tokens`` sampled tokens."""

    questions: int
    alone: int
    repeats: int
    crops: int
    turn_tokens: int
    picture_side: int
    model: str
    look: Look
    engine: EngineConfig


def look_again_loop(options: Options, *, max_in_flight: int | None = None) -> Callable[[Dictated], None]:
    """The look-again loop over drawn pictures; over fewer where not all are in flight at once."""
    questions = [
        Question.of_image(image, "What does the red card say?", id=str(number))
        for number, image in enumerate(drawn(options))
    ][: options.alone if max_in_flight else None]

    def run(dictated: Dictated) -> None:
        asked = stream(
            dictated,
            questions=questions,
            look=options.look,
            num_samples=1,
            temperature=1.0,
            seed=0,
            max_in_flight=max_in_flight,
        )
        stops = {trajectory.stop for trajectory in asked}
        assert stops == {StopReason.ANSWERED}, f"a written turn was refused: {stops}"

    return run


def look_again_turns(options: Options, encoder: Encoder) -> Callable[[GenerationRequest], tuple]:
    """Turns that each close a box, another one every time, and a last turn with the answer."""

    def dictate(request: GenerationRequest) -> tuple[SampledSpan, Finish]:
        turn = sum(isinstance(span, SampledSpan) for span in request.spans)
        if turn == options.crops:
            return filled(encoder, options.turn_tokens, ending=ANSWER), "stop"
        width, height = request.prompt.pictures[0].image.size
        left, top = turn % 2 * width // 2, turn // 2 % 2 * height // 2
        box = Box(left, top, left + width // 2, top + height // 2, space="seen")
        beginning = "" if turn else "<think>"
        return filled(encoder, options.turn_tokens, beginning=beginning, ending=render_box(box)), "stop"

    return dictate


def direct_loop(options: Options, folder: Path) -> Callable[[Dictated], None]:
    """The rows of a set as ``vlm-r3 evaluate --benchmark`` asks them: read, decoded, asked, kept."""
    published, split, rows = small("mme")
    pictures = [{"bytes": png_bytes(image), "path": ""} for image in drawn(options)]
    many = [
        {**rows[number % 2], "question_id": f"OCR/{number}.png", "image": image}
        for number, image in enumerate(pictures)
    ]
    write(folder / "mme" / file_name(split), many, schema_of(published))
    config = BenchmarkRun(
        benchmark="mme",
        data_path=str(folder / "mme"),
        split=split,
        allow_partial=True,
        style="direct",
        model_path=options.model,
        look=options.look,
        engine=options.engine,
        seed=0,
    )
    local = read_set(published, Path(config.data_path), split, allow_partial=True)

    def run(dictated: Dictated) -> None:
        # A directory of its own for every pass: rows that were kept are not asked again.
        path = folder / f"pass-{time.monotonic_ns()}"
        directory = RunDir.create(path, config)
        asking = Asking(local, config, Ledger(path / "rows", ALONE, ASKED), ALONE)
        asking.ask_all(lambda: dictated, Progress(directory, local.num_rows, ALONE))
        assert {row.outcome for row in asking.found.values()} == {"scored"}

    return run


def direct_turn(options: Options, encoder: Encoder) -> Callable[[GenerationRequest], tuple]:
    """One turn that ends by itself."""
    span = filled(encoder, options.turn_tokens, ending="Yes")
    return lambda request: (span, "end")


@cache
def filled(encoder: Encoder, num_tokens: int, *, beginning: str = "", ending: str) -> SampledSpan:
    """Text with words before its ending until it has at least that many tokens."""
    text = beginning + ending
    while len(ids := encoder.tokenize(text)) < num_tokens:
        text = beginning + FILLER + text.removeprefix(beginning)
    return SampledSpan(text, ids, (0.0,) * len(ids))


def drawn(options: Options) -> Iterator:
    """A different picture for every question."""
    rng = np.random.default_rng(0)
    for _ in range(options.questions):
        image = draw(sample_scene(rng, "validation"))
        yield image.resize((options.picture_side, options.picture_side))


def measure_stage(
    engine: FixedLengthEngine,
    run: Callable[[Dictated], None],
    dictate: Callable[[GenerationRequest], tuple[SampledSpan, Finish]],
    files: Mapping[str, bytes],
    *,
    repeats: int,
    one_by_one: Callable[[Dictated], None] | None = None,
    model: str = "",
) -> dict[str, object]:
    """All ways in turn, ``repeats`` times, after one pass of each that warms up and is not counted.

    With ``one_by_one`` (a run of few trajectories, of which one is in flight) that is a way too, and plain
    transformers on the ``model``.
    """

    def loop(run: Callable[[Dictated], None] = run) -> tuple[Pass, list[GenerationRequest]]:
        dictated = Dictated(engine, dictate)
        engine.begin()
        started = time.perf_counter()
        run(dictated)
        engine.measured.seconds = time.perf_counter() - started
        return engine.measured, dictated.requests

    _, requests = loop()
    ways = {
        "loop": lambda: loop()[0],
        "raw": lambda: engine.run_raw(requests, files),
        "ready": lambda: engine.run_raw(requests, {}),
    }
    if one_by_one is not None:
        _, few = loop(one_by_one)
        plain = PlainTransformers(model, engine.encoder)
        ways |= {"one": lambda: loop(one_by_one)[0], "transformers": lambda: plain.run(few)}
    for name in list(ways)[1:]:
        ways[name]()
    passes: dict[str, list[Pass]] = {name: [] for name in ways}
    for number in range(repeats):
        # Who comes first changes, so that a machine that slows down favours nobody.
        for name in list(ways)[:: -1 if number % 2 else 1]:
            passes[name].append(ways[name]())
    same = [each for name in ("loop", "raw", "ready") for each in passes[name]]
    work = {(each.requests, each.sampled, each.prefilled) for each in same}
    assert len(work) == 1, f"these ways do the same work: {work}"
    return summary(passes)


def summary(passes: Mapping[str, Sequence[Pass]]) -> dict[str, object]:
    """Medians of all ways and of the loop's ratios; ``outside_seconds`` is the loop's time not in vLLM."""
    loops = passes["loop"]
    ratios = {
        name: [ours.tokens_per_second / raw.tokens_per_second for ours, raw in zip(loops, passes[name])]
        for name in list(passes)[1:]
    }
    return {
        "tokens_per_second": {
            name: statistics.median(each.tokens_per_second for each in found)
            for name, found in passes.items()
        },
        "ratio": {name: statistics.median(found) for name, found in ratios.items()},
        "ratio_range": {name: [min(found), max(found)] for name, found in ratios.items()},
        "outside_seconds": statistics.median(each.seconds - each.engine_seconds for each in loops),
        "loop_seconds": statistics.median(each.seconds for each in loops),
        "passes": {name: [asdict(each) for each in found] for name, found in passes.items()},
    }


@contextmanager
def opened(options: Options) -> Iterator[FixedLengthEngine]:
    """The engine, counting, and closed in the end."""
    engine = FixedLengthEngine(resolve_model_path(options.model), options.engine, look=options.look)
    engine.watch()
    try:
        yield engine
    finally:
        engine.close()


def measure(options: Options) -> dict[str, object]:
    """The figures of both stages, and of what they were measured on."""
    with opened(options) as engine, TemporaryDirectory() as folder:
        stages = {
            "look-again": (look_again_loop(options), look_again_turns(options, engine.encoder)),
            "direct": (direct_loop(options, Path(folder)), direct_turn(options, engine.encoder)),
        }
        alone = {"look-again": look_again_loop(options, max_in_flight=1)} if options.alone else {}
        files = {see(image, options.look.budget).digest: png_bytes(image) for image in drawn(options)}
        found = {
            name: measure_stage(
                engine,
                run,
                dictate,
                files,
                repeats=options.repeats,
                one_by_one=alone.get(name),
                model=options.model,
            )
            for name, (run, dictate) in stages.items()
        }
    return {
        "benchmark": NAME,
        "machine": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "cpus": os.cpu_count(),
            "system": platform.platform(),
        },
        "options": {**asdict(options), "look": options.look.model_dump(mode="json")}
        | {"engine": options.engine.model_dump(mode="json")},
        "stages": found,
    }


def to_table(results: dict) -> str:
    """One line a stage and way, with the loop's speed as a multiple of that way's."""
    columns = ("tok/s", "loop/way", "range", "at least")
    lines = [f"{'stage':<12}{'way':<14}" + "".join(f"{column:>13}" for column in columns)]
    for name, stage in results["stages"].items():
        speeds = stage["tokens_per_second"]
        outside = f"{stage['outside_seconds']:.1f} of {stage['loop_seconds']:.1f} s are not in vLLM"
        lines.append(f"{name:<12}{'loop':<14}{speeds['loop']:>13.0f}   {outside}")
        for way, ratio in stage["ratio"].items():
            low, high = stage["ratio_range"][way]
            limit = f"{LIMITS[way]:.2f}" if way in LIMITS else ""
            cells = [f"{speeds[way]:.0f}", f"{ratio:.2f}", f"{low:.2f}-{high:.2f}", limit]
            lines.append(f"{'':<12}{way:<14}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def missed(results: dict) -> list[str]:
    """The limits that were not kept."""
    return [
        f"{name}: {ratio:.2f} of {way}, at least {LIMITS[way]}"
        for name, stage in results["stages"].items()
        for way, ratio in stage["ratio"].items()
        if ratio < LIMITS.get(way, 0.0)
    ]


def parsed(arguments: Sequence[str] | None = None) -> tuple[Options, Path]:
    """Options of the command line, and the folder of the results."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.benchmarks.{NAME}", description=__doc__)
    parser.add_argument("--questions", type=int, default=384, help="trajectories of a pass")
    parser.add_argument(
        "--alone", type=int, default=24, help="trajectories of the ways that take one at a time"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds of passes")
    parser.add_argument("--crops", type=int, default=2, help="crops of a trajectory")
    parser.add_argument("--turn-tokens", type=int, default=24, help="sampled tokens of a turn, about")
    parser.add_argument("--picture-side", type=int, default=448, help="side of the pictures, pixels")
    parser.add_argument("--preset", default="tiny", help="preset with the rules and the engine's settings")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the preset")
    parser.add_argument("--model", help="model folder; the preset's without")
    parser.add_argument("--out", type=Path, default=Path(".vlm-r3/bench"), help="folder of the JSON file")
    given = parser.parse_args(arguments)
    preset = load_preset(given.preset, given.set)
    look = preset.look.model_copy(
        update={"max_sampled_tokens": AS_MANY_AS_FIT, "max_crops": given.crops, "max_turns": given.crops + 1}
    )
    options = Options(
        questions=given.questions,
        alone=given.alone,
        repeats=given.repeats,
        crops=given.crops,
        turn_tokens=given.turn_tokens,
        picture_side=given.picture_side,
        model=given.model or preset.model.path,
        look=look,
        engine=preset.engine,
    )
    return options, given.out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write ``rollout_throughput.json``; 1 when a limit is not kept."""
    options, folder = parsed(arguments)
    results = measure(options)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.json"
    write_atomically(path, json.dumps(results, indent=2) + "\n")
    print(to_table(results))
    print(f"Written to {path}")
    broken = missed(results)
    print(*(f"LIMIT NOT KEPT, {one}" for one in broken), sep="\n", end="")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
