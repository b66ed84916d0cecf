"""What AdamW under DeepSpeed holds, whole and by parameter name, however ZeRO has cut it.

Every trained parameter has its float32 master weight, under its own name, AdamW's two moments and its number
of steps, under ``NAME@exp_avg``, ``NAME@exp_avg_sq`` and ``NAME@step``. So what was trained by some number of
ranks at some stage of ZeRO goes on with another number, at another stage. To the bit: gathering moves bits
and adds none.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine, zero  # imported by models.distributed before: it prepares for it
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq")
_STEP = "step"


def begin_adam(engine: DeepSpeedEngine) -> None:
    """Give AdamW its state before the first step: moments and steps of zero, as it would make them then.

    ZeRO 0 in bfloat16 has allocated them by a step on zero gradients, and counted it: its bias correction
    would make the first updates a quarter too small.
    """
    state = _adam(engine).state
    for master in _masters(engine):
        if not state[master]:
            step = torch.zeros((), device=master.device)
            state[master] |= {_STEP: step, **{key: torch.zeros_like(master) for key in _MOMENTS}}
        state[master][_STEP].zero_()
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # finds the moments of a parameter


def whole_state(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """Every name and its whole tensor, float32; all ranks iterate in step, and each gets all of them."""
    adam = _adam(engine)
    masters = _masters(engine)
    for name, parameter in _trained(engine):
        yield name, _whole(engine, parameter, None)
        for key in _MOMENTS:
            yield f"{name}@{key}", _whole(engine, parameter, key)
        holder = parameter if _is_plain(engine) else masters[0]  # one clock for all, under ZeRO
        yield f"{name}@{_STEP}", adam.state[holder][_STEP].detach().float().cpu().clone()


def restore_state(engine: DeepSpeedEngine, read: Callable[[str], Tensor]) -> None:
    """Take every tensor of :func:`whole_state` from ``read(name)``; all ranks call it."""
    adam = _adam(engine)
    steps = torch.zeros(())
    for name, parameter in _trained(engine):
        value = read(name).to(_device(parameter))
        for key in _MOMENTS:
            _put(engine, parameter, read(f"{name}@{key}").to(value.device), key)
        _put(engine, parameter, value, None)
        _show(parameter, value)
        step = read(f"{name}@{_STEP}")
        steps = torch.maximum(steps, step)
        if _is_plain(engine):
            adam.state[parameter][_STEP].copy_(step)
    if not _is_plain(engine):
        for master in _masters(engine):
            adam.state[master][_STEP].copy_(steps)


def local_gradients(engine: DeepSpeedEngine) -> Iterator[Tensor]:
    """This rank's part of the accumulated gradient, after the last backward pass and before the step."""
    for gradients in getattr(engine.optimizer, "averaged_gradients", {}).values():  # ZeRO 1 to 3
        yield from (gradient for gradient in gradients or () if gradient is not None)
    yield from (p.grad for p in engine.module.parameters() if p.grad is not None)


def _whole(engine: DeepSpeedEngine, parameter: Any, key: str | None) -> Tensor:
    """The master weight (``key`` None) or a moment of a parameter, in the parameter's shape."""
    if not engine.zero_optimization():
        return _held(engine, parameter, key).detach()
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        return engine.optimizer.get_full_hp_param(parameter, key)
    # The bits as integers: the sum of a float and zero is not the float when it is minus zero.
    bits = torch.zeros(parameter.numel(), dtype=torch.int32, device=parameter.device)
    mine = parameter._hp_mapping
    if mine is not None:
        place = mine.lp_fragment_address
        bits.narrow(0, place.start, place.numel).copy_(mine.get_hp_fragment(key).view(torch.int32))
    dist.all_reduce(bits)
    return bits.view(torch.float32).view(parameter.shape)


def _put(engine: DeepSpeedEngine, parameter: Any, value: Tensor, key: str | None) -> None:
    """Keep this rank's part of a master weight or a moment."""
    if not engine.zero_optimization():
        _held(engine, parameter, key).data.copy_(value)
    elif hasattr(parameter, "ds_id"):
        engine.optimizer.set_local_hp_param(_part(parameter, value), parameter, key)
    else:
        parameter.set_full_hp_param(value, key)


def _held(engine: DeepSpeedEngine, parameter: nn.Parameter, key: str | None) -> Tensor:
    """A master weight or a moment without ZeRO, where every rank has all of it, in the parameter's shape."""
    if _is_plain(engine):
        return parameter if key is None else _adam(engine).state[parameter][key]
    for group, masters in zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True):
        for each, master in zip(group, masters, strict=True):
            if each is parameter:
                return master if key is None else _adam(engine).state[master][key]
    raise AssertionError("the optimiser does not have this parameter")


def _part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's slice of a parameter under ZeRO-3; the last one is filled up with zeros."""
    size = parameter.ds_tensor.numel()
    filled = nn.functional.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
    return filled.narrow(0, size * dist.get_rank(), size)


def _show(parameter: nn.Parameter, value: Tensor) -> None:
    """Let the model compute with a new master weight."""
    if not hasattr(parameter, "ds_id"):
        parameter.data.copy_(value)
        return
    with zero.GatheredParameters([parameter], modifier_rank=0):
        if dist.get_rank() == 0:
            parameter.data.copy_(value)


def _trained(engine: DeepSpeedEngine) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _is_plain(engine: DeepSpeedEngine) -> bool:
    """ZeRO 0 in float32: AdamW steps on the model's own parameters."""
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def _adam(engine: DeepSpeedEngine) -> torch.optim.Optimizer:
    return engine.optimizer if _is_plain(engine) else engine.optimizer.optimizer


def _masters(engine: DeepSpeedEngine) -> list[Tensor]:
    """The tensors that AdamW steps on, on this rank."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    if engine.zero_optimization():
        return list(optimizer.single_partition_of_fp32_groups)
    if _is_plain(engine):
        return [parameter for _, parameter in _trained(engine)]
    return [master for group in optimizer.fp32_groups for master in group]


def _device(parameter: Any) -> torch.device:
    return parameter.ds_tensor.device if hasattr(parameter, "ds_id") else parameter.device
