"""What must hold on the device that training runs on, as functions: tests call them with a model for it.

    python -m tests.device_checks CHECK OUT [--shape tiny|small|3b|7b] [--layers N] [--options JSON]

On a GPU each is a process of its own, so that its memory is free again when it ends. On a CPU the same
functions run with the embedded model. A check that fails raises AssertionError; what it found is returned,
and written to ``OUT`` as JSON.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import distributed, training_state
from models.checkpoints import Progress
from models.config import (
    EngineConfig,
    GuardsConfig,
    Precision,
    PreflightConfig,
    RewardConfig,
    RGRPOConfig,
    SFTConfig,
)
from models.encoding import Encoded
from models.policy import Policy, by_sample, collate, collate_packed, load_policy, load_to_train
from models.records import write_questions
from models.rgrpo.actors import Actors, opened
from models.rgrpo.preflight import check_before
from models.rgrpo.train import Training
from models.rgrpo.update import score_again
from models.run_config import RGRPORun
from models.rundir import RunDir
from models.segments import Segments, attend
from models.sft.step import sft_step, validation_loss
from tests.flops import Work, attention_share, device_name, peak_of, training_flops
from tests.measured_training import now
from tests.model_shapes import NAMES, model_folder
from tests.training_data import LOOK, questions, records, rgrpo_run
from tests.written import Writing, drawn_questions, filled, rules

MAX_MISMATCH = 0.015  # k3, nats per token, in bfloat16
# Largest difference of a mean loss per token (nats) that is computed in two ways.
SAME_LOSS: dict[Precision, float] = {"float32": 1e-5, "bfloat16": 0.02}
# Of attention's outputs and gradients, relative to the largest.
SAME_ATTENTION = {torch.float32: 1e-5, torch.float16: 0.005, torch.bfloat16: 0.02}
BATCH_SIZE = 8
BUDGET = 1024  # tokens of a micro-batch: all of the batch
LEARNING_RATE = 1e-3


def check_segments(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Attention within segments, and its gradients, against one square with a mask in float32.

    Whatever :func:`models.segments.attend` takes on that device; heads are shared, lengths differ, and some
    segments go on from others, as rollouts do from their question.
    """
    segments = Segments.of((37, 37, 5, 128, 1, 64), parents=(None, 0, 1, None, 3, 3)).to(device)
    generator = torch.Generator(device).manual_seed(0)
    total = sum(segments.lengths)
    inputs = [
        torch.randn(1, heads, total, 64, generator=generator, device=device, dtype=dtype, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    weights = torch.randn(1, total, 4, 64, generator=generator, device=device, dtype=dtype)
    visible = torch.zeros(total, total, dtype=torch.bool, device=device)
    assert segments.keys is not None, "segments go on from others"
    for asking, asked in zip(
        pairwise(segments.ends.tolist()), pairwise(segments.key_ends.tolist()), strict=True
    ):
        visible[slice(*asking), segments.keys[slice(*asked)]] = True
    visible = visible.tril()

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = nn.functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=visible, scale=0.125, enable_gqa=True
        )
        return found.transpose(1, 2)

    def segmented(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(nn.Module(), query, key, value, None, scaling=0.125, segments=segments)[0]

    def results(attention: Callable[..., Tensor]) -> list[Tensor]:
        output = attention(*inputs)
        return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]

    found = {}
    for name, mine, exact in zip(
        ("output", "query", "key", "value"), results(segmented), results(dense), strict=True
    ):
        found[name] = float((mine.float() - exact.float()).abs().max() / exact.float().abs().max())
        assert found[name] < SAME_ATTENTION[dtype], f"{name} differs by {found[name]:.4f} of its largest"
    return found


def check_sft(model: Path, *, precision: Precision, zero_stage: int = 2) -> dict[str, float]:
    """Two steps: a finite loss, packed as unpacked, every weight of the language model moved, no other."""
    config = SFTConfig(
        batch_size=BATCH_SIZE, tokens_per_micro_batch=BUDGET, precision=precision, zero_stage=zero_stage
    )
    world = distributed.start(num_threads=0)
    policy = load_to_train(model, config).to(world.device)
    engine = distributed.initialise(policy, config)
    encoded = [policy.encoder.encode_record(record, LOOK) for record in records(BATCH_SIZE)]
    tower = {name: tensor.cpu().clone() for name, tensor in policy.tower.state_dict().items()}
    masters = dict(_masters(engine))
    ids = [str(number) for number in range(BATCH_SIZE)]
    together = validation_loss(engine, encoded, ids, max_tokens=BUDGET)
    alone = validation_loss(engine, encoded, ids, max_tokens=max(map(len, encoded)))
    assert abs(together - alone) < SAME_LOSS[precision], f"packed {together}, one by one {alone}"
    step = partial(sft_step, engine, encoded, ids, learning_rate=LEARNING_RATE, max_tokens=BUDGET)
    losses = [step()["sft/loss"] for _ in range(2)]
    assert all(np.isfinite(losses)), losses
    assert abs(losses[0] - together) < SAME_LOSS[precision], f"trained {losses[0]}, looked at {together}"
    still = [name for name, tensor in _masters(engine) if torch.equal(tensor, masters[name])]
    assert not still, f"two steps moved {len(masters)} tensors, but not {still}"
    for name, tensor in policy.tower.state_dict().items():
        assert torch.equal(tensor.cpu(), tower[name]), f"the frozen tower's {name} moved"
    return {"packed": together, "alone": alone, "first": losses[0], "second": losses[1]}


def _masters(engine: distributed.DeepSpeedEngine) -> Sequence[tuple[str, Tensor]]:
    """Name and float32 weight of all that is trained."""
    return [
        (name, tensor.detach().cpu().clone())
        for name, tensor in training_state.whole_state(engine)
        if "@" not in name
    ]


def check_rgrpo(
    model: Path, *, precision: Precision, zero_stage: int = 2, num_threads: int = 0
) -> dict[str, float]:
    """Two steps with vLLM and its weights renewed after each.

    The preflight (engine against trainer, caches) passes before and after. What the engine then samples has
    the trainer's log-probs, and not those of the weights that it began with.
    """
    with TemporaryDirectory() as folder:
        write_questions(Path(folder) / "questions.parquet", questions(8))
        config = _rgrpo_run(
            model, Path(folder), precision=precision, zero_stage=zero_stage, num_threads=num_threads
        )
        run = RunDir.create(Path(folder) / "run", config)
        with opened(config) as actors:
            check_before(run, config, actors)
            Training(run, config, actors).run_to_the_end(Progress())
            check_before(run, config, actors)
            mismatch, stale = _mismatches(config, actors)
        told = [line for line in run.metrics() if "rgrpo/mismatch_kl" in line]
    found = {
        "first": told[0]["rgrpo/mismatch_kl"],
        "second": told[1]["rgrpo/mismatch_kl"],
        "after": mismatch,
        "from the first weights": stale,
    }
    assert all(line["rgrpo/updated"] for line in told), told
    assert max(found["first"], found["second"], mismatch) < MAX_MISMATCH, found
    assert stale > 10 * max(mismatch, MAX_MISMATCH / 10), f"the weights hardly moved: {found}"
    return found


def _rgrpo_run(
    model: Path, folder: Path, *, precision: Precision, zero_stage: int, num_threads: int
) -> RGRPORun:
    """Small, without guards: this is about the machinery. Rewards differ by the length of the text."""
    on_gpu = torch.cuda.is_available()
    return rgrpo_run(
        model,
        folder / "questions.parquet",
        RGRPOConfig(
            num_steps=2,
            questions_per_step=4,
            group_size=4,
            learning_rate=LEARNING_RATE,
            warmup_steps=0,
            tokens_per_micro_batch=BUDGET,
            precision=precision,
            zero_stage=zero_stage,
            num_threads=num_threads,
            reward=RewardConfig(),
            preflight=PreflightConfig(num_questions=4, max_zero_variance_share=1.0),
            guards=GuardsConfig(enabled=False),
            max_mismatch_kl=MAX_MISMATCH,
        ),
        engine=EngineConfig(
            dtype=precision,
            max_model_len=512,
            max_num_seqs=32,
            max_images=8,
            kv_cache_gib=0 if on_gpu else 1,
            gpu_memory_utilization=0.3,
            enforce_eager=not on_gpu,
            num_threads=num_threads,
        ),
    )


def _mismatches(config: RGRPORun, actors: Actors) -> tuple[float, float]:
    """k3 of the engine's log-probs against the trainer's, and against those of the first weights."""
    sampled = actors.sampler.roll_out(
        actors.questions, look=config.look, num_samples=2, temperature=1.0, seed=1
    )
    policy: Policy = actors.engine.module
    encoded = [policy.encoder.encode(one) for one in sampled]
    trainer = score_again(actors.engine, encoded, config.rgrpo)
    first = load_policy(Path(config.model_path)).to(policy.device)
    with torch.no_grad():
        began = [first(collate([one], first))[0, : len(one) - 1].cpu().numpy() for one in encoded]
    return (
        _k3(encoded, trainer),
        _k3(encoded, [row[one.sampled[1:]] for row, one in zip(began, encoded, strict=True)]),
    )


def _k3(encoded: Sequence[Encoded], logprobs: Sequence[np.ndarray]) -> float:
    gaps = np.concatenate(
        [mine - one.engine_logprobs[one.sampled] for mine, one in zip(logprobs, encoded, strict=True)]
    )
    return float(np.mean(np.expm1(gaps) - gaps))


def measure_mfu(
    model: Path, *, precision: Precision, length: int, num_samples: int, num_steps: int = 5
) -> dict[str, Any]:
    """Forward and backward pass of packed fine-tuning, without AdamW, whose state need not fit then.

    Of whole sequences of about ``length`` tokens, each with two pictures, a quarter of it trained on;
    pictures' features are there already, and are not counted. MFU is None on a device without a known peak.
    """
    world = distributed.start(num_threads=0)
    policy = load_policy(model, dtype=precision).to(world.device)
    encoded = _long_samples(policy, length=length, num_samples=num_samples)
    num_sampled = sum(one.num_sampled for one in encoded)

    def step() -> float:
        policy.zero_grad()
        began = now()
        batch = collate_packed(encoded, policy)
        loss = -by_sample(policy(batch), batch).sum() / num_sampled
        loss.backward()
        return now() - began

    seconds = [step() for _ in range(2 + num_steps)][2:]
    work = Work.of(collate_packed(encoded, policy))
    config = policy.model.config
    achieved = training_flops(config, work) / statistics.median(seconds)
    peak = peak_of(device_name())
    found = {
        "device": device_name(),
        "precision": precision,
        "layers": config.get_text_config().num_hidden_layers,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "tokens": work.tokens,
        "seconds": statistics.median(seconds),
        "tokens_per_second": work.tokens / statistics.median(seconds),
        "flops_per_second": achieved,
        "attention_share": attention_share(config, work),
        "peak": peak,
        "mfu": achieved / peak if peak else None,
    }
    assert achieved > 0
    assert peak is None or 0 < achieved / peak < 1, found
    return found


def _long_samples(policy: Policy, *, length: int, num_samples: int) -> list[Encoded]:
    """Sequences about a picture and a crop of 256 visual tokens each; questions are as long as it takes."""
    side = 448
    encoder, writing = policy.encoder, Writing(num_looks=1, num_tokens=length // 4, picture_side=side)
    found = []
    for question in drawn_questions(num_samples, picture_side=side):
        short = encoder.encode_record(writing.record(encoder, question), rules(side))
        missing = length - len(short) + len(encoder.tokenize(question.text))
        longer = replace(question, text=filled(encoder, missing, beginning="", ending=question.text))
        found.append(encoder.encode_record(writing.record(encoder, longer), rules(side)))
    return found


CHECKS: dict[str, Callable[..., dict[str, Any]]] = {
    "sft": check_sft,
    "rgrpo": check_rgrpo,
    "mfu": measure_mfu,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one check and write what it found."""
    parser = argparse.ArgumentParser(prog="python -m tests.device_checks")
    parser.add_argument("check", choices=sorted(CHECKS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=NAMES, default="tiny")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--options", default="{}", help="of the check, as JSON")
    given = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        model = model_folder(given.shape, Path(folder) / "model", num_layers=given.layers)
        found = CHECKS[given.check](model, **json.loads(given.options))
    print(json.dumps(found, indent=2))
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
