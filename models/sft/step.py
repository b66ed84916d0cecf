"""One step of supervised fine-tuning, and the validation loss.

The loss is minus the mean log-prob over all sampled tokens of the global batch (rationale, boxes, answer, end
of turn). Prompt, crops and vision markers are context. Samples are packed: a micro-batch is one row of them,
one after another, each with its own rotary positions and attention to itself alone; what several begin with,
the system prompt above all, is computed once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models import distributed
from models.distributed import DeepSpeedEngine
from models.encoding import Encoded
from models.packing import pack
from models.policy import by_sample, collate_packed


def sft_step(
    engine: DeepSpeedEngine,
    encoded: Sequence[Encoded],
    ids: Sequence[str],
    *,
    learning_rate: float,
    max_tokens: int,
    spare: Encoded | None = None,
) -> dict[str, float]:
    """Train on this rank's samples of one batch; returns the step's metrics, the same on every rank.

    A rank without samples passes ``spare`` through instead, which counts for nothing. Raises TrainingError
    that names the samples, before the optimiser step, when a loss or its gradient is not
    finite.
    """
    loss, num_tokens = accumulate_gradient(engine, encoded, ids, max_tokens=max_tokens, spare=spare)
    return {
        "sft/loss": loss,
        "sft/gradient_norm": distributed.update(engine, learning_rate=learning_rate, ids=ids),
        "sft/learning_rate": learning_rate,
        "sft/sampled_tokens": num_tokens,
    }


def accumulate_gradient(
    engine: DeepSpeedEngine,
    encoded: Sequence[Encoded],
    ids: Sequence[str],
    *,
    max_tokens: int,
    spare: Encoded | None = None,
) -> tuple[float, float]:
    """Add the gradient of the loss over all ranks' samples; returns the loss and its number of tokens.

    ``spare`` and TrainingError are as in :func:`sft_step`.
    """
    (num_tokens,) = distributed.global_sums([sum(one.num_sampled for one in encoded)])
    per_sample = torch.zeros(len(encoded))
    micro_batches = distributed.in_lockstep(pack([len(one) for one in encoded], max_tokens=max_tokens))
    for number, micro_batch in enumerate(micro_batches, start=1):
        # A rank that has run out of micro-batches goes through the motions with a gradient of zero.
        idle = encoded[:1] or ([] if spare is None else [spare])
        chosen = idle if micro_batch is None else [encoded[index] for index in micro_batch]
        losses = negative_log_likelihood(engine, chosen)
        weight = 1.0 / num_tokens if micro_batch is not None else 0.0
        distributed.accumulate(engine, losses.sum() * weight, is_last=number == len(micro_batches))
        if micro_batch is not None:
            per_sample[list(micro_batch)] = losses.detach().cpu()
    watched = [one if one is not None else () for one in micro_batches]
    broken = engine.module.gradients.take(watched, len(encoded))
    distributed.require_finite(ids, per_sample + broken, what="The loss or its gradient")
    (total,) = distributed.global_sums([per_sample.sum()])
    return total / num_tokens, num_tokens


@torch.no_grad()
def validation_loss(
    engine: DeepSpeedEngine, encoded: Sequence[Encoded], ids: Sequence[str], *, max_tokens: int
) -> float:
    """The mean loss per sampled token over all ranks' samples, nats; each rank has one at least.

    Raises TrainingError that names the samples when a loss is not finite.
    """
    per_sample = torch.zeros(len(encoded))
    for micro_batch in distributed.in_lockstep(pack([len(one) for one in encoded], max_tokens=max_tokens)):
        losses = negative_log_likelihood(engine, [encoded[index] for index in micro_batch or (0,)])
        if micro_batch is not None:
            per_sample[list(micro_batch)] = losses.cpu()
    distributed.require_finite(ids, per_sample, what="The validation loss")
    total, num_tokens = distributed.global_sums([per_sample.sum(), sum(one.num_sampled for one in encoded)])
    return total / num_tokens


def negative_log_likelihood(engine: DeepSpeedEngine, encoded: Sequence[Encoded]) -> Tensor:
    """Minus the log-prob of each sequence's sampled tokens, (B,)."""
    batch = collate_packed(encoded, engine.module)
    return -by_sample(engine(batch), batch).sum(dim=1)
