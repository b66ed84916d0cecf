"""Run under torchrun: write the gradients of one SFT batch and of one R-GRPO batch, dealt out to the ranks.

torchrun --nproc-per-node N tests/gradient_of_ranks.py MODEL_PATH ZERO_STAGE OUTPUT
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from deepspeed.utils import safe_get_full_grad

from models import distributed
from models.config import ObjectiveConfig, RGRPOConfig, SFTConfig
from models.policy import load_policy
from models.rgrpo import update
from models.rgrpo.objective import Totals
from models.rgrpo.update import Sample
from models.sft import step
from tests.training_data import LOOK, records

ADVANTAGES = (1.0, -1.0, 0.5, -0.5, 2.0)


def main(model_path: Path, zero_stage: int, output: Path) -> None:
    """Five samples: with two ranks one has three and the other two, in micro-batches of one sample."""
    world = distributed.start(num_threads=1)
    found = {}
    for stage in ("sft", "rgrpo"):
        policy = load_policy(model_path)
        encoded = [policy.encoder.encode_record(record, LOOK) for record in records(5)]
        mine = range(world.rank, len(encoded), world.size)
        if stage == "sft":
            config = SFTConfig(precision="float32", zero_stage=zero_stage)
            engine = distributed.initialise(policy, config)
            step.accumulate_gradient(
                engine, [encoded[i] for i in mine], [str(i) for i in mine], max_tokens=128
            )
        else:
            # No engine sampled these records: there is nothing for the trainer to agree with.
            settings = RGRPOConfig(
                precision="float32",
                zero_stage=zero_stage,
                tokens_per_micro_batch=128,
                max_mismatch_kl=1e9,
                objective=ObjectiveConfig(aggregation="token-mean"),
            )
            engine = distributed.initialise(policy, settings)
            update.accumulate_gradient(
                engine,
                [Sample(str(i // 2), i % 2, encoded[i], ADVANTAGES[i]) for i in mine],
                spare=encoded[0],
                totals=Totals(1, 5, sum(one.num_sampled for one in encoded), 24),
                config=settings,
            )
        found[stage] = {name: safe_get_full_grad(p).clone() for name, p in policy.named_parameters()}
    if world.rank == 0:
        torch.save(found, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
