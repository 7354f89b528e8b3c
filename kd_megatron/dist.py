"""Ranks and the few collectives we call ourselves. Works the same with one process and no launcher."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as torch_dist

from kd_megatron.errors import KdError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)  # a rank that is silent for longer ends the others


def initialise() -> torch.device:
    """Join the process group (environment as `deepspeed` and `torchrun` set it; alone without) and name the device."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not torch_dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if os.environ["WORLD_SIZE"] == "1" and "MASTER_PORT" not in os.environ:
            store = torch_dist.HashStore()
            torch_dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=TIMEOUT)
        else:
            torch_dist.init_process_group(backend, timeout=TIMEOUT)
    return device


def shut_down() -> None:
    """Leave the process group, if there is one."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def rank() -> int:
    """This process's rank, 0 when alone."""
    return torch_dist.get_rank() if torch_dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes there are."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which alone writes files and talks."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks; they are expected within `TIMEOUT`."""
    if world_size() > 1:
        torch_dist.barrier()


def wait_for_all() -> None:
    """Wait for all ranks, however long: for stages in which each rank works on jobs of its own."""
    if world_size() > 1:
        patient = torch_dist.new_group(backend="gloo", timeout=timedelta(days=7))
        torch_dist.barrier(group=patient)
        torch_dist.destroy_process_group(patient)


def all_reduce(values: torch.Tensor, operation: str = "sum") -> torch.Tensor:
    """Reduce ``values`` over all ranks (``"sum"`` or ``"max"``), in place; also returned."""
    if world_size() > 1:
        torch_dist.all_reduce(values, op={"sum": torch_dist.ReduceOp.SUM, "max": torch_dist.ReduceOp.MAX}[operation])
    return values


def from_main(value: T) -> T:
    """Rank 0's ``value``, on every rank. Small picklable objects only; for clocks, decisions and names."""
    if world_size() == 1:
        return value
    box = [value]
    torch_dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def number_from_main(value: float) -> float:
    """Rank 0's ``value``, exactly, on every rank: `from_main` for what is asked at every step."""
    if world_size() == 1:
        return value
    box = torch.tensor(value, dtype=torch.float64)
    torch_dist.broadcast(box, src=0)
    return float(box)


def tensor_from_main(values: torch.Tensor) -> torch.Tensor:
    """Rank 0's ``values``, written into every rank's (same shape and type, on the CPU); also returned."""
    if world_size() > 1:
        torch_dist.broadcast(values, src=0)
    return values


def on_main(work: Callable[[], T]) -> T:
    """What ``work`` returns on rank 0, on every rank; a `KdError` that it raises there is raised on every rank."""
    result: T | None = None
    problem: KdError | None = None
    if is_main():
        try:
            result = work()
        except KdError as error:
            problem = error
    result, problem = from_main((result, problem))
    if problem is not None:
        raise problem
    return cast(T, result)


def gather(value: T) -> list[T]:
    """Every rank's ``value``, in the order of ranks, on every rank. Small picklable objects only."""
    values = [value] * world_size()
    if world_size() > 1:
        torch_dist.all_gather_object(values, value)
    return values


def any_rank(flag: bool) -> bool:
    """True on every rank when it is true on one."""
    return bool(all_reduce(torch.tensor(int(flag)), "max").item())
