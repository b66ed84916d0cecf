"""How fast the stages train, beside TRL's trainers on the same model, data and precision.

    python -m tests.benchmarks.training_speed [--model FOLDER] [--questions N] [--repeats N] [--threads N]

SFT: tokens per second of our steps and of TRL's ``SFTTrainer`` (padded batches, real lengths; tokens count
without padding), on several mixes of lengths. R-GRPO: seconds per step of our stage (vLLM, crops in the
middle of the text) and of TRL's ``GRPOTrainer`` with transformers' generation, which has no loop that looks
again: it writes as many tokens per completion from the same prompts, and is spared the crops.

Every measurement is a process of its own with the same number of threads; sides take turns, ratios are
medians over the rounds. The first steps of each process, in which kernels are chosen, are left out.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from models._compat import declare_torchvision_operators
from models.config import resolve_model_path
from models.encoding import Encoder
from models.presets import load_preset
from models.records import VLIRRecord, read_questions, read_records, write_records
from models.run_config import RGRPORun, SFTRun
from models.rundir import RunDir, write_atomically
from tests.small_set import build_small_set

NAME = "training_speed"
BATCH_SIZE = 16
WARM_UP_STEPS = 3
MIXES = ("real", "short", "long", "short and long")
GRPO_STEPS = 6
NUM_GRPO_QUESTIONS = 120
TEACHING_EPOCHS = 8
# What a ratio must reach (ours over TRL).
LIMITS = {"sft/real": 2.0, "sft/short": 1.0, "sft/long": 1.0, "sft/short and long": 1.0, "rgrpo": 3.0}


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the JSON file, print the table; 1 when a limit is not kept."""
    options = _parser().parse_args(arguments)
    if options.side:
        measured = _SIDES[options.side](options)
        Path(options.out).write_text(json.dumps(measured))
        return 0
    with TemporaryDirectory() as folder:
        data = build_small_set(
            Path(folder) / "set", num_questions=options.questions, num_others=NUM_GRPO_QUESTIONS
        )
        records = read_records(data / "records")
        rows = [_compare_sft(options, Path(folder), mix, _mix(records, mix)) for mix in MIXES]
        if options.model == "embedded":  # which does not look again before it is taught to
            options.model = _taught(Path(folder), data, num_threads=options.threads)
        rows.append(_compare_rgrpo(options, Path(folder), data / "questions" / "train.parquet"))
    found = {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": options.threads,
        "model": options.model,
        "repeats": options.repeats,
        "rows": rows,
    }
    write_atomically(Path(options.work_dir) / "bench" / f"{NAME}.json", json.dumps(found, indent=2))
    print(f"{'':22} {'ours':>12} {'TRL':>12} {'ratio':>7} {'at least':>9}")
    for row in rows:
        spread = f"({row['low']:.2f} to {row['high']:.2f})"
        print(
            f"{row['name']:22} {row['ours']:12.1f} {row['trl']:12.1f} {row['ratio']:7.2f} {row['limit']:9.1f}"
            f"  {row['unit']} {spread}"
        )
    return 0 if all(row["ratio"] >= row["limit"] for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work-dir", default=".vlm-r3")
    for name in ("side", "data", "out", "folder"):  # of a child
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def _mix(records: list[VLIRRecord], mix: str) -> list[VLIRRecord]:
    """Records of a mix of lengths; ``long`` ones look at every box three times over."""
    short = [record for record in records if not record.boxes]
    looks = [record for record in records if record.boxes]
    long = [replace(record, steps=(*record.steps[:-1] * 3, record.steps[-1])) for record in looks]
    if mix == "real":
        return records
    if mix == "short":
        return (short * (len(looks) // max(1, len(short)) + 1))[: len(looks)]
    if mix == "long":
        return long
    half = len(looks) // 2
    return [*_mix(records, "short")[:half], *long[:half]]


def _compare_sft(
    options: argparse.Namespace, folder: Path, mix: str, records: list[VLIRRecord]
) -> dict[str, Any]:
    path = folder / f"{mix.replace(' ', '_')}.parquet"
    write_records(path, records)
    ours, trl = [], []
    for _ in range(options.repeats):
        ours.append(_child(options, "sft-ours", data=path)["tokens_per_second"])
        trl.append(_child(options, "sft-trl", data=path)["tokens_per_second"])
    return _row(f"sft/{mix}", ours, trl, [a / b for a, b in zip(ours, trl, strict=True)], "tokens/s")


def _compare_rgrpo(options: argparse.Namespace, folder: Path, questions: Path) -> dict[str, Any]:
    ours, trl = [], []
    for number in range(options.repeats):
        measured = _child(options, "rgrpo-ours", data=questions, folder=folder / f"rgrpo-{number}")
        ours.append(measured["seconds_per_step"])
        tokens = round(measured["tokens_per_trajectory"])
        trl.append(_child(options, "rgrpo-trl", data=questions, tokens=tokens)["seconds_per_step"])
    return _row("rgrpo", ours, trl, [b / a for a, b in zip(ours, trl, strict=True)], "s per step")


def _taught(folder: Path, data: Path, *, num_threads: int) -> str:
    """A model that looks again: the embedded one, fine-tuned on the records for some epochs."""
    preset = load_preset("tiny")
    changes = {"num_ranks": 1, "num_threads": num_threads, "num_epochs": TEACHING_EPOCHS}
    config = SFTRun(
        model_path="embedded",
        records_path=str(data / "records"),
        look=preset.look,
        sft=preset.sft.model_copy(update=changes),
        freeze_vision=True,
        seed=0,
    )
    run = RunDir.create(folder / "taught", config)
    subprocess.run([sys.executable, "-m", "models.sft.train", str(run.path)], check=True, capture_output=True)
    return str(run.path / "model")


def _row(name: str, ours: list[float], trl: list[float], ratios: list[float], unit: str) -> dict[str, Any]:
    return {
        "name": name,
        "ours": statistics.median(ours),
        "trl": statistics.median(trl),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "limit": LIMITS[name],
        "unit": unit,
    }


def _child(options: argparse.Namespace, side: str, **given: Any) -> dict[str, float]:
    """What one side measured, in a process of its own."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        command = [sys.executable, "-m", f"tests.benchmarks.{NAME}", "--side", side, "--out", str(out)]
        command += ["--model", options.model, "--threads", str(options.threads)]
        for name, value in given.items():
            command += [f"--{name}", str(value)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        found: dict[str, float] = json.loads(out.read_text())
    return found


def sft_ours(options: argparse.Namespace) -> dict[str, float]:
    """Our steps over two epochs, features of pictures computed on the way."""
    from models import distributed
    from models.policy import load_policy
    from models.sft.step import sft_step
    from models.shuffling import endless_shuffle

    preset = load_preset("tiny")
    config = preset.sft.model_copy(update={"num_ranks": 1, "num_threads": options.threads})
    distributed.start(num_threads=options.threads)
    policy = load_policy(resolve_model_path(options.model))
    engine = distributed.initialise(policy, config)
    records = read_records(Path(options.data))
    samples = [policy.encoder.encode_record(record, preset.look) for record in records]  # as the stage does
    began, num_tokens = 0.0, 0
    for step in range(2 * len(records) // BATCH_SIZE):
        if step == WARM_UP_STEPS:
            began = time.monotonic()
        chosen = endless_shuffle(len(records), start=step * BATCH_SIZE, count=BATCH_SIZE, seed=0)
        encoded = [samples[index] for index in chosen]
        sft_step(
            engine,
            encoded,
            [records[index].question.id for index in chosen],
            learning_rate=1e-5,
            max_tokens=config.tokens_per_micro_batch,
        )
        num_tokens += sum(map(len, encoded)) * (step >= WARM_UP_STEPS)
    return {"tokens_per_second": num_tokens / (time.monotonic() - began)}


def sft_trl(options: argparse.Namespace) -> dict[str, float]:
    """TRL's trainer over two epochs of the same records; its tower is frozen as ours is."""
    declare_torchvision_operators()  # before transformers' model is imported
    from datasets import Dataset
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    look = load_preset("tiny").look
    path = resolve_model_path(options.model)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype="float32")
    model.model.visual.requires_grad_(False)
    processor = AutoProcessor.from_pretrained(path)
    encoder = Encoder.load(path)
    rows = [_messages(record, encoder, look) for record in read_records(Path(options.data))]
    counted = {"tokens": 0, "began": 0.0, "ended": 0.0}

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP_STEPS:
                counted["began"] = time.monotonic()
            counted["ended"] = time.monotonic()

    with TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=folder,
                num_train_epochs=2,
                per_device_train_batch_size=BATCH_SIZE,
                learning_rate=1e-5,
                max_length=None,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                logging_steps=10_000,
                dataloader_drop_last=True,
                dataset_kwargs={"skip_prepare_dataset": True},
                remove_unused_columns=False,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
            callbacks=[Clock()],
        )
        collate = trainer.data_collator
        batches: list[int] = []

        def counting(examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = collate(examples)
            batches.append(int(batch["attention_mask"].sum()))
            return batch  # type: ignore[no-any-return]

        trainer.data_collator = counting
        trainer.train()
    steps = trainer.state.global_step
    return {
        "tokens_per_second": sum(batches[WARM_UP_STEPS:steps]) / (counted["ended"] - counted["began"]),
        "tokens": float(sum(batches[:steps])),
    }


def _messages(record: VLIRRecord, encoder: Any, look: Any) -> dict[str, Any]:
    """A record as TRL takes it: messages with their pictures, crops in the assistant's turn."""
    pictures = encoder.encode_record(record, look).pictures
    said: list[dict[str, str]] = []
    for step in record.steps:
        said.append({"type": "text", "text": step.text})
        if step.box is not None:
            said.append({"type": "image", "text": ""})
    user = [{"type": "image", "text": ""}, {"type": "text", "text": record.question.text}]
    return {
        "images": [picture.image for picture in pictures],
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": look.system}]},
            {"role": "user", "content": user},
            {"role": "assistant", "content": said},
        ],
    }


def rgrpo_ours(options: argparse.Namespace) -> dict[str, float]:
    """Our stage on one rank, as it runs in a pipeline."""
    from models.rgrpo.train import train

    preset = load_preset("tiny")
    changes = {"num_steps": GRPO_STEPS, "num_ranks": 1, "num_threads": options.threads}
    config = RGRPORun(
        model_path=options.model,
        questions_path=options.data,
        look=preset.look,
        rgrpo=preset.rgrpo.model_copy(update=changes),
        engine=preset.engine.model_copy(update={"num_threads": options.threads}),
        freeze_vision=True,
        seed=0,
    )
    run = RunDir.create(Path(options.folder), config)
    train(run, config)
    steps = [line for line in run.metrics() if "rgrpo/reward" in line][1:]
    seconds = [
        sum(value for name, value in line.items() if name.startswith("time/") and name.endswith("_seconds"))
        for line in steps
    ]
    tokens = [line["rgrpo/tokens_per_trajectory"] for line in steps]
    return {
        "seconds_per_step": statistics.median(seconds),
        "tokens_per_trajectory": statistics.mean(tokens),
    }


def rgrpo_trl(options: argparse.Namespace) -> dict[str, float]:
    """TRL's trainer with transformers' generation: as many questions, rollouts and tokens per step."""
    declare_torchvision_operators()  # before transformers' model is imported
    from datasets import Dataset
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from models.rollout import Asked

    preset = load_preset("tiny")
    training = preset.rgrpo
    path = resolve_model_path(options.model)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype="float32")
    model.model.visual.requires_grad_(False)
    questions = read_questions(Path(options.data))
    rows = []
    for question in questions:
        asked = Asked.of(question, preset.look)
        user = [{"type": "image", "text": ""}, {"type": "text", "text": question.text}]
        rows.append(
            {
                "image": asked.prompt.pictures[0].image,
                "prompt": [
                    {"role": "system", "content": [{"type": "text", "text": preset.look.system}]},
                    {"role": "user", "content": user},
                ],
            }
        )
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(time.monotonic())

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(len(str(completion)) % 7) for completion in completions]

    per_step = training.questions_per_step * training.group_size
    with TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=folder,
                max_steps=GRPO_STEPS,
                per_device_train_batch_size=BATCH_SIZE,
                gradient_accumulation_steps=per_step // BATCH_SIZE,
                num_generations=training.group_size,
                max_completion_length=options.tokens,
                generation_kwargs={"min_new_tokens": options.tokens},
                temperature=training.temperature,
                beta=0.0,
                learning_rate=1e-5,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                logging_steps=10_000,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoProcessor.from_pretrained(path),
            callbacks=[Clock()],
        )
        trainer.train()
    return {
        "seconds_per_step": statistics.median(b - a for a, b in pairwise(ends)),
    }


_SIDES = {"sft-ours": sft_ours, "sft-trl": sft_trl, "rgrpo-ours": rgrpo_ours, "rgrpo-trl": rgrpo_trl}

if __name__ == "__main__":
    sys.exit(main())
