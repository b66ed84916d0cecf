"""What a step of training is made of, what an update of the engine's weights costs, and how costs grow.

    python -m tests.benchmarks.training_cost [--shape tiny|small|3b|7b] [--layers N] [--steps N]

Steps are those of the real stages, by DeepSpeed and vLLM in this process. Models other than the embedded one
(``tiny``) have the published shapes and random weights. AdamW's state of a whole 3B or 7B model and an engine
do not fit on a GPU of 80 GB together: of ``3b`` and ``7b`` some layers are taken in their real widths,
``--layers`` of them (0: all). What a trajectory holds is fixed (:mod:`tests.written`): vLLM samples as many
tokens as a turn has, and the turn is then a written one, with a box or an answer at its end.

Three tables: a step by its parts; the weight update beside a plain copy of the same bytes; and seconds of a
step against group size, pictures and length of a sequence, with the straight line through them. The command
fails when the update takes more than 5 % of a step, or when a unit of the largest size costs more than 1.25
times one of the smallest. Lengths end where attention's part, which grows with the square, is still small,
a seventh of the operations at most: the table says how large it is.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from models.config import EngineConfig, GuardsConfig, PreflightConfig, RGRPOConfig
from models.presets import load_preset
from models.rundir import write_atomically
from tests.flops import attention_share, device_name, peak_of
from tests.linear_cost import Line, header, plot
from tests.measured_training import Bench, SFTStep, Step
from tests.model_shapes import NAMES, model_folder

NAME = "training_cost"
MAX_UPDATE_SHARE = 0.05
MAX_ATTENTION_SHARE = 0.15  # of the operations, where the study of lengths ends
UPDATE_REPEATS = 9
PARTS = ("rollout", "log-prob", "update", "pictures", "sync", "rest")
# By shape, unless an argument says otherwise. The numbers of ``tiny`` are those of its preset; the shortest
# sequence of the study of lengths has ``length`` tokens.
_CPU = {"group_size": 8, "turn_tokens": 24, "picture_side": 112, "length": 80}
_GPU = {"questions": 8, "group_size": 8, "turn_tokens": 96, "picture_side": 448, "length": 448, "studied": 4}
DEFAULTS: dict[str, dict[str, Any]] = {
    "tiny": {**_CPU, "questions": 12, "studied": 2},
    "small": {**_CPU, "questions": 2, "studied": 1},
    "3b": {**_GPU, "layers": 12},
    "7b": {**_GPU, "layers": 4},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured: ``questions`` of a step, ``group_size`` rollouts of each with ``looks`` crops, turns
    of about ``turn_tokens`` sampled tokens, pictures with sides of ``picture_side`` pixels.

    The studies take ``studied`` questions and go from the smallest size to ``2 ** doublings`` times it.
    """

    shape: str
    layers: int
    questions: int
    group_size: int
    looks: int
    turn_tokens: int
    picture_side: int
    length: int
    studied: int
    doublings: int
    steps: int
    threads: int

    @property
    def is_real(self) -> bool:
        """True for a shape that is meant for a GPU."""
        return self.shape in ("3b", "7b")

    @property
    def sizes(self) -> list[int]:
        """Multiples of the smallest size of a study."""
        return [2**number for number in range(self.doublings + 1)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON file and the plot; 1 when a limit is not kept."""
    options, folder = parsed(arguments)
    with TemporaryDirectory() as made:
        model = model_folder(options.shape, Path(made) / "model", num_layers=options.layers)
        training, engine = configured(options)
        with Bench.opened(model, training, engine, picture_side=options.picture_side) as bench:
            found = parts_of_a_step(bench, options) | sft_speed(bench, options)
            found |= weight_update(bench, found["seconds"]["step"])
            lines = [*against_group_size(bench, options), *against_pictures(bench, options)]
            lengths, share = against_length(bench, options)
    lines += lengths
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "benchmark": NAME,
        "device": device_name(),
        "cores": len(os.sched_getaffinity(0)),
        "options": asdict(options),
        **found,
        "attention_share_at_longest": share,
        "lines": [line.to_json() for line in lines],
        "plots": plot(lines, folder, NAME),
    }
    write_atomically(folder / f"{NAME}.json", json.dumps(results, indent=2) + "\n")
    print(to_tables(results, lines))
    kept = results["weight_update"]["share"] <= MAX_UPDATE_SHARE and all(line.is_linear for line in lines)
    return 0 if kept else 1


def configured(options: Options) -> tuple[RGRPOConfig, EngineConfig]:
    """The stage's and the engine's configuration, from preset ``tiny``."""
    preset = load_preset("tiny")
    precision = "bfloat16" if options.is_real else "float32"
    training = preset.rgrpo.model_copy(
        update={
            "precision": precision,
            "num_threads": options.threads,
            "learning_rate": 1e-6,
            "max_mismatch_kl": 1e9,  # what is written was not sampled
            "checkpoint_every": 1_000_000,
            "preflight": PreflightConfig(enabled=False),
            "guards": GuardsConfig(enabled=False),
        }
    )
    longest, on_gpu = options.length * options.sizes[-1], torch.cuda.is_available()
    engine = preset.engine.model_copy(
        update={
            "dtype": precision,
            "num_threads": options.threads,
            "max_model_len": 2 * longest,  # also of many pictures
            "max_images": options.sizes[-1],
            "kv_cache_gib": 0.0 if on_gpu else preset.engine.kv_cache_gib,
            "gpu_memory_utilization": 0.35,
            "enforce_eager": not on_gpu,
        }
    )
    return training, engine


def parts_of_a_step(bench: Bench, options: Options) -> dict[str, Any]:
    """Seconds, shares and rates of R-GRPO's step."""
    writing = bench.writing(num_looks=options.looks, num_tokens=options.turn_tokens * (options.looks + 1))
    steps = bench.rgrpo_steps(
        writing, num_questions=options.questions, group_size=options.group_size, num_steps=options.steps
    )
    seconds = {part: statistics.median(step.seconds[part] for step in steps) for part in PARTS}
    whole = statistics.median(step.total for step in steps)

    def rate(count: str) -> float:
        return statistics.median(getattr(step.engine, count) / step.seconds["rollout"] for step in steps)

    return {
        "seconds": {"step": whole, **seconds},
        "shares": {part: value / sum(seconds.values()) for part, value in seconds.items()},
        "rates": {
            "rollouts/s": statistics.median(step.rollouts / step.seconds["rollout"] for step in steps),
            "rollouts/s of the whole step": statistics.median(step.rollouts / step.total for step in steps),
            "sampled tokens/s": rate("sampled"),
            "prefilled tokens/s, computed": rate("prefilled"),
            "prompt tokens/s from the cache": rate("cached"),
            "pictures/s, tower": statistics.median(map(_pictures_per_second, steps)),
            "share of pictures looked at before": 1 - steps[-1].looked_at / steps[-1].pictures,
        },
        "training": _compute([step.flops / step.training_seconds for step in steps]),
    }


def _pictures_per_second(step: Step) -> float:
    return step.looked_at / step.seconds["pictures"]


def _compute(flops_per_second: Sequence[float]) -> dict[str, float | None]:
    """Model FLOP/s, and what share of the device's peak that is, where the peak is known."""
    found, peak = statistics.median(flops_per_second), peak_of(device_name())
    return {"flops_per_second": found, "mfu": found / peak if peak else None}


def sft_speed(bench: Bench, options: Options) -> dict[str, Any]:
    """Tokens per second of fine-tuning on as many samples as the step of R-GRPO has rollouts."""
    writing = bench.writing(num_looks=options.looks, num_tokens=options.turn_tokens * (options.looks + 1))
    batch_size = options.questions * options.group_size
    steps = bench.sft_steps(writing, batch_size=batch_size, num_steps=options.steps)
    measured = {
        "seconds": statistics.median(step.seconds for step in steps),
        "tokens/s": statistics.median(step.tokens / step.seconds for step in steps),
    }
    return {"sft": measured | _compute([step.flops / step.seconds for step in steps])}


def weight_update(bench: Bench, step_seconds: float) -> dict[str, Any]:
    """The engine's new weights, beside a plain copy of the same bytes and a step."""
    found = bench.weight_update(repeats=UPDATE_REPEATS)
    return {
        "weight_update": {
            "gigabytes": found.num_bytes / 1e9,
            "seconds": found.update,
            "copy_seconds": found.copy,
            "times_a_copy": found.update / found.copy,
            "share": found.update / step_seconds,
            "limit": MAX_UPDATE_SHARE,
        }
    }


def against_group_size(bench: Bench, options: Options) -> list[Line]:
    """R-GRPO's step and update with more and more rollouts of each question."""
    writing = bench.writing(num_looks=options.looks, num_tokens=options.turn_tokens * (options.looks + 1))
    sizes = [2 * size for size in options.sizes]
    taken = [
        bench.rgrpo_steps(writing, num_questions=options.studied, group_size=size, num_steps=options.steps)
        for size in sizes
    ]
    return _rgrpo_lines("rollouts of a question", sizes, taken)


def against_pictures(bench: Bench, options: Options) -> list[Line]:
    """Both stages with more and more looks, each of them with its turn."""
    writings = [
        bench.writing(num_looks=size - 1, num_tokens=options.turn_tokens * size) for size in options.sizes
    ]
    unit = "pictures of a trajectory"
    taken = [
        bench.rgrpo_steps(
            writing, num_questions=options.studied, group_size=options.group_size, num_steps=options.steps
        )
        for writing in writings
    ]
    batch_size = options.studied * options.group_size
    sft = [bench.sft_steps(one, batch_size=batch_size, num_steps=options.steps) for one in writings]
    return [*_rgrpo_lines(unit, options.sizes, taken), _sft_line(unit, options.sizes, sft)]


def against_length(bench: Bench, options: Options) -> tuple[list[Line], float]:
    """Both stages with longer and longer sequences, and attention's share in the longest.

    R-GRPO's prompts are computed once for a group, so what grows is what a trajectory samples.
    """
    batch_size = options.studied * options.group_size
    given = bench.prompt_tokens()
    sizes: list[int] = []
    sft: list[list[SFTStep]] = []
    rgrpo: list[list[Step]] = []
    share = 0.0
    for size in options.sizes:
        writing = bench.writing(num_looks=0, num_tokens=options.length * size - given)
        steps = bench.sft_steps(writing, batch_size=batch_size, num_steps=options.steps)
        found = attention_share(bench.policy.model.config, steps[0].work)
        if len(sizes) > 1 and found > MAX_ATTENTION_SHARE:
            break
        share = found
        sizes.append(round(steps[0].tokens / batch_size))
        sft.append(steps)
        rgrpo.append(
            bench.rgrpo_steps(
                writing,
                num_questions=options.studied,
                group_size=options.group_size,
                num_steps=options.steps,
            )
        )
    sampled = [size - given for size in sizes]
    lines = _rgrpo_lines("sampled tokens of a trajectory", sampled, rgrpo)
    return [*lines, _sft_line("tokens of a sequence", sizes, sft)], share


def _rgrpo_lines(unit: str, sizes: Sequence[int], taken: Sequence[Sequence[Step]]) -> list[Line]:
    totals = [[step.total for step in steps] for steps in taken]
    training = [[step.training_seconds for step in steps] for steps in taken]
    return [_line("R-GRPO step", unit, sizes, totals), _line("R-GRPO update", unit, sizes, training)]


def _sft_line(unit: str, sizes: Sequence[int], taken: Sequence[Sequence[SFTStep]]) -> Line:
    return _line("SFT step", unit, sizes, [[step.seconds for step in steps] for steps in taken])


def _line(name: str, unit: str, sizes: Sequence[int], seconds: Sequence[Sequence[float]]) -> Line:
    # The least: whatever else a machine does only adds to it, and growth compares two points.
    return Line(name, unit, tuple(map(float, sizes)), tuple(map(min, seconds)))


def to_tables(results: dict[str, Any], lines: Sequence[Line]) -> str:
    """What is printed."""
    update = results["weight_update"]
    found = [
        f"{results['options']['shape']} on {results['device']}",
        "",
        f"{'R-GRPO step':32}{'seconds':>10}{'share':>8}",
    ]
    found += [
        f"  {part:30}{results['seconds'][part]:10.3f}{share:8.1%}"
        for part, share in results["shares"].items()
    ]
    found += [f"  {'whole':30}{results['seconds']['step']:10.3f}", ""]
    found += [f"{name:40}{value:12.2f}" for name, value in results["rates"].items()]
    found.append(f"{'SFT, tokens/s':40}{results['sft']['tokens/s']:12.1f}")
    for name, computed in (("R-GRPO's training", results["training"]), ("SFT", results["sft"])):
        mfu = "no peak known" if computed["mfu"] is None else f"MFU {computed['mfu']:.1%}"
        found.append(f"{name + ', model TFLOP/s':40}{computed['flops_per_second'] / 1e12:12.3f}  {mfu}")
    found += [
        "",
        f"weight update: {update['gigabytes']:.3f} GB in {update['seconds']:.4f} s, a plain copy "
        f"{update['copy_seconds']:.4f} s; {update['share']:.2%} of a step, at most {update['limit']:.0%}",
        "",
        header(),
        *(line.row() for line in lines),
        f"attention in the longest sequence: {results['attention_share_at_longest']:.1%} of the operations",
    ]
    return "\n".join(found)


def parsed(arguments: Sequence[str] | None = None) -> tuple[Options, Path]:
    """Options of the command line, and the folder of the results."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.benchmarks.{NAME}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=NAMES, default="tiny")
    parser.add_argument("--layers", type=int, help="of the language model; 0: all")
    parser.add_argument("--questions", type=int, help="of a step")
    parser.add_argument("--group-size", type=int, help="rollouts of a question")
    parser.add_argument("--looks", type=int, default=1, help="crops of a trajectory")
    parser.add_argument("--turn-tokens", type=int, help="sampled tokens of a turn, about")
    parser.add_argument("--picture-side", type=int, help="of every picture as it is seen, pixels")
    parser.add_argument("--length", type=int, help="tokens of the shortest sequence of the study of lengths")
    parser.add_argument("--studied", type=int, help="questions of a step in the studies of growth")
    parser.add_argument("--doublings", type=int, default=3, help="from the smallest size to the largest")
    parser.add_argument("--steps", type=int, default=4, help="that count, after the first")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work-dir", type=Path, default=Path(".vlm-r3"))
    given = vars(parser.parse_args(arguments))
    folder = given.pop("work_dir") / "bench"
    values = {"layers": 0, **DEFAULTS[given["shape"]], **{k: v for k, v in given.items() if v is not None}}
    return Options(**values), folder


if __name__ == "__main__":
    sys.exit(main())
