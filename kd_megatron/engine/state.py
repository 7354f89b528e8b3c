"""The whole state of an engine, by the names of the module's parameters: the same at any ZeRO stage and world size.

Read and written through DeepSpeed's maintained helpers (``deepspeed.utils.safe_get_full_*``, ``safe_set_*``,
``GatheredParameters``), parameter by parameter, so that no process holds more than one whole parameter beside its own
part. Trained parameters are read from their float32 masters, frozen ones from the model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_megatron.engine.build import Engine, on_host
from kd_megatron.engine.optimizer import MasterAdamW
from kd_megatron.ranks import dist

WEIGHTS = "weights"
MOMENTS = {"first_moments": "exp_avg", "second_moments": "exp_avg_sq"}  # kind -> torch's name in the state of AdamW
KINDS = (WEIGHTS, *MOMENTS)


@dataclass
class EngineState:
    """Float32 tensors on the CPU, whole. On ranks other than 0 there are none."""

    num_updates: int  # Adam's step count, the same for all parameters
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {kind: {} for kind in KINDS})


def shapes(engine: Engine) -> dict[str, list[int]]:
    """The whole shape of every parameter of the module."""
    # ``ds_shape``: of a parameter that ZeRO-3 has in pieces
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}


def trained(engine: Engine) -> list[str]:
    """The parameters that have moments; all have weights."""
    return [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def gather(engine: Engine) -> EngineState:
    """The state of ``engine``, a copy that later updates leave alone. Collective; rank 0 alone keeps it."""
    state = EngineState(_begin_optimizer_state(engine))
    if engine.zero_stage == 0 and not dist.is_main():
        return state  # nothing is in pieces
    for name, parameter in engine.module.named_parameters():
        for kind in KINDS if parameter.requires_grad else (WEIGHTS,):
            whole = engine.full_weight(parameter) if kind == WEIGHTS else _moment(engine, parameter, MOMENTS[kind])
            if dist.is_main():
                state.tensors[kind][name] = whole
    return state


def restore(engine: Engine, num_updates: int, read: Callable[[str, str], Tensor]) -> None:
    """Write a state into ``engine``. Collective.

    Args:
        read: (kind, name of a parameter) -> the float32 tensor on the CPU, called alike on every rank.
    """
    _begin_optimizer_state(engine)
    for name, parameter in engine.module.named_parameters():
        _set_weight(engine, parameter, read(WEIGHTS, name))
        if parameter.requires_grad:
            for kind, key in MOMENTS.items():
                _set_held(engine, parameter, read(kind, name), key)
    for held in _held_by_optimizer(engine):
        _adam(engine).state[held]["step"].fill_(num_updates)


def _adam(engine: Engine) -> torch.optim.Optimizer:
    adam: torch.optim.Optimizer = engine.deepspeed.basic_optimizer
    return adam


def _held_by_optimizer(engine: Engine) -> list[Tensor]:
    """The tensors that AdamW updates on this rank: parameters, masters, or ZeRO's flat parts of them."""
    if engine.zero_stage == 3:  # which lends them to the optimizer for its step alone
        return list(engine.deepspeed.optimizer.fp32_partitioned_groups_flat)
    return [held for group in _adam(engine).param_groups for held in group["params"]]


def _begin_optimizer_state(engine: Engine) -> int:
    """Give AdamW the state that its first step would begin with, where it has none yet; returns its step count."""
    num_updates = 0
    for held in _held_by_optimizer(engine):
        state: dict[str, Any] = _adam(engine).state[held]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=held.device)
            state.update({key: torch.zeros_like(held) for key in MOMENTS.values()})
        num_updates = int(state["step"].item())
    if engine.zero_stage in (1, 2):
        _link_optimizer_state(engine)
    return num_updates


def _link_optimizer_state(engine: Engine) -> None:
    """The helpers find moments by links, which DeepSpeed makes once its first group has state, before the others do."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    zero = engine.deepspeed.optimizer
    for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        lazy_init_hp_params_optimizer_state(parameters, flat, _adam(engine).state)


def _held_at_stage_0(engine: Engine, parameter: nn.Parameter) -> Tensor:
    adam = _adam(engine)
    master = adam.master(parameter) if isinstance(adam, MasterAdamW) else None
    return parameter if master is None else master


def _moment(engine: Engine, parameter: nn.Parameter, key: str) -> Tensor:
    from deepspeed.utils import safe_get_full_optimizer_state

    if engine.zero_stage == 0:
        whole = _adam(engine).state[_held_at_stage_0(engine, parameter)][key]
    else:
        whole = safe_get_full_optimizer_state(parameter, key)
    return on_host(whole)


@torch.no_grad()
def _set_weight(engine: Engine, parameter: nn.Parameter, value: Tensor) -> None:
    """The master, and the weight that the model computes with: the same numbers, rounded to its type once."""
    import deepspeed

    if parameter.requires_grad:
        _set_held(engine, parameter, value, key=None)
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
        parameter.data.copy_(value)


@torch.no_grad()
def _set_held(engine: Engine, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    """This rank's part of the master (``key`` None) or of a moment."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if engine.zero_stage == 0:
        held = _held_at_stage_0(engine, parameter)
        (held if key is None else _adam(engine).state[held][key]).copy_(value)
    elif engine.zero_stage == 3:
        _set_part(parameter, value, key)
    elif key is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _set_part(parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
    """At stage 3, where DeepSpeed's helper for whole tensors fails if they do not divide evenly among ranks."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = cast(Any, parameter).ds_tensor.numel()  # of each rank's part, the last one filled up
    first = size * dist.rank()
    part = torch.zeros(size)
    here = value.flatten()[first : first + size]
    part[: here.numel()] = here
    if key is None:
        safe_set_local_fp32_param(parameter, part)
    else:
        safe_set_local_optimizer_state(parameter, part, key)
