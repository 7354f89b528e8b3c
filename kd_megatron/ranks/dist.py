"""Ranks and the few collectives we call ourselves. Works the same with one process and no launcher."""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as torch_dist

from kd_megatron.errors import EnvironmentFault, KdError, disk_full_is_clear
from kd_megatron.ranks import failures, rendezvous, watchdog
from kd_megatron.ranks.process import is_main as is_main  # of a group as well
from kd_megatron.ranks.process import rank as rank

T = TypeVar("T")


def timeout() -> timedelta:
    """How long a collective may take. The watchdog sees a lost or hanging rank before, and can name it."""
    return timedelta(seconds=failures.hang_seconds() + failures.lost_seconds())


@contextlib.contextmanager
def joined(share_devices: bool = False) -> Iterator[torch.device]:
    """`initialise`, and `shut_down` at the end. An error that leaves the block ends the other ranks soon, and says why.

    Raises:
        RankLost: a collective failed because another rank is gone; named where it can be told.
    """
    try:
        with disk_full_is_clear("the output of this command"):
            yield initialise(share_devices)
    except BaseException as error:
        told = watchdog.last_words(error)
        _leave(in_good_order=False)
        if told is error:
            raise
        raise told from error
    shut_down()


def initialise(share_devices: bool = False) -> torch.device:
    """Join the process group (environment as `deepspeed` and `torchrun` set it; alone without) and name the device.

    The ranks then watch each other (`watchdog`) until `shut_down`.

    Args:
        share_devices: let several ranks of a node take one GPU, where it has fewer GPUs than ranks. For stages whose
            ranks exchange nothing on the GPU: NCCL refuses two ranks of one device.

    Raises:
        RankLost: not all ranks arrived.
        EnvironmentFault: the meeting point cannot be used, or a rank has no GPU of its own.
    """
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = gpu_of(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count(), share_devices)
        torch.cuda.set_device(device)
    if not torch_dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store, heart = rendezvous.meet(rank, size) if size > 1 else (torch_dist.HashStore(), None)
        watchdog.start(rank, heart)
        torch_dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout())
    return device


def gpu_of(local_rank: int, num_gpus: int, share: bool) -> torch.device:
    """The GPU of a rank: its own, or, where they are shared, one after the other in turn."""
    if local_rank >= num_gpus and not share:
        raise EnvironmentFault(
            given=f"local rank {local_rank} on a node with {num_gpus} GPUs",
            expected="a GPU for every process",
            fix=f"start at most {num_gpus} processes on this node (only fine-tuning lets several share a GPU)",
        )
    return torch.device("cuda", local_rank % num_gpus)


def shut_down() -> None:
    """Leave the process group, if there is one, and end the watch."""
    _leave(in_good_order=True)


def _leave(in_good_order: bool) -> None:
    """End the watch, and the group. Beside a lost rank the group is left as it is: ending it could wait for it."""
    watchdog.stop(in_good_order)
    if torch_dist.is_initialized() and (in_good_order or world_size() == 1):
        torch_dist.destroy_process_group()


def bound_timeouts() -> None:
    """Give every group the same bound: those that libraries make without one would wait for 30 minutes."""
    for group in torch_dist.distributed_c10d._world.pg_map:
        torch_dist.distributed_c10d._set_pg_timeout(timeout(), group)


def world_size() -> int:
    """How many processes there are."""
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def store() -> torch_dist.Store:
    """The store that all ranks of the process group reach; whoever uses it puts a prefix of its own before its keys."""
    return torch_dist.distributed_c10d._get_default_store()


def barrier() -> None:
    """Wait for all ranks; they are expected within `timeout`."""
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
