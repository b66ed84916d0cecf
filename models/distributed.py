"""One training process per rank: start-up, DeepSpeed (ZeRO 0 to 3), and the few collectives needed.

The same code runs under ``torchrun``, under the DeepSpeed launcher and as a plain process (one rank), on GPUs
(NCCL) and on CPU (gloo).

Losses are written as sums with divisors of the global batch. DeepSpeed averages gradients over ranks, so
:func:`accumulate` multiplies by their number. Every rank must run the same number of micro-batches: ZeRO
gathers and reduces in each of them.
"""

import atexit
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.allocator import keep_freed_memory
from models.config import RGRPOConfig, SFTConfig
from models.errors import TrainingError

# DeepSpeed is imported here and nowhere else. Told what it runs on, it does not probe and warn; and its
# autotuner, which we do not use, must not pull in MLflow: that costs every rank seconds.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
_mlflow = sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]
import deepspeed  # noqa: E402
from deepspeed import DeepSpeedEngine as DeepSpeedEngine  # noqa: E402
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # noqa: E402

if _mlflow is None:
    del sys.modules["mlflow"]

from models import training_state  # noqa: E402

log = logging.getLogger(__name__)

T = TypeVar("T")

_CONFIGS = Path(__file__).resolve().parent.parent / "infra" / "deepspeed"


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers, of which ``num_local`` are on this host. ``device`` is where its model
    lives."""

    rank: int
    size: int
    device: torch.device
    num_local: int


def start(*, num_threads: int = 0) -> World:
    """Join the process group that the launcher announced in the environment; alone when there is none.

    ``num_threads`` bounds torch's CPU threads in this process; 0 leaves the library's choice.
    """
    if num_threads:
        torch.set_num_threads(num_threads)
    _do_without_compiled_collectives()
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it
    local_rank = int(os.environ["LOCAL_RANK"])
    backend, device = "gloo", torch.device("cpu")
    if torch.cuda.is_available():
        backend, device = "nccl", torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    if not dist.is_initialized():
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return World(dist.get_rank(), dist.get_world_size(), device, num_local)


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank()


def num_ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size()


def is_main() -> bool:
    """True in the one process that writes metrics, checkpoints and results."""
    return rank() == 0


def deepspeed_config(config: SFTConfig | RGRPOConfig, *, num_trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration, ``infra/deepspeed/zeroSTAGE.json``, with the preset's values for ``auto``;
    ``num_trained`` is how many values are trained.

    To it every micro-batch has size 1: :mod:`models.packing` cuts batches. AdamW and the schedule are ours
    (:func:`initialise`, :mod:`models.schedule`).
    """
    text = (_CONFIGS / f"zero{config.zero_stage}.json").read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    values["gradient_clipping"] = config.max_grad_norm
    values["bf16"]["enabled"] = config.precision == "bfloat16"
    if config.precision == "bfloat16" and config.zero_stage >= 2:
        # Else the gradients of many micro-batches are added up in bfloat16. At stage 1 DeepSpeed has another
        # optimiser for it, whose master weights do not take part in checkpoints as those of the others do.
        values["data_types"] = {"grad_accum_dtype": "fp32"}
    # Of ZeRO a new buffer in every update. It never needs more than the gradient, and what is larger than an
    # allocator keeps (2 GB by default) comes from the system, page by page.
    zero = values["zero_optimization"]
    zero["reduce_bucket_size"] = min(num_trained, DeepSpeedZeroConfig().reduce_bucket_size)
    return values


def initialise(module: nn.Module, config: SFTConfig | RGRPOConfig) -> DeepSpeedEngine:
    """The module under DeepSpeed with AdamW. Weight decay acts on matrices only.

    The learning rate starts at 0; :func:`update` sets it for each step.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)
    values = deepspeed_config(config, num_trained=sum(parameter.numel() for parameter in trainable))
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=values)
    training_state.begin_adam(engine)
    return engine


def accumulate(engine: DeepSpeedEngine, loss: Tensor, *, is_last: bool) -> None:
    """Add the gradient of this rank's share of the global loss. ``is_last``: an :func:`update` follows."""
    engine.set_gradient_accumulation_boundary(is_last)
    engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)


def update(engine: DeepSpeedEngine, *, learning_rate: float, ids: Sequence[str] = ()) -> float:
    """One optimiser step with the accumulated gradient; returns its norm before clipping.

    Raises TrainingError on every rank, and takes no step, when the gradient is not finite on any: DeepSpeed
    would step with it, or leave the step out in silence. The message names the samples ``ids``.
    """
    parts = training_state.local_gradients(engine)
    norms = [torch.linalg.vector_norm(part, dtype=torch.float32).to(_collective_device()) for part in parts]
    is_finite = not norms or bool(torch.stack(norms).isfinite().all())
    if any(global_sums([not is_finite])):
        names = [name for names in from_all_ranks(list(ids)) for name in names]
        log.error("the samples of the step: %s", ", ".join(names))
        raise TrainingError(
            "The gradient of the weights is not finite, though that of every single sample is. The step was "
            f"stopped before the optimiser; the last checkpoint is sound. It had {', '.join(names[:10])}."
        )
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate
    norm = None
    if not engine.zero_optimization() and not engine.bfloat16_enabled():  # DeepSpeed then reports no norm
        norm = torch.nn.utils.get_total_norm(p.grad for p in engine.module.parameters() if p.grad is not None)
    engine.step()
    return float(engine.get_global_grad_norm() if norm is None else norm)


def gathered(engine: DeepSpeedEngine) -> AbstractContextManager[Any]:
    """Within this context every parameter is whole on every rank (ZeRO-3 keeps slices otherwise)."""
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    return deepspeed.zero.GatheredParameters(list(engine.module.parameters()))


def global_sums(values: Sequence[float | Tensor]) -> list[float]:
    """Element-wise sums over all ranks, in float64."""
    total = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if dist.get_world_size() > 1:
        total = total.to(_collective_device())
        dist.all_reduce(total)
    return total.tolist()


def in_lockstep(items: Sequence[T]) -> list[T | None]:
    """The items, followed by None until every rank has equally many: the passes that ZeRO wants of all."""
    longest = max(from_all_ranks(len(items)))
    return [*items, *[None] * (longest - len(items))]


def require_finite(ids: Sequence[str], values: Tensor, *, what: str) -> None:
    """Raise TrainingError on every rank when any rank holds a value that is not finite; ``values`` (N,), one
    per sample. The message names the samples."""
    bad = [name for name, ok in zip(ids, values.isfinite().tolist(), strict=True) if not ok]
    everywhere = [name for names in from_all_ranks(bad) for name in names]
    if everywhere:
        log.error("%s is not finite for: %s", what, ", ".join(everywhere))
        raise TrainingError(
            f"{what} is not finite for {len(everywhere)} samples: {', '.join(everywhere[:10])}. The run was "
            "stopped before the next update; the last checkpoint is sound. Look at these samples, or lower "
            "the learning rate."
        )


def global_max(value: float) -> float:
    """The largest value over all ranks."""
    return max(from_all_ranks(value))


def from_all_ranks(value: T) -> list[T]:
    """Every rank's value (small, picklable), in rank order."""
    if dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(make: Callable[[], T]) -> T:
    """What ``make`` returns on the main rank, on every rank; the others wait."""
    box: list[Any] = [make() if is_main() else None]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait for all ranks."""
    if dist.get_world_size() > 1:
        dist.barrier()


def _collective_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _do_without_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives at first use.

    That takes over a minute on two cores, and a C++ compiler even to find out whether it could; gloo does the
    same work. Nothing else in DeepSpeed reads this table.
    """
    deepspeed.ops.__compatible_ops__ = {}
