"""Run under torchrun: write the gradients of an SFT batch and of R-GRPO batches, dealt out to the ranks, and
the metrics of the latter.

torchrun --nproc-per-node N tests/gradient_of_ranks.py MODEL_PATH ZERO_STAGE OUTPUT
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from deepspeed.utils import safe_get_full_grad

from models import distributed, output_head
from models.config import ObjectiveConfig, RGRPOConfig, SFTConfig
from models.encoding import Encoded
from models.policy import Policy, load_reference, load_to_train
from models.rgrpo import update
from models.rgrpo.objective import Totals
from models.rgrpo.update import Sample
from models.sft import step
from tests.training_data import LOOK, records

ADVANTAGES = (1.0, -1.0, 0.5, -0.5, 2.0)
CHUNK_BYTES = 1 << 15  # a few tokens of logits
OBJECTIVES = {
    "paper-eq2": ObjectiveConfig(aggregation="paper-eq2"),
    "seq-mean-token-mean": ObjectiveConfig(aggregation="seq-mean-token-mean"),
    "seq-mean-token-sum-norm": ObjectiveConfig(aggregation="seq-mean-token-sum-norm"),
    "token-mean-beta": ObjectiveConfig(aggregation="token-mean", beta=0.5),
}


def main(model_path: Path, zero_stage: int, output: Path) -> None:
    """Five samples: with two ranks one has three and the other two, in micro-batches of one sample."""
    world = distributed.start(num_threads=1)
    found = {"sft": sft_gradient(model_path, zero_stage)}
    found["sft-recomputed"] = sft_gradient(model_path, zero_stage, gradient_checkpointing=True)
    metrics = {}
    for name, objective in OBJECTIVES.items():
        found[name], metrics[name] = rgrpo_gradient(model_path, zero_stage, objective)
    output_head.CHUNK_BYTES = CHUNK_BYTES  # samples differ in length, so ranks differ in how many chunks
    found["sft-chunked"] = sft_gradient(model_path, zero_stage)
    found["token-mean-beta-chunked"], _ = rgrpo_gradient(
        model_path, zero_stage, OBJECTIVES["token-mean-beta"], gradient_checkpointing=True
    )
    if world.rank == 0:
        torch.save({"gradients": found, "metrics": metrics}, output)


def sft_gradient(
    model_path: Path, zero_stage: int, *, gradient_checkpointing: bool = False
) -> dict[str, torch.Tensor]:
    """Gradients by parameter name."""
    settings = SFTConfig(
        precision="float32", zero_stage=zero_stage, gradient_checkpointing=gradient_checkpointing
    )
    policy = load_to_train(model_path, settings)
    encoded, mine = dealt(policy)
    engine = distributed.initialise(policy, settings)
    step.accumulate_gradient(engine, [encoded[i] for i in mine], [str(i) for i in mine], max_tokens=128)
    return gradients(policy)


def rgrpo_gradient(
    model_path: Path, zero_stage: int, objective: ObjectiveConfig, *, gradient_checkpointing: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, float] | None]:
    """The same of an objective, and its metrics; the reference, if it has one, is the model moved by a little
    noise."""
    # No engine sampled these records: there is nothing for the trainer to agree with.
    settings = RGRPOConfig(
        precision="float32",
        zero_stage=zero_stage,
        gradient_checkpointing=gradient_checkpointing,
        tokens_per_micro_batch=128,
        max_mismatch_kl=1e9,
        objective=objective,
    )
    policy = load_to_train(model_path, settings)
    encoded, mine = dealt(policy)
    reference = moved(load_reference(model_path, policy, dtype="float32")) if objective.beta else None
    engine = distributed.initialise(policy, settings)
    metrics = update.accumulate_gradient(
        engine,
        [Sample(str(i // 2), i % 2, encoded[i], ADVANTAGES[i]) for i in mine],
        spare=encoded[0],
        totals=Totals(1, 5, sum(one.num_sampled for one in encoded), 24),
        config=settings,
        reference=reference,
    )
    return gradients(policy), metrics


def dealt(policy: Policy) -> tuple[list[Encoded], range]:
    """All samples, and which of them are this rank's."""
    encoded = [policy.encoder.encode_record(record, LOOK) for record in records(5)]
    return encoded, range(distributed.rank(), len(encoded), dist.get_world_size())


def moved(policy: Policy) -> Policy:
    """The policy elsewhere, the same place on every rank."""
    torch.manual_seed(0)
    for parameter in policy.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return policy


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    """Gradients by parameter name."""
    return {name: safe_get_full_grad(p).clone() for name, p in policy.named_parameters()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
